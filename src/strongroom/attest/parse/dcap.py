"""Parse Intel's quotes: bytes become typed values, and nothing is trusted.

Invariants:

- Lengths are capped before anything is decoded.
- A quote parses only if every length in it adds up to its own: nothing may hide between its parts. Zero bytes alone may
  follow it, since some platforms hand out quotes of one size; they are no part of it.
- Its certificates are PEM in one spelling, so that no byte of them can change without a refusal (`_certificates`).
- What is parsed here says what the enclave claims; `verify` says whether the vendor's hardware signed it.

The structures are those of "Intel SGX ECDSA QuoteLibReference: DCAP API", appendix A (quotes, version 3), and "Intel
TDX DCAP: Quote Generation Library and Quote Verification Library", appendix A.3 (versions 4 and 5). All integers are
little-endian.
"""

from __future__ import annotations

import base64
import binascii
import re
import struct
from dataclasses import dataclass
from functools import lru_cache

from strongroom.attest.parse.dcap_body import (
    SGX_REPORT_SIZE,
    TD10_SIZE,
    TD15_SIZE,
    SgxReport,
    TdReport,
    parse_sgx_report,
    parse_td_report,
    report_data_at,
)
from strongroom.crypto.chains import MAX_CHAIN, VendorCertificate
from strongroom.errors import FormatError

MAX_QUOTE = 32 * 1024

# Quote header: version u16, attestation key type u16, TEE type u32, QE SVN u16, PCE SVN u16, QE vendor id[16], user
# data[20].
_HEADER = struct.Struct("<HHI2H16s20s")
ECDSA_P256 = 2
TEE_SGX, TEE_TDX = 0, 0x81
# The id that Intel's quoting enclaves carry, the same in every quote.
INTEL_QE_VENDOR = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")

# Version 5 names its body: type u16, size u32. Of type 1 is an SGX report, of 2 and 3 TD reports 1.0 and 1.5.
_BODY = struct.Struct("<HI")
_BODIES = {1: SGX_REPORT_SIZE, 2: TD10_SIZE, 3: TD15_SIZE}
_BODY_OF = {TEE_SGX: 1, TEE_TDX: 2}
_BODIES_OF = {TEE_SGX: (1,), TEE_TDX: (2, 3)}

# Signature data: ECDSA signature[64], attestation key[64]; from version 4 on certification data of type 6, which holds
# what version 3 has right here: the quoting enclave's report[384], its signature[64], authentication data (u16 size)
# and certification data of type 5, a chain in PEM.
_CERTIFICATION = struct.Struct("<HI")
_QE_REPORT_CERTIFICATION = 6
_PCK_CHAIN = 5
_POINT = 64

_PEM = re.compile(
    rb"-----BEGIN CERTIFICATE-----(\r?\n)((?:[A-Za-z0-9+/]{64}\1)*[A-Za-z0-9+/=]{1,64})\1-----END CERTIFICATE-----\1*"
)


@dataclass(frozen=True)
class Quote:
    """A quote's parts, none of them authenticated.

    Attributes:
        version: 3, 4 or 5.
        report: what it says of the enclave.
        body: the bytes of `report`.
        signed: header and body, over which `signature` (r || s) is by `attestation_key` (x || y).
        qe_report: the quoting enclave's own report, which vouches for that key; `qe_signed` are its bytes, over which
            `qe_signature` is by the platform's certificate.
        qe_authentication: what `qe_report` vouches for besides.
        certificates: the platform's certificate first.
        raw: the quote without what follows it.
    """

    version: int
    report: SgxReport | TdReport
    body: bytes
    signed: bytes
    signature: bytes
    attestation_key: bytes
    qe_report: SgxReport
    qe_signed: bytes
    qe_signature: bytes
    qe_authentication: bytes
    certificates: tuple[VendorCertificate, ...]
    raw: bytes

    def without_report_data(self) -> tuple[bytes, bytes, bytes]:
        """The three parts of `raw` around its report data and its signature."""
        start = len(self.signed) - len(self.body) + report_data_at(self.report)
        signature = len(self.signed) + 4
        return self.raw[:start], self.raw[start + 64 : signature], self.raw[signature + _POINT :]


def parse_quote(quote: bytes) -> Quote:
    """Parse a quote of an SGX enclave (version 3, 4 or 5) or a trust domain (version 4 or 5).

    Raises:
        FormatError: it is something else, is cut short, or something other than zero bytes follows it.
    """
    if len(quote) > MAX_QUOTE:
        raise FormatError(f"quote: {len(quote)} bytes, wanted at most {MAX_QUOTE}")
    version, body_type, start = _header(quote)
    end = start + _BODIES[body_type]
    body = _part(quote, start, _BODIES[body_type], "report")
    data = _sized(quote, end, "signature data")
    raw = unpadded(quote)
    inner = data[2 * _POINT :]
    if version > 3:
        inner = _certification(data, 2 * _POINT, _QE_REPORT_CERTIFICATION)
    qe_report = _part(inner, 0, SGX_REPORT_SIZE, "QE report")
    signature_end = SGX_REPORT_SIZE + _POINT
    size = int.from_bytes(_part(inner, signature_end, 2, "QE authentication data"), "little")
    authentication = _part(inner, signature_end + 2, size, "QE authentication data")
    return Quote(
        version=version,
        report=parse_sgx_report(body) if body_type == 1 else parse_td_report(body),
        body=body,
        signed=quote[:end],
        signature=_part(data, 0, _POINT, "signature"),
        attestation_key=_part(data, _POINT, _POINT, "attestation key"),
        qe_report=parse_sgx_report(qe_report),
        qe_signed=qe_report,
        qe_signature=_part(inner, SGX_REPORT_SIZE, _POINT, "QE report's signature"),
        qe_authentication=authentication,
        certificates=_certificates(_certification(inner, signature_end + 2 + size, _PCK_CHAIN)),
        raw=raw,
    )


def unpadded(quote: bytes) -> bytes:
    """A quote without the zero bytes that some platforms hand out after it.

    Raises:
        FormatError: the quote is cut short, or something other than zero bytes follows it.
    """
    _, body_type, start = _header(quote)
    end = start + _BODIES[body_type]
    end += 4 + len(_sized(quote, end, "signature data"))
    if any(quote[end:]):
        raise FormatError(f"quote: {len(quote) - end} bytes after the signature data, wanted zero bytes or none")
    return quote[:end]


def _header(quote: bytes) -> tuple[int, int, int]:
    """Version, body type and where the body starts."""
    version, key_type, tee_type, _, _, vendor, _ = _HEADER.unpack(_part(quote, 0, _HEADER.size, "header"))
    for name, got, wanted in (
        ("version", version, (3, 4, 5)),
        ("attestation key type", key_type, (ECDSA_P256,)),
        ("TEE type", tee_type, (TEE_SGX,) if version == 3 else (TEE_SGX, TEE_TDX)),
        ("QE vendor", vendor.hex(), (INTEL_QE_VENDOR.hex(),)),
    ):
        if got not in wanted:
            raise FormatError(f"quote: got {name} {got}, wanted {' or '.join(map(str, wanted))}")
    if version < 5:
        return version, _BODY_OF[tee_type], _HEADER.size
    body_type, size = _BODY.unpack(_part(quote, _HEADER.size, _BODY.size, "body header"))
    if body_type not in _BODIES_OF[tee_type] or _BODIES[body_type] != size:
        wanted_bodies = " or ".join(f"{each} of {_BODIES[each]}" for each in _BODIES_OF[tee_type])
        raise FormatError(f"quote: got body type {body_type} of {size} bytes, wanted {wanted_bodies}")
    return version, body_type, _HEADER.size + _BODY.size


def _certification(data: bytes, start: int, wanted: int) -> bytes:
    """Certification data of the `wanted` type that starts there and ends where `data` does."""
    kind, size = _CERTIFICATION.unpack(_part(data, start, _CERTIFICATION.size, "certification data"))
    rest = len(data) - start - _CERTIFICATION.size
    if kind != wanted or size != rest:
        raise FormatError(
            f"quote: got certification data {kind} of {size} bytes, wanted {wanted} of {rest}",
            hint="let the platform's quote provider put its certificate chain into quotes (PCK caching)"
            if kind in range(1, 5)
            else None,
        )
    return data[start + _CERTIFICATION.size :]


@lru_cache(maxsize=64)  # a platform shows the same ones in every quote
def _certificates(pem: bytes) -> tuple[VendorCertificate, ...]:
    """The chain in a quote: PEM (RFC 7468) with lines of 64 characters, LF or CR LF throughout, in canonical base64.

    Lines may be empty between certificates and after the last, and zero bytes may follow: platforms differ there.
    """
    text, place = pem.rstrip(b"\0"), 0
    found: list[VendorCertificate] = []
    newlines: set[bytes] = set()
    while place < len(text):
        match = _PEM.match(text, place)
        if match is None or len(found) > MAX_CHAIN:
            raise FormatError("quote: wanted certificates in PEM, in lines of 64 characters and nothing between them")
        body = b"".join(match[2].split(match[1]))
        try:
            der = base64.b64decode(body, validate=True)
        except binascii.Error:
            der = b""
        if base64.b64encode(der) != body:
            raise FormatError("quote: a certificate is not base64 in its canonical form")
        found.append(_certificate(der))
        newlines.add(match[1])
        place = match.end()
    if not found or len(newlines) > 1:
        raise FormatError(f"quote: {len(found)} certificates with {len(newlines)} kinds of line ends, wanted one kind")
    return tuple(found)


_certificate = lru_cache(maxsize=64)(VendorCertificate)


def _sized(data: bytes, start: int, name: str) -> bytes:
    size = int.from_bytes(_part(data, start, 4, name), "little")
    return _part(data, start + 4, size, name)


def _part(data: bytes, start: int, size: int, name: str) -> bytes:
    part = data[start : start + size]
    if len(part) != size:
        raise FormatError(f"quote: cut off: {len(part)} bytes of {name}, wanted {size}")
    return part
