"""Files of evidence, in the forms that other tools write: recognised by their content, never by their name.

Nothing here is trusted, and nothing is verified. A form is one of

- this project's own wire form (docs/spec/evidence.md);
- what the TEE signed, as bytes, or as hexadecimal or base64 text: a DCAP quote, an SNP report (with the certificate
  table of an extended report after it, if there is one), a Nitro document, an NVIDIA request and report;
- a TPM's quote, with its signature, its registers and its key in files of their own (`files/tpm.py`);
- the JSON evidence of the Confidential Containers project (Trustee's `deps/verifier`), and of NVIDIA's nvtrust.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from strongroom.attest.evidence import Evidence
from strongroom.attest.files import tpm
from strongroom.attest.files.endorsements import certificates_by_name, certificates_in_table, read_endorsements
from strongroom.attest.files.sev import report_of_fields
from strongroom.attest.parse import azure
from strongroom.attest.parse.certificate_table import parse_certificate_table
from strongroom.attest.parse.dcap import INTEL_QE_VENDOR, unpadded
from strongroom.attest.parse.nvidia import from_nvtrust
from strongroom.errors import FormatError, UsageError, printable

MAX_FILE = 4 * 1024 * 1024

_HEX = re.compile(rb"(?:0[xX])?((?:[0-9a-fA-F]{2})+)")
_BASE64 = re.compile(rb"[A-Za-z0-9+/_-]+={0,2}")
_TABLE = re.compile(rb"\[[A-Za-z_.]{1,40}\]\s")  # TOML starts like a JSON list
_SNP_REPORT = 1184
# An SNP report: version u32, and at 0x34 the signature's algorithm, 1: ECDSA P-384 with SHA-384.
_SNP_ALGORITHM = slice(0x34, 0x38)
_SGX, _TDX = bytes(4), b"\x81\0\0\0"
# COSE_Sign1, tagged or not, whose protected header is a map of one entry (RFC 9052, section 4.2).
_COSE_STARTS = (b"\xd2\x84\x44\xa1", b"\x84\x44\xa1")
# SPDM 1.1, GET_MEASUREMENTS (DMTF DSP0274, table 40): what NVIDIA's devices are asked with.
_SPDM_REQUEST = b"\x11\xe0"
_HCL = b"HCLA"
_DEVICE_LISTS = ("evidences", "evidence_list", "device_evidence_list")
_TPM_FILES, _NVTRUST = "TPM quote, as tpm2-tools write it", "NVIDIA's JSON"
_URL_SAFE = str.maketrans("-_", "+/")
_KNOWN = (
    "known are: this project's JSON, DCAP quotes of SGX and TDX, SNP reports, Nitro documents, NVIDIA reports, TPM "
    "quotes, and the JSON evidence of Confidential Containers and nvtrust"
)


@dataclass(frozen=True)
class Found:
    """Evidence, and the words for the form that it was found in."""

    evidence: Evidence
    form: str


@dataclass(frozen=True)
class TpmFiles:
    """What belongs to a TPM's quote, each the bytes of a file; empty for evidence of other forms."""

    signature: bytes = b""
    key: bytes = b""
    registers: bytes = b""
    event_log: bytes = b""


def read_evidence(
    raw: bytes, endorsements: Sequence[bytes] = (), *, tpm_files: TpmFiles = TpmFiles(), device: int | None = None
) -> Found:
    """The evidence in the bytes of a file.

    Args:
        raw: the file.
        endorsements: files of endorsements, which take the place of those that the evidence came with.
        tpm_files: for a TPM's quote as tpm2-tools write it.
        device: which of several GPUs in one file, counted from 0.

    Raises:
        FormatError: the file is of no form that is known, or not quite of the form that it looks like.
        UsageError: there is no such device, or evidence of that form has its own of what `tpm_files` has.
    """
    if len(raw) > MAX_FILE:
        raise FormatError(f"evidence: {len(raw)} bytes, wanted at most {MAX_FILE}")
    if not raw.strip():
        raise FormatError("evidence: the file is empty")
    found = _found(raw, tpm_files, device)
    _check_used(found, tpm_files, device)
    if not endorsements:
        return found
    evidence = found.evidence
    given = read_endorsements(evidence.tee, endorsements)
    return Found(replace(evidence, endorsements=given), found.form)


def _check_used(found: Found, files: TpmFiles, device: int | None) -> None:
    """Nothing that was named is left aside silently."""
    tee = found.evidence.tee
    if device is not None and tee != "nvidia":
        raise UsageError(f"device: got {device}, but the evidence is of {tee}, which has none to choose")
    if device not in (None, 0) and found.form != _NVTRUST:
        raise UsageError(f"device: got {device}, but the file is of one GPU, device 0")
    if found.form == _TPM_FILES:
        return
    # A key is of use for any TPM's evidence: the caller trusts it.
    names = ["signature", "registers", "event_log", *([] if tee == "tpm" else ["key"])]
    given = [name.replace("_", " ") for name in names if getattr(files, name)]
    if given:
        raise UsageError(
            f"{', '.join(given)}: got a file, but the evidence is {found.form}"
            + (", which has its own" if tee == "tpm" else ", and not a TPM's"),
            hint="--signature, --pcrs, --event-log and --tpm-key belong to a TPM's quote as tpm2-tools write it",
        )


def _found(raw: bytes, tpm_files: TpmFiles, device: int | None) -> Found:
    if raw.lstrip()[:1] in (b"{", b"["):
        return _from_json(raw, device)
    if (raw.isascii() and b"-----BEGIN" in raw) or raw[:2] == b"\x30\x82":
        raise FormatError(
            "evidence: got PEM or DER", hint="certificates are endorsements: give them with --endorsements"
        )
    binary, encoding = _binary(raw)
    if tpm.without_length(binary).startswith(tpm.MAGIC):
        return _from_tpm(binary, tpm_files)
    found = _from_binary(binary)
    if found is None:
        raise _unknown(f"{len(binary)} bytes{encoding}, which start with {binary[:16].hex() or 'nothing'}")
    return Found(found.evidence, f"{found.form}{encoding}")


def _from_tpm(message: bytes, files: TpmFiles) -> Found:
    missing = [name for name in ("signature", "key", "registers") if not getattr(files, name)]
    if missing:
        raise FormatError(
            f"evidence: a TPM's quote without {', '.join(missing)}",
            hint="give --signature, --tpm-key and --pcrs beside it, as tpm2_quote and tpm2_readpublic write them",
        )
    key = tpm.read_key(files.key)
    evidence = tpm.quote_of_files(message, files.signature, key, files.registers, event_log=files.event_log)
    return Found(evidence, _TPM_FILES)


def _binary(raw: bytes) -> tuple[bytes, str]:
    """What the bytes stand for, and in which text they do."""
    text = b"".join(raw.split()) if raw.isascii() else b""
    if match := _HEX.fullmatch(text):
        return bytes.fromhex(match[1].decode()), " in hexadecimal digits"
    if _BASE64.fullmatch(text):
        return _from_base64(text.decode()), " in base64"
    return raw, ""


def _from_binary(raw: bytes) -> Found | None:
    """A DCAP quote, an SNP report, a Nitro document or an NVIDIA exchange; None if it looks like none of them."""
    if raw.startswith(_HCL):
        raise FormatError(
            "evidence: an HCL report of Azure's alone", hint="give it with the vTPM's quote, in Trustee's JSON"
        )
    version = int.from_bytes(raw[:2], "little")
    if raw[12:28] == INTEL_QE_VENDOR and raw[4:8] in (_SGX, _TDX):
        tee = "tdx" if raw[4:8] == _TDX else "sgx"
        return Found(Evidence(tee, unpadded(raw), b""), f"DCAP quote, version {version}")
    if raw.startswith(_COSE_STARTS):
        return Found(Evidence("nitro", raw, b""), "Nitro document")
    if raw.startswith(_SPDM_REQUEST):
        return Found(Evidence("nvidia", raw, b""), "NVIDIA request and report")
    if len(raw) >= _SNP_REPORT and raw[_SNP_ALGORITHM] == b"\1\0\0\0" and 0 < version < 16 and not any(raw[2:4]):
        table = raw[_SNP_REPORT:]
        form = f"SNP report, version {version}" + (", with a certificate table" if table else "")
        try:
            endorsements = parse_certificate_table(table)
        except FormatError as error:
            raise FormatError(
                f"evidence: an SNP report of {_SNP_REPORT} bytes, and {len(table)} more: {error.message}",
                hint="nothing may follow a report but the certificate table of an extended one",
            ) from None
        return Found(Evidence("snp", raw[:_SNP_REPORT], endorsements.to_bytes()), form)
    return None


def _from_json(raw: bytes, device: int | None) -> Found:
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError):
        if _TABLE.match(raw.lstrip()):
            raise FormatError("evidence: got TOML", hint="a policy goes to --policy, beside evidence") from None
        raise FormatError("evidence: looks like JSON, and does not parse") from None
    devices = _devices(document)
    if devices is not None:
        return _one_device(devices, device)
    if not isinstance(document, dict):
        raise _unknown("a JSON list")
    keys = set(document)
    if {"primary_evidence", "additional_evidence"} <= keys:
        return _composite(document)
    if {"tee", "quote", "endorsements"} <= keys:
        return Found(Evidence.from_wire(document), "this project's JSON")
    if keys & {"hcl_report", "report"} and keys & {"tpm_quote", "quote"}:
        return Found(azure.from_coco(document), "Confidential Containers' JSON, of an Azure vTPM")
    if {"tpm_quote", "ak_public"} <= keys:
        return Found(tpm.from_coco(document), "Confidential Containers' JSON, of a TPM")
    if "attestation_report" in keys:
        return _snp_in_json(document)
    if isinstance(document.get("quote"), str):
        return _quote_in_json(document["quote"])
    if keys & {"tcb_info", "certificates", "vcekCert"}:
        raise FormatError("evidence: these are endorsements", hint="give them with --endorsements, beside evidence")
    raise _unknown(f"a JSON object of {printable(', '.join(sorted(document))[:120]) or 'nothing'}")


def _quote_in_json(text: str) -> Found:
    """Trustee's TDX and SGX evidence, and dstack's: the quote in base64 or hexadecimal digits, beside event logs."""
    raw, encoding = _binary(text.encode("utf-8", "replace"))
    found = _from_binary(raw)
    if found is None:
        raise _unknown("a JSON object whose quote is of no form that is known here")
    return Found(found.evidence, f"{found.form}{encoding} in JSON")


def _snp_in_json(document: Mapping[str, Any]) -> Found:
    """Trustee's SNP evidence: the report as an object of its fields, or as text, and a chain if there is one."""
    report, chain = document["attestation_report"], document.get("cert_chain")
    if isinstance(report, str):
        raw, _ = _binary(report.encode("utf-8", "replace"))
    else:
        raw = report_of_fields(report)
    if isinstance(chain, dict):
        endorsements = certificates_by_name(chain).to_bytes()
    elif chain is None or isinstance(chain, list):
        endorsements = certificates_in_table(chain).to_bytes() if chain else b""
    else:
        raise FormatError("evidence: cert_chain: wanted a list of cert_type and data, or an object of certificates")
    return Found(Evidence("snp", raw, endorsements), "Confidential Containers' JSON, of SNP")


def _composite(document: Mapping[str, Any]) -> Found:
    """Trustee's evidence of an enclave with that of its GPUs, which is JSON in a string, by kind."""
    primary, more = document["primary_evidence"], document["additional_evidence"]
    try:
        others = json.loads(more) if more else {}
    except (ValueError, TypeError, RecursionError):
        raise FormatError("evidence: additional_evidence: wanted JSON in a string") from None
    if not isinstance(primary, dict) or "primary_evidence" in primary or not isinstance(others, dict):
        raise FormatError("evidence: primary_evidence, additional_evidence: wanted an object each")
    if set(others) - {"nvidia"}:
        raise FormatError(
            f"evidence: additional_evidence: got {printable(', '.join(others)[:80])}, wanted nvidia alone"
        )
    found = _from_json(json.dumps(primary).encode(), None)
    devices = (_devices(others["nvidia"]) or [None]) if others else []
    return Found(
        replace(found.evidence, devices=tuple(each for gpu in devices for each in from_nvtrust(gpu))),
        f"{found.form}, with that of {len(devices)} GPUs",
    )


def _devices(document: object) -> list[Any] | None:
    """The objects of GPUs in NVIDIA's and Trustee's JSON; None if it is something else."""
    if isinstance(document, dict):
        listed = next((document[name] for name in _DEVICE_LISTS if isinstance(document.get(name), list)), [document])
    else:
        listed = document if isinstance(document, list) else []
    one = bool(listed) and all(isinstance(each, dict) and {"evidence", "certificate"} <= set(each) for each in listed)
    return listed if one else None


def _one_device(devices: list[Any], index: int | None) -> Found:
    if index is None and len(devices) > 1:
        raise FormatError(f"evidence: of {len(devices)} GPUs", hint="--device N names one of them, counted from 0")
    if not 0 <= (index or 0) < len(devices):
        raise UsageError(f"device: got {index}, wanted 0 to {len(devices) - 1}")
    (evidence,) = from_nvtrust(devices[index or 0])
    return Found(evidence, _NVTRUST)


def _from_base64(text: str) -> bytes:
    padded = text.rstrip("=") + "=" * (-len(text.rstrip("=")) % 4)
    try:
        return base64.b64decode(padded.translate(_URL_SAFE), validate=True)
    except binascii.Error:
        raise FormatError("evidence: looks like base64, and does not decode") from None


def _unknown(got: str) -> FormatError:
    return FormatError(f"evidence: got {got}, which is of no form that is known here", hint=_KNOWN)
