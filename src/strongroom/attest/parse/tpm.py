"""Parse what a TPM 2.0 signs, and the evidence that it travels in. Bytes become typed values, nothing is trusted.

A TPM signs a digest of its registers only, so evidence of kind `tpm` is an object (docs/spec/evidence.md): the quote,
its signature, the key, the registers' values, and the firmware's log of what it measured into them if there is one.
`tpm_key` parses the public areas of keys, `event_log` the log.

Invariants:

- Every length is capped before anything is taken, and a structure parses only if its parts fill it: nothing may follow.
- What has no meaning for attestation, such as a key for encryption where one for signatures belongs, parses; what is
  of an algorithm not listed here does not.

The structures are those of the Trusted Computing Group's "TPM 2.0 Library, part 2: Structures", revision 1.59, whose
sections are named at each. All integers are big-endian.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, field

from strongroom.attest.binding import JSON, canonical, parse_canonical
from strongroom.attest.evidence import MAX_QUOTE
from strongroom.errors import FormatError

MAX_MESSAGE = 1024
MAX_SIGNATURE = 4 + 2 + 1024
MAX_PUBLIC = 2048
MAX_EVENT_LOG = MAX_QUOTE // 4 * 3

# 6.2 TPM_GENERATED_VALUE, 6.9 TPM_ST_ATTEST_QUOTE: only a TPM puts these before what a restricted key signs.
MAGIC = 0xFF544347
_QUOTE = 0x8018

# 6.3 TPM_ALG_ID, of digests: name and size.
DIGESTS: Mapping[int, tuple[str, int]] = {
    0x0004: ("sha1", 20),
    0x000B: ("sha256", 32),
    0x000C: ("sha384", 48),
    0x000D: ("sha512", 64),
    0x0012: ("sm3", 32),
    0x0027: ("sha3_256", 32),
    0x0028: ("sha3_384", 48),
    0x0029: ("sha3_512", 64),
}
DIGEST_SIZES: Mapping[str, int] = dict(DIGESTS.values())
_RSASSA, _RSAPSS, _ECDSA = 0x0014, 0x0016, 0x0018
# Digests that a signature may be over; the others are broken, or nobody's.
_SIGNED = ("sha256", "sha384", "sha512")

# 10.4.2 TPMU_HA and 10.4.3 TPM2B_DATA: an algorithm and the longest digest.
_LONGEST = 2 + 64
# 10.6.2 TPMS_PCR_SELECT: one bit a register, of which a TPM has 24 to 32.
_SELECT_SIZES = range(1, 5)
_MAX_BANKS = 16
_MAX_INTEGER = 1024
# Decimal, without leading zeros.
_INDICES = {str(index): index for index in range(32)}


@dataclass(frozen=True)
class TpmQuote:
    """A TPMS_ATTEST of type quote. Nothing here is authenticated yet.

    Attributes:
        signer: the qualified name of the key that signs: an algorithm and a digest, or nothing.
        extra_data: what the caller of TPM2_Quote bound it to; at most 66 bytes.
        clock: milliseconds that the TPM has been powered for.
        reset_count: how often it was reset; obscured by a number of the TPM's own for keys outside of the endorsement
            and platform hierarchies, and so are the next two.
        restart_count: how often it was resumed since.
        safe: whether `clock` is sure not to have gone back since the last orderly shutdown.
        firmware_version: as its maker counts.
        selection: the registers that are quoted, ascending, by bank, in the order in which they are digested.
        pcr_digest: over their values.
    """

    signer: bytes
    extra_data: bytes
    clock: int
    reset_count: int
    restart_count: int
    safe: bool
    firmware_version: int
    selection: Mapping[str, tuple[int, ...]]
    pcr_digest: bytes


@dataclass(frozen=True)
class TpmSignature:
    """A TPMT_SIGNATURE: `scheme` is ``rsassa``, ``rsapss`` or ``ecdsa``, `algorithm` the digest's name.

    `rsa` holds the signature for the first two; `r` and `s` those of ``ecdsa``.
    """

    scheme: str
    algorithm: str
    rsa: bytes = field(default=b"", repr=False)
    r: int = 0
    s: int = 0


def parse_quote(message: bytes) -> TpmQuote:
    """Parse a TPMS_ATTEST (10.12.12) that is a quote (10.12.1), without TPM2B_ATTEST's length before it.

    Raises:
        FormatError: it is something else, is cut short, or has a byte more than its parts.
    """
    reader = Reader("quote", message, MAX_MESSAGE)
    for name, got, wanted in (("magic", reader.u32(), MAGIC), ("type", reader.u16(), _QUOTE)):
        if got != wanted:
            raise FormatError(f"quote: got {name} {got:#x}, wanted {wanted:#x}")
    signer = reader.sized("qualified signer", 4 + 64)
    extra_data = reader.sized("extra data", _LONGEST)
    clock, reset_count, restart_count, safe = reader.u64(), reader.u32(), reader.u32(), reader.u8()
    if safe > 1:
        raise FormatError(f"quote: got safe {safe}, wanted 0 or 1")
    firmware_version = reader.u64()
    selection = _selection(reader)
    pcr_digest = reader.sized("PCR digest", 64)
    reader.end()
    return TpmQuote(
        signer, extra_data, clock, reset_count, restart_count, bool(safe), firmware_version, selection, pcr_digest
    )


def _selection(reader: Reader) -> dict[str, tuple[int, ...]]:
    """A TPML_PCR_SELECTION (10.9.7). A bank may be there once only."""
    count = reader.u32()
    if count > _MAX_BANKS:
        raise FormatError(f"quote: {count} selections of PCRs, wanted at most {_MAX_BANKS}")
    selection: dict[str, tuple[int, ...]] = {}
    for _ in range(count):
        bank, _ = reader.digest("PCR bank")
        size = reader.u8()
        if size not in _SELECT_SIZES or bank in selection:
            raise FormatError(f"quote: got {size} bytes of selection in bank {bank}, wanted 1 to 4, each bank once")
        bits = int.from_bytes(reader.take(size, "selection"), "little")
        selection[bank] = tuple(index for index in range(8 * size) if bits >> index & 1)
    return selection


def parse_signature(raw: bytes) -> TpmSignature:
    """Parse a TPMT_SIGNATURE (11.3.4) of RSASSA, RSAPSS or ECDSA over SHA-256, SHA-384 or SHA-512.

    Raises:
        FormatError: it is something else, is cut short, or has a byte more than its parts.
    """
    reader = Reader("signature", raw, MAX_SIGNATURE)
    scheme = reader.u16()
    if scheme not in (_RSASSA, _RSAPSS, _ECDSA):
        raise FormatError(f"signature: got algorithm {scheme:#06x}, wanted RSASSA, RSAPSS or ECDSA")
    algorithm, _ = reader.digest("digest")
    if algorithm not in _SIGNED:
        raise FormatError(f"signature: got one over {algorithm}, wanted one over {', '.join(_SIGNED)}")
    if scheme == _ECDSA:
        r, s = (int.from_bytes(reader.sized(name, 66), "big") for name in ("r", "s"))
        signature = TpmSignature("ecdsa", algorithm, r=r, s=s)
    else:
        rsa = reader.sized("signature", _MAX_INTEGER)
        signature = TpmSignature("rsassa" if scheme == _RSASSA else "rsapss", algorithm, rsa)
    reader.end()
    return signature


@dataclass(frozen=True)
class TpmEvidence:
    """What `Evidence.quote` of kind `tpm` holds.

    Attributes:
        message: what the TPM signed, a TPMS_ATTEST.
        signature: a TPMT_SIGNATURE.
        public: the attestation key's public area, a TPMT_PUBLIC; empty where nobody kept it.
        spki: the attestation key as a DER SubjectPublicKeyInfo, where there is no public area.
        pcrs: values of the quoted registers, by bank and index.
        event_log: what the firmware measured, as it logs it; empty if it is not shown.
    """

    message: bytes = field(repr=False)
    signature: bytes = field(repr=False)
    pcrs: Mapping[str, Mapping[int, bytes]] = field(repr=False)
    public: bytes = field(default=b"", repr=False)
    spki: bytes = field(default=b"", repr=False)
    event_log: bytes = field(default=b"", repr=False)

    def to_bytes(self) -> bytes:
        """What `parse_tpm` reads. Raises FormatError if that is too large."""
        wire: dict[str, JSON] = {
            "message": self.message.hex(),
            "signature": self.signature.hex(),
            "pcrs": {
                bank: {str(index): value.hex() for index, value in values.items()} for bank, values in self.pcrs.items()
            },
        }
        wire |= {name: value.hex() for name, value in (("public", self.public), ("spki", self.spki)) if value}
        if self.event_log:
            wire["event_log"] = base64.b64encode(self.event_log).decode()
        return canonical(wire, cap=MAX_QUOTE)


def parse_tpm(quote: bytes) -> TpmEvidence:
    """Read evidence of that form.

    Raises:
        FormatError: it is not of it; there is no key, or there are two.
    """
    wire = parse_canonical(quote, cap=MAX_QUOTE)
    wanted = {"message", "signature", "pcrs", "public" if "public" in wire else "spki"}
    if set(wire) - {"event_log"} != wanted:
        raise FormatError(
            "tpm evidence: wanted message, signature, pcrs, public or spki, and event_log if there is one"
        )
    event_log = wire.get("event_log", "")
    return TpmEvidence(
        message=hex_bytes("message", wire["message"], MAX_MESSAGE),
        signature=hex_bytes("signature", wire["signature"], MAX_SIGNATURE),
        pcrs=_pcrs(wire["pcrs"]),
        public=hex_bytes("public", wire["public"], MAX_PUBLIC) if "public" in wire else b"",
        spki=hex_bytes("spki", wire["spki"], MAX_PUBLIC) if "spki" in wire else b"",
        event_log=_base64("event_log", event_log) if "event_log" in wire else b"",
    )


def _pcrs(banks: JSON) -> dict[str, dict[int, bytes]]:
    if not isinstance(banks, Mapping):
        raise FormatError(f"tpm evidence: pcrs: got a {type(banks).__name__}, wanted an object")
    pcrs: dict[str, dict[int, bytes]] = {}
    for bank, values in banks.items():
        if bank not in DIGEST_SIZES or not isinstance(values, Mapping):
            raise FormatError(f"tpm evidence: pcrs: got bank {bank[:20]!r}, wanted one of {', '.join(DIGEST_SIZES)}")
        for index in values:
            if index not in _INDICES:
                raise FormatError(f"tpm evidence: pcrs: got index {index[:20]!r}, wanted 0 to 31")
        pcrs[bank] = {_INDICES[index]: hex_bytes(f"pcrs.{bank}.{index}", values[index], 64) for index in values}
    return pcrs


def hex_bytes(name: str, text: JSON, cap: int) -> bytes:
    """Lower-case hexadecimal digits, of at least one byte."""
    if not isinstance(text, str) or not text or len(text) > 2 * cap:
        raise FormatError(f"{name}: wanted hexadecimal digits of 1 to {cap} bytes")
    try:
        raw = bytes.fromhex(text)
    except ValueError:
        raw = b""
    if raw.hex() != text:
        raise FormatError(f"{name}: not lower-case hexadecimal digits")
    return raw


def _base64(name: str, text: JSON) -> bytes:
    """Base64 in its one canonical spelling, of at least one byte."""
    try:
        raw = base64.b64decode(text, validate=True) if isinstance(text, str) else b""
    except (binascii.Error, ValueError):
        raw = b""
    if not raw or base64.b64encode(raw).decode() != text:
        raise FormatError(f"{name}: not base64")
    return raw


class Reader:
    """Takes parts off a byte string from its start; `name` is what its errors call it."""

    def __init__(self, name: str, raw: bytes, cap: int) -> None:
        if len(raw) > cap:
            raise FormatError(f"{name}: {len(raw)} bytes, wanted at most {cap}")
        self._name, self._raw, self._at = name, raw, 0

    def take(self, size: int, what: str = "an integer") -> bytes:
        part = self._raw[self._at : self._at + size]
        if len(part) != size:
            raise FormatError(f"{self._name}: {len(part)} bytes of {what}, wanted {size}")
        self._at += size
        return part

    def u8(self) -> int:
        return self.take(1)[0]

    def u16(self) -> int:
        return int.from_bytes(self.take(2), "big")

    def u32(self) -> int:
        return int.from_bytes(self.take(4), "big")

    def u64(self) -> int:
        return int.from_bytes(self.take(8), "big")

    def sized(self, what: str, cap: int) -> bytes:
        """A TPM2B: its size in 16 bits, then that many bytes."""
        size = self.u16()
        if size > cap:
            raise FormatError(f"{self._name}: {size} bytes of {what}, wanted at most {cap}")
        return self.take(size, what)

    def digest(self, what: str) -> tuple[str, int]:
        """A TPMI_ALG_HASH: the digest's name and size."""
        algorithm = self.u16()
        if algorithm not in DIGESTS:
            raise FormatError(f"{self._name}: got {what} {algorithm:#06x}, which is unknown")
        return DIGESTS[algorithm]

    def end(self) -> None:
        if self._at != len(self._raw):
            raise FormatError(f"{self._name}: {len(self._raw) - self._at} bytes after its end, wanted none")
