"""Parse evidence of Azure's confidential VMs: a vTPM's quote, and the hardware's report that vouches for the vTPM.

The paravisor (HCL) runs in the VM, isolated from its guest, and gives it a vTPM. At boot it makes the vTPM's
attestation key, and asks the hardware for a report over the digest of its runtime claims, which name that key. Both
lie together in the vTPM at NV index 0x01400001, the "HCL report". SNP's report in it is signed; TDX's is not, so a TD
quote comes along.

Sources: "Guest attestation for confidential VMs: design" in Microsoft's Azure documentation (the report, its runtime
claims); the `openhcl_attestation_protocol` crate of microsoft/openvmm, module `igvm_attest` (layout). Integers are
little-endian.
"""

from __future__ import annotations

import base64
import binascii
import json
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from strongroom.attest.binding import JSON, canonical, parse_canonical
from strongroom.attest.evidence import MAX_QUOTE, Evidence
from strongroom.attest.parse.endorsements import Endorsements
from strongroom.attest.parse.tpm import parse_quote
from strongroom.crypto.chains import VendorCertificate, VendorKey, pem_certificates
from strongroom.crypto.tpm import rsa_key
from strongroom.errors import FormatError, printable

_MAX_HCL_REPORT = 16 * 1024
_MAX_TD_QUOTE = 32 * 1024

# Header, not signed: magic, version, size of all, request type (2: about the attestation key), status, reserved.
_HEADER = struct.Struct("<4sIIII12s")
_MAGIC = b"HCLA"
_HEADER_VERSIONS = (1, 2)
_ABOUT_AK = 2
# The hardware's report: as long as SNP's, the longest; a TDREPORT has zero bytes after it.
_REPORT = 1184
_TD_REPORT = 1024
# What follows, not signed: size of this and the claims, version, report type, digest, size of the claims. Version 2
# has four more bytes.
_REQUEST = struct.Struct("<5I")
_REQUEST_SIZES = {1: _REQUEST.size, 2: _REQUEST.size + 4}
_REPORT_TYPES = {2: "snp", 4: "tdx"}
_DIGESTS = {1: "sha256", 2: "sha384", 3: "sha512"}

_AK = "HCLAkPub"


@dataclass(frozen=True)
class HclReport:
    """What the paravisor made at boot. Nothing here is authenticated yet.

    Attributes:
        hardware: ``snp`` or ``tdx``.
        report: SNP's report, 1184 bytes, or a TDREPORT, 1024 bytes, which only its own machine can check.
        runtime: the runtime claims' bytes, which `digest` is over: that is what the hardware's report data starts with.
        digest: ``sha256``, ``sha384`` or ``sha512``.
        key: the vTPM's attestation key.
        configuration: how the VM is set up, by name: such as ``secure-boot`` and ``vmUniqueId``.
        user_data: what the guest last asked to be put in, in hexadecimal digits; empty if there is no such field.
    """

    hardware: str
    report: bytes = field(repr=False)
    runtime: bytes = field(repr=False)
    digest: str
    key: VendorKey
    configuration: Mapping[str, str | int | bool]
    user_data: str


@dataclass(frozen=True)
class AzureEvidence:
    """What `Evidence.quote` of kinds `azure-snp` and `azure-tdx` holds.

    Attributes:
        hcl_report: as it lies in the vTPM.
        message: what the vTPM signed, a TPMS_ATTEST.
        signature: RSASSA-PKCS1-v1_5 with SHA-256, without a TPMT_SIGNATURE around it.
        pcrs: values of the quoted registers, of the bank of SHA-256, by index.
        td_quote: for `azure-tdx`, a DCAP quote; else empty.
    """

    hcl_report: bytes = field(repr=False)
    message: bytes = field(repr=False)
    signature: bytes = field(repr=False)
    pcrs: Mapping[int, bytes] = field(repr=False)
    td_quote: bytes = field(default=b"", repr=False)

    def to_bytes(self) -> bytes:
        """What `parse_azure` reads: canonical JSON, byte strings in base64, registers in hexadecimal digits."""
        wire: dict[str, JSON] = {
            "hcl_report": base64.b64encode(self.hcl_report).decode(),
            "message": base64.b64encode(self.message).decode(),
            "signature": base64.b64encode(self.signature).decode(),
            "pcrs": {str(index): value.hex() for index, value in self.pcrs.items()},
        }
        if self.td_quote:
            wire["td_quote"] = base64.b64encode(self.td_quote).decode()
        return canonical(wire, cap=MAX_QUOTE)


def parse_azure(tee: str, quote: bytes) -> AzureEvidence:
    """Read evidence of that form; `tee` is ``azure-snp`` or ``azure-tdx``.

    Raises:
        FormatError: it is not of it.
    """
    wire = parse_canonical(quote, cap=MAX_QUOTE)
    wanted = {"hcl_report", "message", "signature", "pcrs"} | ({"td_quote"} if tee == "azure-tdx" else set())
    if set(wire) != wanted:
        raise FormatError(
            f"{tee} evidence: got {printable(', '.join(wire)[:120]) or 'nothing'}, wanted {', '.join(sorted(wanted))}"
        )
    pcrs = wire["pcrs"]
    if not isinstance(pcrs, Mapping) or not 1 <= len(pcrs) <= 32:
        raise FormatError(f"{tee} evidence: pcrs: wanted an object of 1 to 32 registers")
    return AzureEvidence(
        hcl_report=_base64("hcl_report", wire["hcl_report"], _MAX_HCL_REPORT),
        message=_base64("message", wire["message"], 1024),
        signature=_base64("signature", wire["signature"], 1024),
        pcrs={_index(index): _pcr(index, value) for index, value in pcrs.items()},
        td_quote=_base64("td_quote", wire["td_quote"], _MAX_TD_QUOTE) if tee == "azure-tdx" else b"",
    )


def parse_hcl_report(raw: bytes) -> HclReport:
    """Parse an HCL report; zero bytes may follow it, up to the size of the NV index.

    Raises:
        FormatError: it is something else, is cut short, its parts do not add up, or its runtime claims name no RSA key.
    """
    if len(raw) > _MAX_HCL_REPORT:
        raise FormatError(f"HCL report: {len(raw)} bytes, wanted at most {_MAX_HCL_REPORT}")
    start = _HEADER.size + _REPORT
    if len(raw) < start + _REQUEST.size:
        raise FormatError(f"HCL report: {len(raw)} bytes, wanted at least {start + _REQUEST.size}")
    magic, version, whole, request_type, status, reserved = _HEADER.unpack_from(raw)
    size, request_version, report_type, digest, claims_size = _REQUEST.unpack_from(raw, start)
    for name, got, wanted in (
        ("magic", magic.hex(), (_MAGIC.hex(),)),
        ("version", version, _HEADER_VERSIONS),
        ("request type", request_type, (_ABOUT_AK,)),
        ("status", status, (0,)),
        ("reserved bytes", reserved.hex(), (bytes(12).hex(),)),
        ("request version", request_version, tuple(_REQUEST_SIZES)),
        ("report type", report_type, tuple(_REPORT_TYPES)),
        ("digest", digest, tuple(_DIGESTS)),
    ):
        if got not in wanted:
            raise FormatError(f"HCL report: got {name} {got}, wanted {' or '.join(map(str, wanted))}")
    claims_start = start + _REQUEST_SIZES[request_version]
    end = claims_start + claims_size
    if (size, whole) != (end - start, end) or end > len(raw) or any(raw[end:]):
        raise FormatError(
            f"HCL report: {whole} bytes in all, {size} after the hardware's report and {claims_size} of runtime claims "
            "do not add up, or something other than zero bytes follows"
        )
    hardware = _REPORT_TYPES[report_type]
    report = raw[_HEADER.size : start]
    if hardware == "tdx":
        if any(report[_TD_REPORT:]):
            raise FormatError("HCL report: bytes other than zero after the TDREPORT")
        report = report[:_TD_REPORT]
    runtime = raw[claims_start:end]
    key, configuration, user_data = _runtime_claims(runtime)
    return HclReport(hardware, report, runtime, _DIGESTS[digest], key, configuration, user_data)


def _runtime_claims(raw: bytes) -> tuple[VendorKey, dict[str, str | int | bool], str]:
    try:
        claims = json.loads(raw.decode(), object_pairs_hook=_once)
    except (ValueError, RecursionError):
        raise FormatError("runtime claims: not JSON") from None
    claims = claims if isinstance(claims, dict) else {}
    keys, configuration = claims.get("keys"), claims.get("vm-configuration", {})
    found = (
        [each for each in keys if isinstance(each, dict) and each.get("kid") == _AK] if isinstance(keys, list) else []
    )
    if len(found) != 1 or found[0].get("kty") != "RSA":
        raise FormatError(f"runtime claims: wanted one RSA key {_AK}")
    if not isinstance(configuration, dict):
        raise FormatError("runtime claims: vm-configuration: wanted an object")
    plain = {name: value for name, value in configuration.items() if isinstance(value, str | int | bool)}
    user_data = claims.get("user-data", "")
    modulus, exponent = (_unsigned(found[0].get(name)) for name in ("n", "e"))
    key = rsa_key(modulus, int.from_bytes(exponent, "big"))
    return key, plain, user_data.lower() if isinstance(user_data, str) else ""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a name is there twice")
    return dict(pairs)


def _unsigned(text: object) -> bytes:
    """A JWK's number (RFC 7518, section 2: Base64urlUInt)."""
    try:
        raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)) if isinstance(text, str) else b""
    except (binascii.Error, ValueError):
        raw = b""
    if not 1 <= len(raw) <= 1024:
        raise FormatError(f"runtime claims: {_AK}: wanted a modulus and an exponent in base64url")
    return raw


def from_coco(document: Mapping[str, Any]) -> Evidence:
    """Evidence as the Confidential Containers project's Azure attesters write it, versions 0 to 2, of SNP or TDX.

    Version 0 has lists of numbers and VCEK as PEM; versions 1 and 2 have hexadecimal digits and base64url. Nothing is
    verified.

    Raises:
        FormatError: the object is none of these.
    """
    version = document.get("version", 0)
    if type(version) is not int or version not in (0, 1, 2):
        raise FormatError(f"coco evidence: got version {printable(version)[:20]}, wanted 0, 1 or 2")
    tpm, report = document.get("tpm_quote", document.get("quote")), document.get("hcl_report", document.get("report"))
    if not isinstance(tpm, Mapping) or not isinstance(tpm.get("pcrs"), list):
        raise FormatError("coco evidence: wanted an object tpm_quote, with a list of pcrs")
    message = _foreign("message", tpm.get("message"), bytes.fromhex)
    values = [_foreign("pcrs", value, bytes.fromhex) for value in tpm["pcrs"][:33]]
    # It lists the bank of SHA-256, all registers in their order.
    selection = parse_quote(message).selection
    indices = selection.get("sha256", ())
    if set(selection) != {"sha256"} or len(indices) != len(values):
        raise FormatError(f"coco evidence: {len(values)} pcrs, wanted the {len(indices)} that are quoted")
    td_quote, vcek = document.get("td_quote"), document.get("vcek")
    if (td_quote is None) == (vcek is None):
        raise FormatError("coco evidence: wanted either td_quote or vcek")
    evidence = AzureEvidence(
        hcl_report=_foreign("hcl_report", report, _any_base64),
        message=message,
        signature=_foreign("signature", tpm.get("signature"), bytes.fromhex),
        pcrs=dict(zip(indices, values, strict=True)),
        td_quote=b"" if td_quote is None else _foreign("td_quote", td_quote, _any_base64),
    )
    tee = "azure-snp" if td_quote is None else "azure-tdx"
    return Evidence(tee, evidence.to_bytes(), b"" if vcek is None else _vcek(vcek).to_bytes())


def _vcek(vcek: object) -> Endorsements:
    if isinstance(vcek, str) and vcek.lstrip().startswith("-----BEGIN") and vcek.isascii():
        return Endorsements(pem_certificates(vcek.encode()))
    return Endorsements((VendorCertificate(_foreign("vcek", vcek, _any_base64)),))


def _foreign(name: str, value: object, decode: Callable[[str], bytes]) -> bytes:
    """A list of numbers, or text that `decode` reads."""
    try:
        if isinstance(value, str):
            return decode(value)
        if isinstance(value, Sequence) and all(type(each) is int for each in value):
            return bytes(value)
    except ValueError:  # binascii.Error is one
        pass
    raise FormatError(f"coco evidence: {name}: wanted a list of bytes, or their text")


def _any_base64(text: str) -> bytes:
    bare = text.rstrip("=")
    alphabet = b"+/" if "+" in bare or "/" in bare else b"-_"
    return base64.b64decode(bare + "=" * (-len(bare) % 4), altchars=alphabet, validate=True)


def _base64(name: str, text: JSON, cap: int) -> bytes:
    try:
        raw = base64.b64decode(text, validate=True) if isinstance(text, str) and len(text) <= cap // 3 * 4 + 4 else b""
    except (binascii.Error, ValueError):
        raw = b""
    if not 1 <= len(raw) <= cap or base64.b64encode(raw).decode() != text:
        raise FormatError(f"azure evidence: {name}: wanted 1 to {cap} bytes in base64")
    return raw


def _index(text: str) -> int:
    if text not in map(str, range(32)):
        raise FormatError(f"azure evidence: pcrs: got index {text[:20]!r}, wanted 0 to 31")
    return int(text)


def _pcr(index: str, text: JSON) -> bytes:
    try:
        raw = bytes.fromhex(text) if isinstance(text, str) else b""
    except ValueError:
        raw = b""
    if len(raw) != 32 or raw.hex() != text:
        raise FormatError(f"azure evidence: pcr {index}: wanted 64 lower-case hexadecimal digits")
    return raw
