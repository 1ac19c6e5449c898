"""What evidence says in words: what alarms a reader, and what is not signed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from strongroom.attest.evidence import TEES
from strongroom.attest.explain import Section, explain
from strongroom.attest.explain.fields import common_name, moment
from strongroom.attest.files import read_evidence
from strongroom.errors import FormatError

VECTORS = Path(__file__).parents[1] / "vectors"


def sections(name: str, *endorsements: str) -> dict[str, Section]:
    found = read_evidence((VECTORS / name).read_bytes(), [(VECTORS / each).read_bytes() for each in endorsements])
    return {section.title: section for section in explain(found.evidence)}


def fields(section: Section) -> dict[str, tuple[object, str]]:
    return {field.name: (field.value, field.meaning) for field in section.fields}


def test_tdx_shouts_at_debug_and_at_sept_ve():
    debug = fields(sections("tdx/v4_debug.quote.bin")["trust domain"])
    assert "DEBUG: THE HOST MAY READ ITS MEMORY" in debug["TDATTRIBUTES"][1]
    azure = sections("azure-vtpm/az-tdx-vtpm_evidence-v1.json")
    assert "SEPT_VE_DISABLE IS OFF" in fields(azure["hardware: trust domain"])["TDATTRIBUTES"][1]
    good = fields(sections("dcap-tdx/tdx_v4_gcp_cos113.quote.bin")["trust domain"])
    assert not good["TDATTRIBUTES"][1].isupper()
    assert "OFF" not in good["TDATTRIBUTES"][1]
    assert good["RTMR3"] == (bytes(48), "for the guest's own use")


def test_sgx_shouts_at_debug():
    enclave = fields(sections("dcap-sgx/sgx_v3_debug_automata.quote.bin")["enclave"])
    assert "DEBUG: A DEBUGGER MAY READ ITS MEMORY" in enclave["attributes"][1]


def test_collateral_tells_how_long_it_holds():
    told = fields(sections("dcap-sgx/sgx_v3_phala.quote.bin", "dcap-sgx/sgx_v3_phala.collateral.json")["endorsements"])
    assert "FMSPC 00A067110000" in told["TCB information"][1]
    assert "2025-06-19" in str(told["TCB information"][0])
    missing = fields(sections("dcap-sgx/sgx_v3_phala.quote.bin")["endorsements"])
    assert missing["collateral"] == ("none", "`verify` needs Intel's collateral")


@pytest.mark.parametrize(
    "collateral", [b"x", b"[]", b'{"tcb_info": 7}', b'{"tcb_info": "[]", "pck_crl_issuer_chain": "x"}']
)
def test_collateral_that_is_none_is_said_to_be(collateral):
    evidence = read_evidence((VECTORS / "dcap-sgx/sgx_v3_phala.quote.bin").read_bytes()).evidence
    *_, told = explain(replace(evidence, endorsements=collateral))
    assert any(
        word in str((field.value, field.meaning)) for field in told.fields for word in ("unreadable", "not JSON")
    )


def test_snp_tells_versions_keys_and_debug():
    vlek = sections("sev-snp/milan_v3_vlek.report.bin")
    assert fields(vlek["report"])["key flags"][1].startswith("signed by VLEK")
    assert fields(vlek["platform"])["product"] == ("Milan", "by the CPUID numbers in the report")
    assert fields(vlek["platform"])["chip id"][1] == "hidden by the host"
    assert fields(vlek["versions"])["reported TCB"][1] == "bootloader 4, tee 0, snp 24, microcode 217"
    debug = sections("sev-snp/milan_v2_debug.report.bin")
    assert "DEBUG ALLOWED" in fields(debug["report"])["policy"][1]
    assert "family" not in fields(debug["platform"])


def test_bytes_of_an_snp_report_that_nobody_signs_are_pointed_out():
    evidence = read_evidence((VECTORS / "sev-snp/milan_v2.report.bin").read_bytes()).evidence
    altered = replace(evidence, quote=evidence.quote[:-1] + b"\x01")
    told = {section.title: section for section in explain(altered)}
    assert fields(told["signature"])["reserved"] == ("368 bytes", "NOT ZERO, and signed by nobody")


def test_nitro_tells_a_debug_enclave_and_leaves_out_empty_registers():
    debug = fields(sections("aws-nitro/nitro_debug.b64")["registers"])
    assert all("A DEBUG ENCLAVE" in debug[f"PCR{i}"][1] for i in range(3))
    good = fields(sections("aws-nitro/nitro.b64")["registers"])
    assert "DEBUG" not in str(good)
    assert "PCR15" not in good


def test_a_tpm_tells_which_registers_any_program_can_reset():
    told = fields(sections("tpm2/tpm_evidence_coco.json")["registers"])
    assert "ANY PROGRAM CAN RESET IT" in told["sha256:23"][1]
    assert list(told)[:3] == ["sha256:0", "sha256:1", "sha256:2"]
    assert fields(sections("tpm2/tpm_evidence_coco.json")["key"])["signature"][0] == "rsassa with sha256"


def test_azure_goes_from_the_guest_down_to_the_hardware():
    told = sections("azure-vtpm/az-snp-vtpm_evidence-v1.json")
    assert list(told)[:3] == ["quote", "registers", "paravisor"]
    assert fields(told["quote"])["extra data"][0] == b"challenge"
    digest = fields(told["paravisor"])["their digest"][0]
    data = fields(told["hardware: report"])["report data"][0]
    assert isinstance(digest, bytes) and isinstance(data, bytes)
    assert data.startswith(digest)


def test_devices_are_explained_after_the_enclave(vendor, registers):
    report = (VECTORS / "nvidia-gpu/hopper_report.hex").read_bytes()
    gpu = read_evidence(report, [(VECTORS / "nvidia-gpu/hopper_chain.pem").read_bytes()]).evidence
    together = replace(vendor.quote(registers, bytes(64)), devices=(gpu,))
    titles = [section.title for section in explain(together)]
    assert titles.index("device 0: exchange") > titles.index("endorsements")
    told = {section.title: section for section in explain(together)}
    assert fields(told["device 0: vendor's data"])["driver version"][0] == "550.90.07"


@pytest.mark.parametrize("tee", TEES)
def test_what_is_no_evidence_of_a_kind_is_refused(tee, vendor, registers):
    evidence = replace(vendor.quote(registers, bytes(64)), tee=tee, quote=b"nothing")
    with pytest.raises(FormatError):
        explain(evidence)


def test_names_and_times_that_are_odd():
    assert common_name("OU=AWS,CN=a\\,b,C=US") == "a\\,b"
    assert common_name("O=nobody") == "O=nobody"
    assert moment(10**18).endswith("s since 1970")
    assert json.dumps(moment(0)) == '"1970-01-01 00:00:00 UTC"'
