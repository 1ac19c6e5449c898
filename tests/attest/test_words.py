"""The words that a policy may use are those that the verifiers use, and those that the page lists."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

from strongroom.attest import words
from strongroom.attest.claims import Claims
from strongroom.attest.evidence import TEES
from strongroom.attest.files import read_evidence
from strongroom.attest.reference import ReferenceValues
from strongroom.attest.verify import VENDORS, verify
from strongroom.errors import PolicyError
from tests.attest.intel import NOW, Intel, td_body

ROOT = Path(__file__).parents[2]
VECTORS = ROOT / "tests" / "vectors"
# One of each kind and version, and when it holds.
REAL = {
    "dcap-sgx/sgx_v3_phala.quote.bin dcap-sgx/sgx_v3_phala.collateral.json": None,
    "dcap-tdx/tdx_v4_gcp_cos113.quote.bin dcap-tdx/tdx_v4_gcp_cos113.collateral.json": None,
    "sev-snp/milan_v2.report.bin sev-snp/milan_v2.leaf.der": NOW,
    "sev-snp/milan_v3_vlek.report.bin sev-snp/milan_v3_vlek.leaf.der": NOW,
    "sev-snp/genoa_v3.report.bin sev-snp/genoa_v3.leaf.der": NOW,
    "azure-vtpm/az-snp-vtpm_evidence-v1.json": 1_753_175_614,
    "azure-vtpm/az-tdx-vtpm_evidence-v1.json": 1_753_175_614,
    "aws-nitro/nitro.b64": 1_725_721_200,
    "tpm2/tpm_evidence_coco.json": NOW,
    "nvidia-gpu/hopper_report.hex nvidia-gpu/hopper_chain.pem": NOW,
}


def asking_for_all(claims: Claims) -> ReferenceValues:
    """What a policy says that asks for all that was told."""
    return ReferenceValues(
        (claims.tee,),
        (claims.measurement,),
        tcb_statuses=(claims.tcb_status,) if claims.tcb_status else (),
        minimum_tcb={claims.tee: claims.tcb} if claims.tcb else {},
        signers=(claims.signer,) if claims.signer else None,
        registers={name: (value,) for name, value in claims.registers.items()},
        hardware_ids=(claims.hardware_id,) if claims.hardware_id else None,
        weaknesses_allowed=claims.weaknesses,
    )


@pytest.mark.parametrize("names", REAL)
def test_a_policy_can_ask_for_all_that_real_evidence_tells(names):
    evidence, *endorsements = ((VECTORS / name).read_bytes() for name in names.split())
    found = read_evidence(evidence, endorsements).evidence
    now = REAL[names]
    if now is None:
        cases = VECTORS / Path(names.split()[0]).parent / "cases.json"
        name = Path(names.split()[0]).name.partition(".")[0]
        now = json.loads(cases.read_text())[name]["now"]
    anchors = VENDORS
    if found.tee == "tpm":
        with pytest.raises(Exception, match="sha256:") as refusal:
            verify(found, now=now)
        anchors = dataclasses.replace(VENDORS, named=frozenset(re.findall("sha256:[0-9a-f]{64}", str(refusal.value))))
    claims = verify(found, now=now, anchors=anchors)
    assert asking_for_all(claims).tees == (claims.tee,)


def test_and_for_all_that_a_trust_domain_of_version_5_tells():
    claims = verify(Intel().evidence(td_body(service_td=bytes(48)), version=5), now=NOW)
    assert "mrservicetd" in asking_for_all(claims).registers


def test_every_kind_has_its_words():
    assert set(words.REGISTERS) == set(TEES)
    for table in (words.VERSIONS, words.SIGNERS, words.HARDWARE_IDS):
        assert set(table) <= set(TEES)


def test_the_page_lists_them():
    page = (ROOT / "docs" / "how-to" / "policy.md").read_text()
    rows = re.findall(r"^\| (`.*) \|$", page.partition("### Words")[2], re.MULTILINE)
    told = {tee: row for row in rows for tee in re.findall("`([a-z-]+)`", row.partition(" | ")[0])}
    assert set(told) == set(TEES)
    for tee, row in told.items():
        if tee.startswith("azure"):
            continue  # as the hardware's
        names = set(re.findall("`([a-z_0-9-]+)`", row))
        plain = {name for name in words.REGISTERS[tee] if not re.fullmatch(r"(rtmr|pcr|block)\d+.*", name)}
        assert plain | set(words.VERSIONS.get(tee, ())) <= names
        assert names - plain - set(words.VERSIONS.get(tee, ())) - set(TEES) <= set(words.REGISTERS[tee])
    of_weaknesses = page.partition("### Weaknesses")[2].partition("### Words")[0]
    assert tuple(re.findall(r"^\| `([a-z0-9-]+)` \| `", of_weaknesses, re.MULTILINE)) == words.WEAKNESSES
    assert all(f"`{status}`" in page for status in words.INTEL_STATUSES)


def test_a_word_that_no_evidence_tells_is_refused():
    for wrong in (
        {"weaknesses_allowed": ("sept_ve",)},
        {"registers": {"rtmr4": ("00" * 48,)}},
        {"registers": {"rtmr3": ("00" * 32,)}},
        {"minimum_tcb": {"tdx": {"modul": 1}}},
        {"hardware_ids": ("00" * 64,)},
        {"signers": ("00" * 48,)},
    ):
        with pytest.raises(PolicyError):
            ReferenceValues(("tdx",), (), **wrong)
