"""A DCAP quote of SGX or TDX in words, the simulated vendor's too, and Intel's collateral.

Sources: those of `parse/dcap.py`, `parse/dcap_body.py` and `parse/pck.py`; XFAM and XFRM: "Intel 64 and IA-32
Architectures Software Developer's Manual", volume 1, section 13.1 (the state components of XSAVE).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from strongroom.attest.claims import REGISTERS, registers_measurement
from strongroom.attest.evidence import Evidence
from strongroom.attest.explain.fields import MEASUREMENT, Field, Section, certificate_fields, common_name, flags
from strongroom.attest.parse.dcap import Quote, parse_quote
from strongroom.attest.parse.dcap_body import SgxReport, TdReport
from strongroom.attest.parse.pck import parse_platform
from strongroom.crypto.chains import pem_certificates
from strongroom.errors import FormatError

_SGX_FLAGS = {
    0: "initialised",
    2: "64-bit",
    4: "may get the provisioning key",
    5: "may get the launch key",
    6: "CET",
    7: "KSS",
    10: "AEX notify",
}
_SGX_ALARMS = {1: "debug: a debugger may read its memory"}
_TD_FLAGS = {
    16: "ICSSD",
    27: "LASS",
    28: "SEPT_VE_DISABLE: no exceptions when the host takes pages away",
    30: "supervisor protection keys",
    31: "key locker",
    62: "TPA",
    63: "performance monitoring",
}
_TD_ALARMS = {
    0: "debug: the host may read its memory",
    4: "HGS+ profiling",
    5: "performance profiling",
    6: "PMT profiling",
    29: "migratable: a migration TD may move it",
}
_XFAM = {
    0: "x87",
    1: "SSE",
    2: "AVX",
    3: "MPX bounds",
    4: "MPX configuration",
    5: "AVX-512 masks",
    6: "AVX-512 upper halves",
    7: "AVX-512 upper registers",
    8: "processor trace",
    9: "PKRU",
    10: "PASID",
    11: "CET user",
    12: "CET supervisor",
    13: "HDC",
    14: "user interrupts",
    15: "last branch records",
    16: "HWP",
    17: "AMX configuration",
    18: "AMX tiles",
    19: "APX",
}
_REGISTERS = {
    "mrenclave": "what was loaded: the measurement",
    "mrsigner": "who signed it",
    "isvprodid": "the signer's number for the product",
    "miscselect": "what is saved on an exit",
    "cpusvn": "how new the processor's TCB is, opaque",
    "configid": "given at launch",
    "isvextprodid": "a longer product id of the signer",
    "isvfamilyid": "the signer's family of products",
    "mrseam": "the TDX module",
    "mrsignerseam": "who signed the TDX module; zero is Intel",
    "seamattributes": "of the TDX module",
    "mrtd": "what the trust domain was built from: its firmware",
    "mrconfigid": "given by the host at launch, not part of the measurement",
    "mrowner": "given by the host at launch, not part of the measurement",
    "mrownerconfig": "given by the host at launch, not part of the measurement",
    "rtmr0": "extended by the firmware: its configuration",
    "rtmr1": "extended by the firmware: boot loader and kernel",
    "rtmr2": "extended by the boot loader: command line, initial RAM disk",
    "rtmr3": "for the guest's own use",
    "mrservicetd": "trust domains that serve this one, such as for migration",
}
_SIGNED_BY = "signed by the attestation key, over the header and this"


def explain_dcap(evidence: Evidence) -> tuple[Section, ...]:
    """A quote, and the collateral that came with it."""
    return (*quote_sections(evidence.quote), collateral(evidence.endorsements))


def quote_sections(raw: bytes) -> tuple[Section, ...]:
    """A quote, also where it is part of other evidence.

    Raises:
        FormatError: it does not parse.
    """
    quote = parse_quote(raw)
    header = (
        Field("version", quote.version),
        Field("attestation key", "ECDSA on P-256"),
        Field("TEE type", raw[4:8], "an SGX enclave" if isinstance(quote.report, SgxReport) else "a TDX trust domain"),
        Field("QE vendor", raw[12:28], "Intel"),
        Field("user data", raw[28:48], "of the quoting enclave"),
    )
    report = _sgx(quote.report) if isinstance(quote.report, SgxReport) else _td(quote.report)
    title = "enclave" if isinstance(quote.report, SgxReport) else "trust domain"
    sections = [Section("header", header, _SIGNED_BY), Section(title, tuple(report), _SIGNED_BY)]
    return (*sections, *_signature(quote), _malleable(quote, raw))


def _sgx(report: SgxReport) -> Iterator[Field]:
    attributes = report.registers["attributes"]
    yield Field("attributes", attributes[:8], flags(_SGX_FLAGS, alarming=_SGX_ALARMS)(attributes[:8])[1])
    yield Field("XFRM", attributes[8:], flags(_XFAM)(attributes[8:])[1])
    for name, value in report.registers.items():
        if name not in ("attributes", "isvprodid"):
            yield Field(name.upper(), value, _REGISTERS[name])
    yield Field("ISVPRODID", report.isvprodid, _REGISTERS["isvprodid"])
    yield Field("ISVSVN", report.isvsvn, "the signer's security version")
    yield Field("CONFIGSVN", report.configsvn, "given at launch")
    yield Field("REPORTDATA", report.report_data, "what the enclave bound the quote to")


def _td(report: TdReport) -> Iterator[Field]:
    module, major, patch, *_ = report.tee_tcb_svn
    yield Field("TEE_TCB_SVN", report.tee_tcb_svn, f"TDX module {major}.{module}, SEAM patch {patch}")
    for name, value in report.registers.items():
        if name == "tdattributes":
            yield Field("TDATTRIBUTES", value, _td_attributes(value))
        elif name == "xfam":
            yield Field("XFAM", value, flags(_XFAM)(value)[1])
        else:
            yield Field(name.upper(), value, _REGISTERS[name])
    yield Field("REPORTDATA", report.report_data, "what the trust domain bound the quote to")
    measured = {name: report.registers[name] for name in REGISTERS}
    yield Field("measurement", registers_measurement(measured), f"{MEASUREMENT}: of MRTD and RTMR0 to 3")


def _td_attributes(value: bytes) -> str:
    _, words = flags(_TD_FLAGS, alarming=_TD_ALARMS)(value)
    disabled = int.from_bytes(value, "little") >> 28 & 1
    return words if disabled else f"{words}; SEPT_VE_DISABLE IS OFF: the host can inject exceptions"


def _signature(quote: Quote) -> Iterator[Section]:
    enclave = quote.qe_report
    attributes = enclave.registers["attributes"]
    yield Section(
        "signature",
        (
            Field("signature", quote.signature, "ECDSA on P-256 with SHA-256, r and s"),
            Field("attestation key", quote.attestation_key, "x and y"),
        ),
        "the quoting enclave vouches for the attestation key",
    )
    yield Section(
        "quoting enclave",
        (
            Field("MRENCLAVE", enclave.registers["mrenclave"]),
            Field("MRSIGNER", enclave.registers["mrsigner"], "compared with the collateral's QE identity"),
            Field("attributes", attributes[:8], flags(_SGX_FLAGS, alarming=_SGX_ALARMS)(attributes[:8])[1]),
            Field("ISVPRODID", enclave.isvprodid),
            Field("ISVSVN", enclave.isvsvn, "how new it is"),
            Field("REPORTDATA", enclave.report_data, "SHA-256 of the attestation key and the authentication data"),
            Field("authentication", quote.qe_authentication),
        ),
        "signed by the platform's certificate (PCK)",
    )
    yield Section("platform's certificates", tuple(certificate_fields(quote.certificates)), "each signed by the next")
    try:
        platform = parse_platform(quote.certificates[0])
    except FormatError as error:
        yield Section("platform", (Field("SGX extension", "unreadable", error.message),))
        return
    told: dict[str, tuple[str | bytes | int | None, str]] = {
        "PPID": (platform.ppid, "of the processor: the hardware id"),
        "FMSPC": (platform.fmspc, "of the kind of platform: selects its TCB information"),
        "CPUSVN": (platform.cpusvn, "components " + " ".join(map(str, platform.components))),
        "PCESVN": (platform.pcesvn, ""),
        "PCE id": (platform.pce_id, ""),
        "memory": (platform.memory, "how SGX protects it"),
        "instance": (platform.instance, "of this installation"),
        "hyperthreading": (_word(platform.smt), ""),
        "dynamic": (_word(platform.dynamic), "whether processors may be added"),
        "cached keys": (_word(platform.cached_keys), "whether Intel keeps the platform's keys"),
    }
    fields = tuple(Field(name, value, meaning) for name, (value, meaning) in told.items() if value is not None)
    yield Section("platform", fields, "from its certificate, by Intel")


def _malleable(quote: Quote, raw: bytes) -> Section:
    """What can change without a refusal."""
    padding = len(raw) - len(quote.raw)
    after = f"{padding} zero bytes" if padding else "nothing"
    fields = (
        Field("after the quote", after, "zero bytes may follow it"),
        Field("certificates", "line ends, final zeros", "as platforms differ there"),
        Field("signatures", "(r, s) and (r, n - s)", "an ECDSA signature has two forms"),
    )
    return Section("not signed", fields, "may change without a refusal; nothing of it enters the claims")


def collateral(raw: bytes) -> Section:
    """Intel's endorsements in `dcap-qvl`'s form."""
    note = "Intel signs TCB information, QE identity and revocation lists"
    if not raw:
        return Section("endorsements", (Field("collateral", "none", "`verify` needs Intel's collateral"),), note)
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        return Section("endorsements", (Field("collateral", f"{len(raw)} bytes", "not JSON"),), note)
    fields = [*_dated("TCB information", document, "tcb_info"), *_dated("QE identity", document, "qe_identity")]
    for name in ("tcb_info_issuer_chain", "qe_identity_issuer_chain", "pck_crl_issuer_chain"):
        fields.append(_issuers(name, document.get(name)))
    for name in ("root_ca_crl", "pck_crl"):
        text = document.get(name)
        fields.append(Field(name, f"{len(text) // 2:,} bytes" if isinstance(text, str) else "missing"))
    return Section("endorsements", tuple(fields), note)


def _dated(title: str, document: Mapping[str, Any], name: str) -> Iterator[Field]:
    try:
        info = json.loads(document[name])
        words = ", ".join(
            f"{word} {info[key]}"
            for key, word in (("id", "of"), ("fmspc", "for FMSPC"), ("tcbEvaluationDataNumber", "evaluation"))
            if key in info
        )
        yield Field(title, f"{info['issueDate']} to {info['nextUpdate']}", words)
    except (KeyError, ValueError, TypeError, RecursionError):
        yield Field(title, "unreadable", "wanted a signed JSON text")


def _issuers(name: str, pem: Any) -> Field:
    try:
        chain = pem_certificates(pem.encode("ascii", "replace")) if isinstance(pem, str) else ()
    except FormatError as error:
        return Field(name, "unreadable", error.message)
    return Field(name, f"{len(chain)} certificates", " <- ".join(common_name(each.subject) for each in chain))


def _word(value: bool | None) -> str | None:
    return None if value is None else "yes" if value else "no"
