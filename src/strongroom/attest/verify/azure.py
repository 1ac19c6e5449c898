"""Verify evidence of Azure's confidential VMs: hardware -> paravisor -> vTPM -> quote.

1. Parse the evidence and the HCL report in it.
2. The hardware vouches for the runtime claims: the report data of SNP's report or of the TD quote is their digest, and
   zeros. SNP's report is verified by `snp`, and was asked for by VMPL 0, where the paravisor runs; the TD quote by
   `dcap_chain`, in our own code, as Azure's trust domains leave SEPT_VE_DISABLE at 0, which `dcap-qvl` refuses.
3. The runtime claims name the vTPM's attestation key, which signed the quote.
4. The registers shown are those that were quoted.

The measurement covers both layers: the paravisor that the hardware measured, and the guest that the vTPM measured. The
guest's report data is the quote's extra data; that of the hardware is taken.

With Intel's endorsements a TD quote's platform has a TCB status, by `dcap_tcb`; without them it has none, and
`appraise` refuses it. The TDREPORT in an HCL report is signed by nobody; it must say what the TD quote says.
"""

from __future__ import annotations

from dataclasses import replace

from strongroom.attest.claims import Claims, layers_measurement, pcrs_measurement
from strongroom.attest.evidence import Evidence
from strongroom.attest.parse.azure import AzureEvidence, HclReport, parse_azure, parse_hcl_report
from strongroom.attest.parse.collateral import parse_collateral
from strongroom.attest.parse.dcap import Quote, parse_quote
from strongroom.attest.parse.dcap_body import TD10_SIZE, TdReport
from strongroom.attest.verify.anchors import Anchors
from strongroom.attest.verify.dcap import refuse_debug
from strongroom.attest.verify.dcap_chain import follow
from strongroom.attest.verify.dcap_claims import TcbLevel, dcap_claims
from strongroom.attest.verify.dcap_tcb import follow_with
from strongroom.attest.verify.snp import verify_snp
from strongroom.attest.verify.tpm import check_pcrs, verify_bare_quote, weaknesses
from strongroom.crypto import digest, equal
from strongroom.errors import FormatError, VerificationError

_BANK = "sha256"
_REPORT_DATA_SIZE = 64

# TDREPORT_STRUCT ("Intel TDX Module ABI Reference Specification"): REPORTMACSTRUCT, TEE_TCB_INFO, TDINFO_STRUCT.
_TYPE = slice(0, 4)  # REPORTTYPE: TDX's, subtype 0, version 0 or (with service TDs) 1, reserved
_TYPES = (b"\x81\0\0\0", b"\x81\0\1\0")
_TCB_INFO_HASH, _TD_INFO_HASH = slice(32, 80), slice(80, 128)
_REPORT_DATA = slice(128, 192)
_TCB_INFO, _TD_INFO = slice(256, 495), slice(512, 1024)
# After VALID, 8 bytes, TEE_TCB_INFO starts as a quote's body does; TDINFO_STRUCT is what follows there.
_TCB_INFO_OF_BODY, _TD_INFO_OF_BODY = slice(264, 384), slice(512, 912)
_TCB_SVN_2, _SERVICE_TDS = slice(384, 400), slice(912, 960)
_RESERVED = (slice(4, 16), slice(192, 224), slice(400, 512), slice(960, 1024))


def verify_azure(evidence: Evidence, anchors: Anchors, now: int) -> Claims:
    """The claims of `azure-snp` or `azure-tdx` evidence, by the steps at the top of this file."""
    # 1
    shown = parse_azure(evidence.tee, evidence.quote)
    hcl = parse_hcl_report(shown.hcl_report)
    if evidence.tee != f"azure-{hcl.hardware}":
        raise FormatError(f"HCL report: got one of {hcl.hardware}, wanted one of {evidence.tee}")
    # 2
    layer = _verify_snp if hcl.hardware == "snp" else _verify_tdx
    hardware = layer(evidence, shown, hcl, anchors, now)
    runtime_digest = digest(hcl.runtime, algorithm=hcl.digest)
    if not equal(hardware.report_data, runtime_digest + bytes(_REPORT_DATA_SIZE - len(runtime_digest))):
        raise VerificationError("runtime claims: the hardware vouches for others")
    # 3
    quote = verify_bare_quote(shown.message, shown.signature, hcl.key)
    # 4
    check_pcrs(quote, {_BANK: shown.pcrs})
    guest = pcrs_measurement(_BANK, shown.pcrs)
    return replace(
        hardware,
        tee=evidence.tee,
        measurement=layers_measurement(hardware.measurement, guest),
        registers={**hardware.registers, **{f"pcr{index}": value.hex() for index, value in sorted(shown.pcrs.items())}},
        report_data=quote.extra_data,
        weaknesses=(*hardware.weaknesses, *weaknesses(_BANK, shown.pcrs)),
        attributes={
            **hardware.attributes,
            "paravisor_measurement": hardware.measurement,
            "guest_measurement": guest,
            "vtpm_key": hcl.key.fingerprint,
            "user_data": hcl.user_data,
            **{f"vm_{name.replace('-', '_')}": value for name, value in hcl.configuration.items()},
        },
    )


def _verify_snp(evidence: Evidence, shown: AzureEvidence, hcl: HclReport, anchors: Anchors, now: int) -> Claims:
    claims = verify_snp(Evidence("snp", hcl.report, evidence.endorsements), anchors, now)
    vmpl = claims.attributes.get("vmpl")
    if vmpl != 0:
        raise VerificationError(f"SNP report: asked for by VMPL {vmpl}, wanted 0, where the paravisor runs")
    return claims


def _verify_tdx(evidence: Evidence, shown: AzureEvidence, hcl: HclReport, anchors: Anchors, now: int) -> Claims:
    quote = parse_quote(shown.td_quote)
    if not isinstance(quote.report, TdReport):
        raise FormatError("td_quote: got one of sgx, wanted one of tdx")
    refuse_debug(evidence.tee, quote)
    root = anchors.intel
    if evidence.endorsements:
        platform, level = follow_with(parse_collateral(evidence.endorsements), quote, root, now=now)
    else:
        platform, level = follow(quote, root, now=now), TcbLevel()
    _check_same_report(quote, hcl.report)
    return dcap_claims(evidence.tee, quote, platform, level, root.fingerprint)


def _check_same_report(quote: Quote, raw: bytes) -> None:
    """Compare a TDREPORT with the TD quote made of it, and with itself.

    Signed by nobody and in no quote, and so anybody's word: CPUSVN, MAC, VALID, and with a quote of a report 1.0
    TEE_TCB_SVN_2. No claim is made of them.
    """
    if raw[_TYPE] not in _TYPES or any(any(raw[each]) for each in _RESERVED):
        raise FormatError(f"TDREPORT: type {raw[_TYPE].hex()}, or reserved bytes other than zero: not one of TDX's")
    body = quote.body
    later = body[TD10_SIZE:]  # of a report 1.5: TEE_TCB_SVN_2 and MRSERVICETD
    pairs = (
        (raw[_REPORT_DATA], body[520:584]),
        (raw[_TCB_INFO_OF_BODY], body[:120]),
        (raw[_TD_INFO_OF_BODY], body[120:520]),
        (raw[_TCB_SVN_2], later[:16] or raw[_TCB_SVN_2]),
        (raw[_SERVICE_TDS], later[16:] or bytes(48)),
        (raw[_TCB_INFO_HASH], digest(raw[_TCB_INFO], algorithm="sha384")),
        (raw[_TD_INFO_HASH], digest(raw[_TD_INFO], algorithm="sha384")),
    )
    if not all(equal(mine, theirs) for mine, theirs in pairs):
        raise VerificationError("HCL report: its TDREPORT is not the one that the TD quote is of")
