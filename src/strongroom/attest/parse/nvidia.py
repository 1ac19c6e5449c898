"""Parse what NVIDIA's GPUs of Hopper and later sign: bytes become typed values, and nothing is trusted.

A device's evidence is an exchange of SPDM 1.1 (DMTF DSP0274 1.1.0, "GET_MEASUREMENTS request and MEASUREMENTS response
messages"): all 37 bytes of the one and then the whole of the other. All integers are little-endian.

| offset | bytes | request | offset | bytes | response |
|---|---|---|---|---|---|
| 0 | 1 | version, `11` | 37 | 1 | version, `11` |
| 1 | 1 | code, `e0` | 38 | 1 | code, `60` |
| 2 | 1 | attributes, `01`: signed | 39 | 1 | reserved |
| 3 | 1 | which blocks, `ff`: all | 40 | 1 | slot of the certificate chain |
| 4 | 32 | nonce of who asks | 41 | 1 | number of blocks |
| 36 | 1 | slot of the certificate chain | 42 | 3 | their length L1 |
| | | | 45 | L1 | blocks |
| | | | | 32 | nonce of the device |
| | | | | 2 | length L2 of the vendor's data |
| | | | | L2 | the vendor's data |
| | | | | 96 | signature, r || s, big-endian |

A block is its index u8, specification u8 (1: DMTF), size u16, and within that size type u8, size u16 and value. A value
is a SHA-384 digest, or with bit 7 of the type the very bytes that would have been digested.
The vendor's data are fields of type u16, size u16 and value. Their types are those of NVIDIA's own verifier
(NVIDIA/nvtrust, guest_tools/gpu_verifiers/local_gpu_verifier, `spdm_msrt_resp_msg.py`).
"""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

from strongroom.attest.evidence import Evidence
from strongroom.attest.parse.endorsements import Endorsements
from strongroom.crypto import digest
from strongroom.crypto.chains import MAX_CERTIFICATE, MAX_CHAIN, pem_certificates
from strongroom.errors import FormatError

# A record of 254 blocks, the most that there are indices for, and as much of the vendor's data.
MAX_EXCHANGE = 32 * 1024
NONCE_SIZE = 32
SIGNATURE_SIZE = 96
DIGEST_SIZE = 48

_VERSION = 0x11
_REQUEST = struct.Struct(f"<BBBB{NONCE_SIZE}sB")
_GET_MEASUREMENTS, _SIGNED, _ALL = 0xE0, 0x01, 0xFF
_RESPONSE = struct.Struct("<BBBBB3s")
_MEASUREMENTS = 0x60
_SLOT = 0x0F
_BLOCK = struct.Struct("<BBHBH")
_DMTF = 1
_RAW = 0x80
_INDICES = range(1, 0xFF)
_FIELD = struct.Struct("<HH")

_MAX_PEM = (MAX_CHAIN + 1) * 2 * MAX_CERTIFICATE


@dataclass(frozen=True)
class NvidiaExchange:
    """One request for measurements and its answer. Nothing here is authenticated yet.

    Attributes:
        nonce: the asker's.
        blocks: digests of 48 bytes by index, ascending; of those that come as bytes, the digests of these.
        device_nonce: the device's own.
        fields: the vendor's data by type.
        signature: r || s, big-endian.
        signed: the bytes that it signs: all before it.
    """

    nonce: bytes
    blocks: Mapping[int, bytes] = field(repr=False)
    device_nonce: bytes
    fields: Mapping[int, bytes] = field(repr=False)
    signature: bytes = field(repr=False)
    signed: bytes = field(repr=False)


def parse_nvidia(raw: bytes) -> NvidiaExchange:
    """Parse an exchange of at most 32 KiB.

    Raises:
        FormatError: it is something else, is cut short, or has a byte more than its parts.
    """
    if len(raw) > MAX_EXCHANGE:
        raise FormatError(f"gpu report: {len(raw)} bytes, wanted at most {MAX_EXCHANGE}")
    reader = _Reader(raw)
    version, code, attributes, which, nonce, slot = _REQUEST.unpack(reader.take(_REQUEST.size, "request"))
    _check("request", version, code, _GET_MEASUREMENTS)
    if (attributes, which) != (_SIGNED, _ALL):
        raise FormatError(f"gpu report: request of {attributes:#04x} {which:#04x}, wanted all blocks signed, 0x01 0xff")
    version, code, _, answered, count, size = _RESPONSE.unpack(reader.take(_RESPONSE.size, "response"))
    _check("response", version, code, _MEASUREMENTS)
    if slot > _SLOT or answered & _SLOT != slot:
        raise FormatError(f"gpu report: response for slot {answered & _SLOT}, wanted {slot}, which was asked")
    blocks = _blocks(reader.take(int.from_bytes(size, "little"), "blocks"), count)
    device_nonce = reader.take(NONCE_SIZE, "nonce")
    size = reader.take(2, "length of the vendor's data")
    fields = _fields(reader.take(int.from_bytes(size, "little"), "vendor's data"))
    signed = raw[: reader.at]
    signature = reader.take(SIGNATURE_SIZE, "signature")
    reader.end("gpu report")
    return NvidiaExchange(nonce, blocks, device_nonce, fields, signature, signed)


def from_nvtrust(wire: object) -> tuple[Evidence, ...]:
    """Evidence as NVIDIA's SDKs and Confidential Containers write it: one object for each GPU, alone or in a list.

    Each has ``evidence`` and ``certificate``, the base64 of the exchange and of its chain in PEM, leaf first; ``nonce``
    in hexadecimal digits, if it is there, must be the request's. What else it has, such as ``arch``, nobody signed.

    Raises:
        FormatError: it has another form.
    """
    objects = wire if isinstance(wire, list) else [wire]
    if not objects:
        raise FormatError("gpu evidence: got an empty list, wanted one object for each GPU")
    return tuple(_from_object(each) for each in objects)


def from_report(report: bytes, chain: bytes) -> Evidence:
    """Evidence from an exchange, as it is or in hexadecimal digits, and its chain in PEM, leaf first.

    Raises:
        FormatError: the exchange or the chain does not parse.
    """
    if len(report) > 2 * MAX_EXCHANGE + 2:
        raise FormatError(f"gpu report: {len(report)} bytes, wanted at most {MAX_EXCHANGE}, or twice as many digits")
    try:
        raw = bytes.fromhex(report.decode("ascii"))
    except ValueError:
        raw = report
    parse_nvidia(raw)
    return Evidence("nvidia", raw, Endorsements(pem_certificates(chain)).to_bytes())


def _from_object(wire: object) -> Evidence:
    if not isinstance(wire, Mapping) or not {"evidence", "certificate"} <= set(wire):
        raise FormatError("gpu evidence: wanted an object with evidence and certificate, both in base64")
    report = _base64("evidence", wire["evidence"], MAX_EXCHANGE)
    evidence = from_report(report, _base64("certificate", wire["certificate"], _MAX_PEM))
    nonce = wire.get("nonce")
    if nonce is not None:
        asked = parse_nvidia(evidence.quote).nonce.hex()
        if not isinstance(nonce, str) or nonce.lower().removeprefix("0x") != asked:
            raise FormatError(f"gpu evidence: nonce: got {str(nonce)[:80]!r}, wanted that of the request, {asked}")
    return evidence


def _base64(name: str, text: object, cap: int) -> bytes:
    if not isinstance(text, str) or len(text) > cap * 4 // 3 + 4:
        raise FormatError(f"gpu evidence: {name}: wanted base64 of at most {cap} bytes")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise FormatError(f"gpu evidence: {name}: not base64") from None


def _blocks(record: bytes, count: int) -> dict[int, bytes]:
    if count == 0:
        raise FormatError("gpu report: no blocks, wanted at least one")
    reader, blocks = _Reader(record), dict[int, bytes]()
    for _ in range(count):
        index, specification, size, kind, value_size = _BLOCK.unpack(reader.take(_BLOCK.size, "block"))
        if index not in _INDICES or index <= max(blocks, default=0):
            raise FormatError(f"gpu report: block {index} after {max(blocks, default=0)}, wanted ascending indices")
        raw = bool(kind & _RAW)
        if specification != _DMTF or size != 3 + value_size or not (raw or value_size == DIGEST_SIZE):
            raise FormatError(f"gpu report: block {index}: wanted a digest of {DIGEST_SIZE} bytes in DMTF's form")
        value = reader.take(value_size, "block")
        blocks[index] = digest(value, algorithm="sha384") if raw else value
    reader.end("gpu report's blocks")
    return blocks


def _fields(data: bytes) -> dict[int, bytes]:
    reader, fields = _Reader(data), dict[int, bytes]()
    while reader.at < len(data):
        kind, size = _FIELD.unpack(reader.take(_FIELD.size, "vendor's data"))
        if kind in fields:
            raise FormatError(f"gpu report: field {kind} of the vendor's data twice")
        fields[kind] = reader.take(size, f"field {kind} of the vendor's data")
    return fields


def _check(name: str, version: int, code: int, wanted: int) -> None:
    if (version, code) != (_VERSION, wanted):
        raise FormatError(
            f"gpu report: {name}: got version and code {version:#04x} {code:#04x}, wanted {_VERSION:#04x} {wanted:#04x}"
        )


class _Reader:
    """Takes parts off the front of `raw`; `at` is where the next begins."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self.at = 0

    def take(self, size: int, name: str) -> bytes:
        part = self._raw[self.at : self.at + size]
        if len(part) != size:
            raise FormatError(f"gpu report: {len(part)} bytes of {name}, wanted {size}")
        self.at += size
        return part

    def end(self, name: str) -> None:
        if self.at != len(self._raw):
            raise FormatError(f"{name}: {len(self._raw) - self.at} bytes after it, wanted none")
