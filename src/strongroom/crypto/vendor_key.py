"""A public key of a vendor's, of every kind that vendors use, and what it signed."""

from __future__ import annotations

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from strongroom.crypto.derive import digest
from strongroom.errors import FormatError, VerificationError

MAX_KEY = 4096

HASHES: dict[str, hashes.HashAlgorithm] = {
    "sha256": hashes.SHA256(),
    "sha384": hashes.SHA384(),
    "sha512": hashes.SHA512(),
}
_CURVES = {"secp256r1": "P-256", "secp384r1": "P-384", "secp521r1": "P-521"}
_RSA_BITS = range(2048, 8193)
# FIPS 186-5, section A.1.1, from below; from above, so that a stranger's key cannot make verifying slow.
_RSA_EXPONENTS = range(65537, 2**32, 2)


class VendorKey:
    """A public key of a vendor's: RSA of 2048 to 8192 bits, or on P-256, P-384 or P-521.

    `spki` is its DER SubjectPublicKeyInfo, `fingerprint` the SHA-256 of that as ``sha256:<hex>``, `kind` ``RSA`` or the
    curve's name.
    """

    def __init__(self, spki: bytes) -> None:
        """Raises FormatError if `spki` is not a DER SubjectPublicKeyInfo of such a key."""
        if len(spki) > MAX_KEY:
            raise FormatError(f"vendor key: {len(spki)} bytes, wanted at most {MAX_KEY}")
        try:
            key = serialization.load_der_public_key(spki)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise FormatError("vendor key: not a DER SubjectPublicKeyInfo") from None
        if isinstance(key, rsa.RSAPublicKey) and key.key_size in _RSA_BITS:
            if key.public_numbers().e not in _RSA_EXPONENTS:
                raise FormatError("vendor key: wanted an odd RSA exponent from 65537 up to 32 bits")
            self.kind = "RSA"
        elif isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in _CURVES:
            self.kind = _CURVES[key.curve.name]
        else:
            raise FormatError("vendor key: wanted RSA of 2048 to 8192 bits, or a key on P-256, P-384 or P-521")
        self._key = key
        self.spki = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)

    @property
    def fingerprint(self) -> str:
        return "sha256:" + digest(self.spki).hex()

    def verify_ecdsa(self, r: int, s: int, message: bytes, *, algorithm: str) -> None:
        """Check an ECDSA signature over `message`; `algorithm` is ``sha256``, ``sha384`` or ``sha512``.

        Raises:
            VerificationError: it is not this key's, or this key is not on a curve.
        """
        if not isinstance(self._key, ec.EllipticCurvePublicKey):
            raise VerificationError(f"signature: ECDSA, but the key is {self.kind}")
        if r <= 0 or s <= 0:
            raise VerificationError("signature: does not match the key")
        try:
            self._key.verify(encode_dss_signature(r, s), message, ec.ECDSA(HASHES[algorithm]))
        except (InvalidSignature, ValueError):
            raise VerificationError("signature: does not match the key") from None

    def verify_rsa(self, signature: bytes, message: bytes, *, algorithm: str, pss: bool = False) -> None:
        """Check an RSA signature over `message`: PKCS #1 v1.5, or with `pss` PSS with a salt of any length.

        Raises:
            VerificationError: it is not this key's, or this key is not RSA.
        """
        if not isinstance(self._key, rsa.RSAPublicKey):
            raise VerificationError(f"signature: RSA, but the key is {self.kind}")
        chosen = HASHES[algorithm]
        scheme = padding.PSS(padding.MGF1(chosen), padding.PSS.AUTO) if pss else padding.PKCS1v15()
        try:
            self._key.verify(signature, message, scheme, chosen)
        except (InvalidSignature, ValueError):
            raise VerificationError("signature: does not match the key") from None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, VendorKey) and self.spki == other.spki

    def __hash__(self) -> int:
        return hash(self.spki)

    def __repr__(self) -> str:
        return f"VendorKey({self.kind}, {self.fingerprint})"
