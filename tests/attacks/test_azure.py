"""What the host, or somebody on the way, may try with evidence of Azure's confidential VMs."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from strongroom.attest.evidence import Evidence
from strongroom.attest.parse.azure import AzureEvidence, from_coco, parse_azure
from strongroom.attest.verify import verify
from strongroom.attest.verify.snp import verify_snp
from strongroom.errors import FormatError, StrongroomError, VerificationError
from tests.attest.azure import Vm
from tests.attest.intel import NOW, QUOTING, Intel

VECTORS = Path(__file__).parents[1] / "vectors" / "azure-vtpm"
REAL_NOW = 1_753_175_614
KINDS = ("azure-snp", "azure-tdx")
RUNTIME = 1236


def real(tee: str) -> tuple[Evidence, AzureEvidence]:
    evidence = from_coco(json.loads((VECTORS / f"{tee.replace('azure', 'az')}-vtpm_evidence-v1.json").read_text()))
    return evidence, parse_azure(tee, evidence.quote)


def shown_as(evidence: Evidence, shown: AzureEvidence) -> Evidence:
    return replace(evidence, quote=shown.to_bytes())


def flipped(raw: bytes, position: int) -> bytes:
    return raw[:position] + bytes([raw[position] ^ 1 << position % 8]) + raw[position + 1 :]


@pytest.mark.parametrize("tee", KINDS)
@pytest.mark.parametrize("part", ["message", "signature"])
def test_no_flipped_bit_of_the_vtpm_s_quote_is_accepted(tee, part):
    evidence, shown = real(tee)
    raw = getattr(shown, part)
    for position in range(0, len(raw), 1 if part == "message" else 3):
        with pytest.raises(StrongroomError):
            verify(shown_as(evidence, replace(shown, **{part: flipped(raw, position)})), now=REAL_NOW)


def test_no_flipped_bit_of_an_hcl_report_of_snp_is_accepted():
    evidence, shown = real("azure-snp")
    for position in range(0, 2600, 5):
        changed = replace(shown, hcl_report=flipped(shown.hcl_report, position))
        with pytest.raises(StrongroomError):
            verify(shown_as(evidence, changed), now=REAL_NOW)


def test_a_flipped_bit_of_an_hcl_report_of_tdx_is_refused_or_says_nothing():
    """What is malleable: CPUSVN and MAC, which nobody but that machine can check."""
    evidence, shown = real("azure-tdx")
    honest = verify(evidence, now=REAL_NOW)
    malleable = {*range(32 + 16, 32 + 32), *range(32 + 224, 32 + 256)}
    for position in range(0, 2600, 5):
        offered = shown_as(evidence, replace(shown, hcl_report=flipped(shown.hcl_report, position)))
        if position in malleable:
            assert verify(offered, now=REAL_NOW) == honest
        else:
            with pytest.raises(StrongroomError):
                verify(offered, now=REAL_NOW)


@pytest.mark.parametrize(
    ("position", "accepted"),
    [
        (256, True),  # VALID
        (384, True),  # TEE_TCB_SVN_2, which a quote of a report 1.0 does not have
        (264, False),  # TEE_TCB_SVN
        (400, False),  # reserved
        (480, False),
        (912, False),  # SERVTD_HASH
        (960, False),  # reserved
    ],
)
def test_a_tdreport_whose_digests_were_made_again_still_says_what_the_quote_says(position, accepted):
    evidence, shown = real("azure-tdx")
    report = bytearray(flipped(shown.hcl_report[32:], position))
    report[32:80] = hashlib.sha384(report[256:495]).digest()
    report[80:128] = hashlib.sha384(report[512:1024]).digest()
    offered = shown_as(evidence, replace(shown, hcl_report=shown.hcl_report[:32] + bytes(report)))
    if accepted:
        assert verify(offered, now=REAL_NOW) == verify(evidence, now=REAL_NOW)
    else:
        with pytest.raises(StrongroomError, match="TDREPORT"):
            verify(offered, now=REAL_NOW)


def test_no_flipped_bit_of_the_td_quote_is_accepted():
    evidence, shown = real("azure-tdx")
    for position in (*range(0, 1300, 5), *range(1300, len(shown.td_quote), 17)):
        changed = replace(shown, td_quote=flipped(shown.td_quote, position))
        with pytest.raises(StrongroomError):
            verify(shown_as(evidence, changed), now=REAL_NOW)


@pytest.mark.parametrize("tee", KINDS)
def test_another_vtpm_s_key_is_refused(tee):
    """The runtime claims of another VM name a key whose quotes verify; the hardware does not vouch for them."""
    evidence, shown = real(tee)
    vm = Vm()
    runtime = vm.runtime()
    size = len(runtime)
    report = bytearray(shown.hcl_report[:RUNTIME] + runtime)
    report[8:12] = (RUNTIME + size).to_bytes(4, "little")
    report[1216:1220], report[1232:1236] = (20 + size).to_bytes(4, "little"), size.to_bytes(4, "little")
    theirs = vm.shown()
    forged = replace(theirs, hcl_report=bytes(report), td_quote=shown.td_quote)
    with pytest.raises(VerificationError, match="runtime claims: the hardware vouches for others"):
        verify(shown_as(evidence, forged), now=REAL_NOW)


@pytest.mark.parametrize("tee", KINDS)
def test_another_vm_s_report_is_refused(tee):
    """A quote of one's own beside the genuine report of somebody else's VM."""
    evidence, shown = real(tee)
    theirs = Vm().shown()
    with pytest.raises(VerificationError, match="signature: does not match the key"):
        verify(shown_as(evidence, replace(theirs, hcl_report=shown.hcl_report, td_quote=shown.td_quote)), now=REAL_NOW)


@pytest.mark.parametrize("tee", KINDS)
def test_other_registers_are_refused(tee):
    evidence, shown = real(tee)
    for pcrs in (
        {**shown.pcrs, 4: bytes(32)},
        {index: value for index, value in shown.pcrs.items() if index != 4},
        {**shown.pcrs, 24: bytes(32)},
        {**shown.pcrs, 4: shown.pcrs[5], 5: shown.pcrs[4]},
    ):
        with pytest.raises(VerificationError, match="pcrs: "):
            verify(shown_as(evidence, replace(shown, pcrs=pcrs)), now=REAL_NOW)


def test_a_td_quote_of_another_trust_domain_is_refused():
    vm, other = Vm(), Vm(digest="sha512")
    other.intel = vm.intel
    shown = vm.shown()
    with pytest.raises(VerificationError):
        verify(vm.evidence(replace(shown, td_quote=other.shown().td_quote)), now=NOW, anchors=vm.intel.anchors())


def test_a_tdreport_that_says_something_else_than_the_quote_is_refused():
    vm = Vm()
    shown = vm.shown()
    changed = replace(shown, hcl_report=flipped(shown.hcl_report, 32 + 512 + 16))  # MRTD
    with pytest.raises(VerificationError, match="HCL report: its TDREPORT is not the one that the TD quote is of"):
        verify(vm.evidence(changed), now=NOW, anchors=vm.intel.anchors())


def test_a_quoting_enclave_of_the_owner_s_is_refused_with_endorsements_and_without():
    for collateral in (True, False):
        vm = Vm(intel=Intel(quoting=(b"o" * 32, 2)), collateral=collateral)
        with pytest.raises(VerificationError, match="quoting enclave: got signer"):
            verify(vm.evidence(), now=NOW, anchors=vm.intel.anchors())


def test_a_revoked_platform_is_refused():
    vm = Vm(intel=Intel(quoting=QUOTING["tdx"], revoked=True))
    with pytest.raises(VerificationError, match="revoked"):
        verify(vm.evidence(), now=NOW, anchors=vm.intel.anchors())


def test_one_kind_cannot_be_shown_as_the_other():
    snp, _ = real("azure-snp")
    tdx, shown = real("azure-tdx")
    for offered in (replace(snp, tee="azure-tdx"), replace(tdx, tee="azure-snp")):
        with pytest.raises(FormatError):
            verify(offered, now=REAL_NOW)
    with pytest.raises(FormatError, match="HCL report: got one of tdx, wanted one of azure-snp"):
        verify(Evidence("azure-snp", replace(shown, td_quote=b"").to_bytes(), b""), now=REAL_NOW)


def test_a_report_that_the_guest_asked_for_is_refused(monkeypatch):
    """At VMPL 2 a guest gets reports over what it likes, and could name a key of its own."""

    def guest(*arguments):
        claims = verify_snp(*arguments)
        return replace(claims, attributes={**claims.attributes, "vmpl": 2})

    monkeypatch.setattr("strongroom.attest.verify.azure.verify_snp", guest)
    evidence, _ = real("azure-snp")
    with pytest.raises(VerificationError, match="SNP report: asked for by VMPL 2, wanted 0"):
        verify(evidence, now=REAL_NOW)
