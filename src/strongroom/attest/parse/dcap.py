"""Parse Intel's quotes: bytes become typed values, and nothing is trusted.

Invariants:

- Lengths are capped before anything is decoded.
- A quote parses only if every length in it adds up to its own: nothing may follow, or hide between, its parts.
- What is parsed here says what the enclave claims; `verify` says whether the vendor's hardware signed it.

The structures are those of Intel's "Intel TDX DCAP: Quote Generation Library and Quote Verification Library", appendix
A.3 (quote formats version 4 and 5). All integers are little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

from strongroom.attest.claims import REGISTERS
from strongroom.errors import FormatError

MAX_QUOTE = 32 * 1024

# Quote header: version u16, attestation key type u16, TEE type u32, 4 reserved bytes, QE vendor id[16], user data[20].
_HEADER = struct.Struct("<HHI4x16s20s")
ECDSA_P256 = 2
TEE_TDX = 0x81
# The id that Intel's quoting enclaves carry, the same in every quote.
INTEL_QE_VENDOR = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")

# TD report, 1.0: TEE_TCB_SVN, MRSEAM, MRSIGNERSEAM, SEAMATTRIBUTES, TDATTRIBUTES, XFAM, MRTD, MRCONFIGID, MROWNER,
# MROWNERCONFIG, RTMR0..3, REPORTDATA. 1.5 adds TEE_TCB_SVN_2 and MRSERVICETD.
_TD10 = struct.Struct("<16s48s48s8s8s8s48s48s48s48s48s48s48s48s64s")
_TD15_MORE = struct.Struct("<16s48s")
# Version 5 names its body: type u16, size u32. Types 2 and 3 are TD reports 1.0 and 1.5.
_BODY = struct.Struct("<HI")
_BODIES = {2: _TD10.size, 3: _TD10.size + _TD15_MORE.size}

# Signature data: ECDSA signature[64], attestation key[64], certification data of type 6, which holds the quoting
# enclave's report[384], its signature[64], authentication data (u16 size) and certification data of type 5: PEM chain.
_SIGNATURE_AND_KEY = 64 + 64
_QE_REPORT_AND_SIGNATURE = 384 + 64
_CERTIFICATION = struct.Struct("<HI")
_QE_REPORT_CERTIFICATION = 6
_PCK_CHAIN = 5


@dataclass(frozen=True)
class TdxReport:
    """The body of a TDX quote, as the trust domain's report holds it. Nothing here is authenticated yet.

    `service_td` is MRSERVICETD of a 1.5 body, None in a 1.0 body. `registers` maps `REGISTERS` to 48 bytes each.
    """

    version: int
    tee_tcb_svn: bytes
    seam: bytes
    attributes: bytes
    xfam: bytes
    registers: Mapping[str, bytes]
    report_data: bytes
    service_td: bytes | None

    @property
    def debug(self) -> bool:
        """Whether a bit of TDATTRIBUTES.TUD ("TD under debug", bits 0 to 7) is set: any of them voids all trust."""
        return self.attributes[0] != 0


def parse_tdx(quote: bytes) -> TdxReport:
    """Parse a TDX quote of version 4 or 5 with a TD report 1.0 or 1.5.

    Raises:
        FormatError: it is something else, is cut short, or has a byte more than its parts.
    """
    _cap("quote", len(quote), MAX_QUOTE)
    version, body_type, start = _header(quote)
    body = _part(quote, start, _BODIES[body_type], "report")
    fields = _TD10.unpack_from(body)
    service_td = _TD15_MORE.unpack_from(body, _TD10.size)[1] if body_type == 3 else None
    signature = _sized(quote, start + len(body), "signature data")
    end = start + len(body) + 4 + len(signature)
    if end != len(quote):
        raise FormatError(f"quote: {len(quote) - end} bytes after the signature data, wanted none")
    _check_signature_data(signature)
    return TdxReport(
        version=version,
        tee_tcb_svn=fields[0],
        seam=fields[1],
        attributes=fields[4],
        xfam=fields[5],
        registers=dict(zip(REGISTERS, (fields[6], *fields[10:14]), strict=True)),
        report_data=fields[14],
        service_td=service_td,
    )


def unpadded(quote: bytes) -> bytes:
    """A TDX quote without the zero bytes that some platforms hand out after it.

    Attesters call this once; verifiers never do, so that a quote has one length only.

    Raises:
        FormatError: the quote is cut short, or something other than zero bytes follows it.
    """
    _, body_type, start = _header(quote)
    end = start + _BODIES[body_type]
    end += 4 + len(_sized(quote, end, "signature data"))
    if any(quote[end:]):
        raise FormatError("quote: bytes other than zero after the signature data")
    return quote[:end]


def _header(quote: bytes) -> tuple[int, int, int]:
    """Version, body type and where the body starts."""
    version, key_type, tee_type, vendor, _ = _HEADER.unpack(_part(quote, 0, _HEADER.size, "header"))
    for name, got, wanted in (
        ("version", version, (4, 5)),
        ("attestation key type", key_type, (ECDSA_P256,)),
        ("TEE type", tee_type, (TEE_TDX,)),
        ("QE vendor", vendor.hex(), (INTEL_QE_VENDOR.hex(),)),
    ):
        if got not in wanted:
            raise FormatError(f"quote: got {name} {got}, wanted {' or '.join(map(str, wanted))}")
    if version == 4:
        return version, 2, _HEADER.size
    body_type, size = _BODY.unpack(_part(quote, _HEADER.size, _BODY.size, "body header"))
    if _BODIES.get(body_type) != size:
        raise FormatError(f"quote: got body type {body_type} of {size} bytes, wanted {_BODIES}")
    return version, body_type, _HEADER.size + _BODY.size


def _check_signature_data(data: bytes) -> None:
    inner = _certification(data, _SIGNATURE_AND_KEY, _QE_REPORT_CERTIFICATION)
    authentication = _part(inner, _QE_REPORT_AND_SIGNATURE, 2, "QE authentication data")
    end = _QE_REPORT_AND_SIGNATURE + 2 + int.from_bytes(authentication, "little")
    _certification(inner, end, _PCK_CHAIN)


def _certification(data: bytes, start: int, wanted: int) -> bytes:
    """Certification data of the `wanted` type that starts there and ends where `data` does."""
    kind, size = _CERTIFICATION.unpack(_part(data, start, _CERTIFICATION.size, "certification data"))
    rest = len(data) - start - _CERTIFICATION.size
    if kind != wanted or size != rest:
        raise FormatError(f"quote: got certification data {kind} of {size} bytes, wanted {wanted} of {rest}")
    return data[start + _CERTIFICATION.size :]


def _sized(data: bytes, start: int, name: str) -> bytes:
    size = int.from_bytes(_part(data, start, 4, name), "little")
    return _part(data, start + 4, size, name)


def _part(data: bytes, start: int, size: int, name: str) -> bytes:
    part = data[start : start + size]
    if len(part) != size:
        raise FormatError(f"quote: {len(part)} bytes of {name}, wanted {size}")
    return part


def _cap(name: str, size: int, cap: int) -> None:
    if size > cap:
        raise FormatError(f"{name}: {size} bytes, wanted at most {cap}")
