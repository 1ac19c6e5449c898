"""What evidence is bound to: 64 bytes of report data over kind, nonce, channel and claims (docs/spec/evidence.md).

Evidence inside a TLS handshake can be relayed, so it is shown inside an established TLS 1.3 channel and names it:

- `Kind.SESSION`: `fresh` is the verifier's nonce, `binder` the channel's TLS exporter (RFC 8446, section 7.5).
- `Kind.SERVICE`: one report for all users. `fresh` is the SHA-256 of a time token that the CAS signed, `binder` is
  zero; the key that every later channel must show is in the claims.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import TypeAlias

from strongroom.crypto import digest
from strongroom.errors import FormatError

JSON: TypeAlias = bool | int | str | Sequence["JSON"] | Mapping[str, "JSON"] | None

LABEL = b"strongroom/evidence/v1"
DEVICE_LABEL = b"strongroom/device/v1"
LAUNCHED_LABEL = b"strongroom/launched/v1"
EXPORTER_LABEL = b"EXPORTER-Strongroom-v1"
REPORT_DATA_SIZE = 64
FRESH_SIZE = 32
BINDER_SIZE = 32
NO_BINDER = bytes(BINDER_SIZE)

MAX_CANONICAL = 64 * 1024
_MAX_DEPTH = 16
# RFC 7493, section 2.2: every implementation reads integers of this size alike.
_MAX_INTEGER = 2**53 - 1


class Kind(IntEnum):
    """What report data is bound to: one channel, or a service whose key the claims name."""

    SESSION = 1
    SERVICE = 2


def report_data(kind: Kind, *, fresh: bytes, binder: bytes, claims: bytes) -> bytes:
    """SHA-512("strongroom/evidence/v1" || kind u8 || fresh[32] || binder[32] || SHA-256(claims)), 64 bytes.

    Args:
        kind: session or service.
        fresh: 32 bytes: the verifier's nonce, or the digest of a time token.
        binder: 32 bytes: the channel's TLS exporter; zero for a service.
        claims: canonical JSON, from `canonical`.

    Raises:
        FormatError: a length is wrong, the kind is unknown, a service has a binder or a session has none.
    """
    try:
        kind = Kind(kind)
    except ValueError:
        raise FormatError(f"evidence kind: got {kind!r}, wanted one of {[int(k) for k in Kind]}") from None
    if len(fresh) != FRESH_SIZE:
        raise FormatError(f"fresh: {len(fresh)} bytes, wanted {FRESH_SIZE}")
    if len(binder) != BINDER_SIZE:
        raise FormatError(f"binder: {len(binder)} bytes, wanted {BINDER_SIZE}")
    if kind is Kind.SERVICE and binder != NO_BINDER:
        raise FormatError("binder: not zero, wanted 32 zero bytes for evidence of kind service")
    if kind is Kind.SESSION and binder == NO_BINDER:
        raise FormatError("binder: zero, wanted the channel's exporter for evidence of kind session")
    return digest(LABEL, bytes([kind]), fresh, binder, digest(claims), algorithm="sha512")


def bound_data(tee: str, report_data: bytes) -> bytes:
    """What evidence of that kind holds of the 64 bytes of report data: all of it where there is room.

    TPMs have room for a digest only (TPM 2.0 part 2, section 10.12.8: TPM2B_DATA), and so do NVIDIA's devices, whose
    nonce has 32 bytes; each gets the SHA-256 of it, a device's under a label of its own.
    """
    if tee in ("tpm", "azure-snp", "azure-tdx"):
        return digest(report_data)
    if tee == "nvidia":
        return digest(DEVICE_LABEL, report_data)
    return report_data


def launched_data(report_data: bytes, program: str) -> bytes:
    """What a launcher on a machine that is one TEE as a whole makes of a program's report data, before `bound_data`.

    SHA-512("strongroom/launched/v1" || report_data[64] || program[48]), 64 bytes: the launcher, which the machine's own
    measurement covers, says that the program of that measurement is who asks for this evidence.

    Args:
        report_data: what the program asked for, from `report_data`.
        program: its measurement, 96 hexadecimal digits.
    """
    return digest(LAUNCHED_LABEL, report_data, bytes.fromhex(program), algorithm="sha512")


def canonical(claims: Mapping[str, JSON], *, cap: int = MAX_CANONICAL) -> bytes:
    """An object as the one byte string that stands for it: RFC 8785, without floating-point numbers.

    Keys sorted by UTF-16 code unit, no spaces, UTF-8, integers within 2^53 - 1, at most 16 levels and `cap` bytes.

    Raises:
        FormatError: the object holds something else than that.
    """
    if not isinstance(claims, Mapping):
        raise FormatError(f"canonical JSON: got a {type(claims).__name__}, wanted an object")
    try:
        text = json.dumps(_ordered(claims, _MAX_DEPTH), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        raw = text.encode()
    except UnicodeEncodeError:
        raise FormatError("canonical JSON: a string holds a lone surrogate") from None
    if len(raw) > cap:
        raise FormatError(f"canonical JSON: {len(raw)} bytes, wanted at most {cap}")
    return raw


def parse_canonical(raw: bytes, *, cap: int = MAX_CANONICAL) -> dict[str, JSON]:
    """The object that `canonical` wrote.

    Raises:
        FormatError: `raw` is not exactly what `canonical` writes for any object; so no two byte strings mean the same,
            and duplicate keys, floating-point numbers and stray spaces never get in.
    """
    if len(raw) > cap:
        raise FormatError(f"canonical JSON: {len(raw)} bytes, wanted at most {cap}")
    try:
        claims = json.loads(raw.decode())
    except (ValueError, RecursionError):
        raise FormatError("canonical JSON: does not parse") from None
    if not isinstance(claims, dict):
        raise FormatError(f"canonical JSON: got a {type(claims).__name__}, wanted an object")
    if canonical(claims, cap=cap) != raw:
        raise FormatError("canonical JSON: parses, but is not in canonical form")
    return claims


def _ordered(value: JSON, depth: int) -> JSON:
    if depth == 0:
        raise FormatError(f"canonical JSON: deeper than {_MAX_DEPTH} levels")
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        if abs(value) > _MAX_INTEGER:
            raise FormatError("canonical JSON: an integer is outside 2^53 - 1")
        return int(value)
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise FormatError(f"canonical JSON: got a key of type {type(key).__name__}, wanted a string")
        # Code units of ASCII are characters.
        keys = sorted(value) if "".join(value).isascii() else sorted(value, key=_utf16)
        return {key: _ordered(value[key], depth - 1) for key in keys}
    if isinstance(value, list | tuple):
        return [_ordered(item, depth - 1) for item in value]
    raise FormatError(f"canonical JSON: got a value of type {type(value).__name__}")


def _utf16(key: str) -> bytes:
    return key.encode("utf-16-be")


def difference(got: bytes, wanted: bytes) -> str:
    """Two report data in hexadecimal digits, for a message: 16 bytes of each, from where they begin to differ."""
    common = next((i for i, (a, b) in enumerate(zip(got, wanted, strict=False)) if a != b), min(len(got), len(wanted)))
    start = common - common % 16
    mine, theirs = (_part(each, start) for each in (got, wanted))
    if len(got) != len(wanted):
        mine, theirs = f"{mine} of {len(got)} bytes", f"{theirs} of {len(wanted)} bytes"
    return f"{mine}, wanted {theirs}" + (f", which differ from byte {common} on" if start else "")


def _part(data: bytes, start: int) -> str:
    """16 bytes of `data`, in hexadecimal digits, and whether more come before and after."""
    after = "..." if len(data) > start + 16 else ""
    return ("..." if start else "") + data[start : start + 16].hex() + after or "none"
