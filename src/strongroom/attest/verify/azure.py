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
from strongroom.attest.parse.dcap_body import TdReport
from strongroom.attest.verify.anchors import Anchors
from strongroom.attest.verify.dcap import refuse_debug
from strongroom.attest.verify.dcap_chain import follow
from strongroom.attest.verify.dcap_claims import TcbLevel, dcap_claims
from strongroom.attest.verify.dcap_tcb import follow_with
from strongroom.attest.verify.snp import verify_snp
from strongroom.attest.verify.tpm import check_pcrs, verify_bare_quote
from strongroom.crypto import digest, equal
from strongroom.errors import FormatError, VerificationError

_BANK = "sha256"
_REPORT_DATA = 64


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
    if not equal(hardware.report_data, runtime_digest + bytes(_REPORT_DATA - len(runtime_digest))):
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
    """Compare a TDREPORT with the TD quote made of it.

    Source: "Intel TDX Module ABI Reference Specification", TDREPORT_STRUCT. Its REPORTDATA is at 128; TEE_TCB_INFO at
    256, from whose byte 8 on it is like a quote's body; TDINFO at 512.
    """
    seam, td = slice(0, 120), slice(120, 520)
    pairs = ((raw[128:192], quote.body[520:584]), (raw[264:384], quote.body[seam]), (raw[512:912], quote.body[td]))
    if not all(equal(mine, theirs) for mine, theirs in pairs):
        raise VerificationError("HCL report: its TDREPORT is not the one that the TD quote is of")
