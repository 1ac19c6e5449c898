"""Parse a TPM's public areas: which key it is, and what the TPM lets be done with it. Nothing is trusted.

What a public area says holds only if a TPM vouches for its name, which enrolment makes it do: a key whose private half
is outside of any TPM can be shown with any attributes.

Sources: "TPM 2.0 Library, part 2: Structures", revision 1.59, sections 8.3 (TPMA_OBJECT), 11.2 and 12.2 (TPMT_PUBLIC);
part 1, section 16 (names).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from strongroom.attest.parse.tpm import DIGESTS, MAX_PUBLIC, Reader
from strongroom.crypto import digest
from strongroom.crypto.chains import VendorKey
from strongroom.crypto.tpm import ec_key, rsa_key
from strongroom.errors import FormatError

_RSA, _ECC = 0x0001, 0x0023
_NULL, _AES, _CFB = 0x0010, 0x0006, 0x0043
# Schemes that carry no digest (TPM_ALG_RSAES, and none), and the one with a count after it (TPM_ALG_ECDAA).
_RSAES, _ECDAA = 0x0015, 0x001A
_CURVES = {0x0003: "P-256", 0x0004: "P-384", 0x0005: "P-521"}
# 12.2.3.5: zero stands for this one.
_EXPONENT = 65537

# 8.3.2: bits of TPMA_OBJECT.
_ATTRIBUTES = {
    "fixedTPM": 1 << 1,
    "fixedParent": 1 << 4,
    "sensitiveDataOrigin": 1 << 5,
    "restricted": 1 << 16,
    "decrypt": 1 << 17,
    "sign": 1 << 18,
}


@dataclass(frozen=True)
class TpmPublic:
    """A TPMT_PUBLIC of an RSA key or one on a curve.

    Attributes:
        raw: its bytes.
        name_algorithm: the digest that makes its name.
        attributes: those of fixedTPM, fixedParent, sensitiveDataOrigin, restricted, decrypt and sign that are set.
        key: what others verify and encrypt with.
        aes_bits: of the AES-CFB key that protects what is under it; 0 if it is no parent.
    """

    raw: bytes = field(repr=False)
    name_algorithm: str
    attributes: frozenset[str]
    key: VendorKey
    aes_bits: int

    @property
    def name(self) -> bytes:
        """A TPM2B_NAME without its size: the name algorithm and the digest of the public area."""
        return self.raw[2:4] + digest(self.raw, algorithm=self.name_algorithm)

    def qualified_name(self, parent: bytes) -> bytes:
        """The name that quotes have for it, given its parent's: a hierarchy's is its handle, 4 bytes."""
        return self.raw[2:4] + digest(parent, self.name, algorithm=self.name_algorithm)


def parse_public(raw: bytes) -> TpmPublic:
    """Parse a TPMT_PUBLIC, without TPM2B_PUBLIC's length before it.

    Raises:
        FormatError: it is no RSA key of 2048 bits and more, and none on P-256, P-384 or P-521; its name is by another
            digest than SHA-256, SHA-384 or SHA-512; it is cut short, or has a byte more than its parts.
    """
    reader = Reader("public area", raw, MAX_PUBLIC)
    kind = reader.u16()
    if kind not in (_RSA, _ECC):
        raise FormatError(f"public area: got type {kind:#06x}, wanted RSA or ECC")
    name_algorithm, _ = reader.digest("name algorithm")
    if name_algorithm not in ("sha256", "sha384", "sha512"):
        raise FormatError(f"public area: got name algorithm {name_algorithm}, wanted sha256, sha384 or sha512")
    bits = reader.u32()
    reader.sized("policy", 64)
    aes_bits = _symmetric(reader)
    _scheme(reader, kind)
    if kind == _RSA:
        size, exponent = reader.u16(), reader.u32() or _EXPONENT
        modulus = reader.sized("modulus", 1024)
        if len(modulus) * 8 != size:
            raise FormatError(f"public area: {len(modulus)} bytes of modulus, wanted {size} bits")
        key = rsa_key(modulus, exponent)
    else:
        curve = reader.u16()
        if curve not in _CURVES:
            raise FormatError(f"public area: got curve {curve:#06x}, wanted P-256, P-384 or P-521")
        _hashed(reader)  # key derivation, for ECDH keys
        x, y = reader.sized("x", 66), reader.sized("y", 66)
        key = ec_key(_CURVES[curve], x, y)
    reader.end()
    attributes = frozenset(name for name, bit in _ATTRIBUTES.items() if bits & bit)
    return TpmPublic(raw, name_algorithm, attributes, key, aes_bits)


def _symmetric(reader: Reader) -> int:
    """A TPMT_SYM_DEF_OBJECT (11.1.7): none, or AES-CFB."""
    algorithm = reader.u16()
    if algorithm == _NULL:
        return 0
    bits, mode = reader.u16(), reader.u16()
    if algorithm != _AES or mode != _CFB or bits not in (128, 192, 256):
        raise FormatError(f"public area: got cipher {algorithm:#06x}, {bits} bits, mode {mode:#06x}, wanted AES-CFB")
    return bits


def _scheme(reader: Reader, kind: int) -> None:
    """A TPMT_RSA_SCHEME or TPMT_ECC_SCHEME (11.2.4.2, 11.2.5.6)."""
    scheme = _hashed(reader, without=(_NULL, _RSAES) if kind == _RSA else (_NULL,))
    if scheme == _ECDAA:
        reader.u16()


def _hashed(reader: Reader, without: tuple[int, ...] = (_NULL,)) -> int:
    """An algorithm with a digest, unless it is one of those without."""
    algorithm = reader.u16()
    if algorithm not in without and reader.u16() not in DIGESTS:
        raise FormatError(f"public area: got an unknown digest for scheme {algorithm:#06x}")
    return algorithm
