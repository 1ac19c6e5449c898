"""SGX quotes: real ones get their verdicts, and what an enclave is ends up in its claims."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from strongroom.attest.appraise import ReferenceValues, appraise
from strongroom.attest.evidence import Evidence
from strongroom.attest.parse.dcap import parse_quote
from strongroom.attest.parse.dcap_body import SGX_FLAGS
from strongroom.attest.verify import verify
from strongroom.attest.verify.anchors import INTEL_ROOT
from strongroom.errors import (
    DebugEnclaveError,
    ExpiredError,
    FormatError,
    MeasurementError,
    StrongroomError,
    TcbError,
)
from tests.attest.intel import NOW, QUOTING, VALID, Intel, sgx_body

VECTORS = Path(__file__).parents[1] / "vectors" / "dcap-sgx"
CASES = json.loads((VECTORS / "cases.json").read_text())


def real(name: str) -> Evidence:
    collateral = VECTORS / f"{CASES[name]['endorsements']}.collateral.json"
    return Evidence("sgx", (VECTORS / f"{name}.quote.bin").read_bytes(), collateral.read_bytes())


@pytest.mark.parametrize("name", CASES)
def test_each_vector_has_its_verdict(name):
    case = CASES[name]
    if case["error"]:
        with pytest.raises(StrongroomError) as caught:
            verify(real(name), now=case["now"])
        assert caught.value.code == case["error"]
        return
    claims = verify(real(name), now=case["now"])
    assert (claims.tcb_status, list(claims.advisories)) == (case["status"], case["advisories"])
    assert (claims.tee, claims.vendor_root, claims.debug, claims.migratable) == ("sgx", INTEL_ROOT, False, False)


def test_what_an_enclave_is_ends_up_in_its_claims():
    name = "sgx_v3_icx_automata"
    claims = verify(real(name), now=CASES[name]["now"])
    assert claims.measurement == "a4f45c39dac622cb1dd32ddb35a52ec92db41d0fa88a1c911c49e59c534f61cd"
    assert claims.signer == claims.registers["mrsigner"]
    assert claims.hardware_id == "186950b6d8d014d89f0c144d1d90ebad"
    assert claims.tcb == {"isvsvn": 0, "configsvn": 0, "qe": 9, "pce": 13, "evaluation": 17}
    assert {
        "attribute_mode64bit": True,
        "attribute_provision_key": False,
        "fmspc": "00606a000000",
        "memory": "scalable",
        "smt": False,
        "dynamic_platform": True,
        "endorsements_expire": CASES[name]["valid_until"],
    }.items() <= claims.attributes.items()


def test_a_platform_of_one_processor_says_less():
    claims = verify(real("sgx_v3_phala"), now=CASES["sgx_v3_phala"]["now"])
    assert claims.attributes["memory"] == "standard"
    assert not {"smt", "dynamic_platform", "cached_keys", "platform_instance"} & set(claims.attributes)


@pytest.mark.parametrize("version", [3, 4, 5])
def test_quotes_of_every_version_say_the_same(version):
    intel = Intel(quoting=QUOTING["sgx"])
    evidence = intel.evidence(sgx_body(report_data=b"r" * 64), tee="sgx", version=version)
    assert parse_quote(evidence.quote).version == version
    claims = verify(evidence, now=NOW, anchors=intel.anchors())
    assert (claims.measurement, claims.signer, claims.report_data) == ((b"e" * 32).hex(), (b"s" * 32).hex(), b"r" * 64)
    assert claims.registers == {
        "mrenclave": (b"e" * 32).hex(),
        "mrsigner": (b"s" * 32).hex(),
        "isvprodid": "0007",
        "attributes": "0500000000000000e700000000000000",
        "miscselect": "00000000",
        "cpusvn": "01" * 16,
        "configid": (b"c" * 64).hex(),
        "isvextprodid": (b"x" * 16).hex(),
        "isvfamilyid": (b"f" * 16).hex(),
    }
    assert (claims.tcb["isvsvn"], claims.tcb["configsvn"], claims.tcb_status) == (3, 5, "UpToDate")


def test_every_flag_has_its_bit():
    for name, bit in SGX_FLAGS.items():
        report = parse_quote(Intel().quote(sgx_body(flags=1 << bit), version=3)).report
        assert [flag for flag, value in report.flags.items() if value] == [name]


@pytest.mark.parametrize("version", [3, 5])
def test_a_debug_enclave_is_refused_whoever_signed_it(version):
    intel = Intel()
    for tee in ("simulated", "sgx"):
        with pytest.raises(DebugEnclaveError, match=f"{tee} enclave: debug is on, wanted off"):
            verify(intel.evidence(sgx_body(flags=0x7), tee=tee, version=version), now=NOW)


def test_a_policy_asks_for_measurement_signer_product_and_version():
    intel = Intel(quoting=QUOTING["sgx"])
    claims = verify(intel.evidence(sgx_body(), tee="sgx", version=3), now=NOW, anchors=intel.anchors())
    claims = replace(claims, vendor_root=INTEL_ROOT)
    wanted = ReferenceValues(
        tees=("sgx",),
        measurements=(claims.measurement,),
        signers=(claims.signer,),
        registers={"isvprodid": ("0007",)},
        minimum_tcb={"sgx": {"isvsvn": 3, "evaluation": 1}},
        hardware_ids=(claims.hardware_id,),
    )
    appraise(claims, wanted, expected_report_data=bytes(64), now=NOW)
    for changed, error in (
        (replace(wanted, registers={"isvprodid": ("0008",)}), MeasurementError),
        (replace(wanted, signers=("00" * 32,)), MeasurementError),
        (replace(wanted, minimum_tcb={"sgx": {"isvsvn": 4}}), TcbError),
    ):
        with pytest.raises(error):
            appraise(claims, changed, expected_report_data=bytes(64), now=NOW)


@pytest.mark.parametrize("name", ["sgx_v3_phala", "sgx_v3_icx_automata"])
def test_real_endorsements_expire(name):
    case = CASES[name]
    verify(real(name), now=case["valid_from"])
    verify(real(name), now=case["valid_until"] - 1)
    for now in (case["valid_from"] - 1, case["valid_until"] + 1):
        with pytest.raises(ExpiredError, match="sgx evidence: not valid at "):
            verify(real(name), now=now)


@pytest.mark.parametrize("version", [3, 4])
@pytest.mark.parametrize("now", [VALID.start - 1, VALID.end + 1])
def test_endorsements_hold_from_when_until_when_they_say(version, now):
    evidence = Intel().evidence(sgx_body(), version=version)
    with pytest.raises(ExpiredError):
        verify(evidence, now=now)


def test_a_quote_of_the_other_kind_is_refused():
    intel = Intel()
    with pytest.raises(FormatError, match="quote: got one of sgx, wanted one of tdx"):
        verify(intel.evidence(sgx_body(), tee="tdx", version=3), now=NOW)


@pytest.mark.parametrize("kind", [1, 2, 3, 4, 6, 7])
def test_a_quote_without_its_chain_is_refused(kind):
    quote = bytearray((VECTORS / "sgx_v3_icx_automata.quote.bin").read_bytes())
    quote[48 + 384 + 4 + 128 + 448 + 2 + 32] = kind
    with pytest.raises(FormatError, match=f"quote: got certification data {kind} of") as caught:
        parse_quote(bytes(quote))
    assert bool(caught.value.hint) == (kind < 5)
