"""TDX quotes: real ones get their verdicts, and what a trust domain is ends up in its claims."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from strongroom.attest.appraise import ReferenceValues, appraise
from strongroom.attest.evidence import Evidence
from strongroom.attest.parse.collateral import parse_collateral
from strongroom.attest.parse.dcap import parse_quote, unpadded
from strongroom.attest.parse.dcap_body import TD_FLAGS
from strongroom.attest.verify import VENDORS, verify
from strongroom.attest.verify.dcap_claims import TcbLevel, dcap_claims
from strongroom.attest.verify.dcap_tcb import follow_with
from strongroom.errors import DebugEnclaveError, FormatError, StrongroomError, TcbError, VerificationError
from tests.attest.intel import MIGRATABLE, NOW, QUOTING, SEPT_VE_DISABLE, Intel, td_body

VECTORS = Path(__file__).parents[1] / "vectors"
CASES = json.loads((VECTORS / "dcap-tdx" / "cases.json").read_text())


def real(name: str) -> Evidence:
    quote = (VECTORS / "dcap-tdx" / f"{name}.quote.bin").read_bytes()
    return Evidence("tdx", quote, (VECTORS / "dcap-tdx" / "tdx_v4_gcp_cos113.collateral.json").read_bytes())


@pytest.mark.parametrize("name", CASES)
def test_each_vector_has_its_verdict(name):
    case = CASES[name]
    if case["error"]:
        with pytest.raises(StrongroomError, match="SEPT_VE_DISABLE is not enabled") as caught:
            verify(real(name), now=case["now"])
        assert "Intel vouches for it" in (caught.value.hint or "")
        assert caught.value.code == case["error"]
        return
    claims = verify(real(name), now=case["now"])
    assert (claims.tcb_status, list(claims.advisories)) == (case["status"], case["advisories"])
    padded = len(real(name).quote) - len(unpadded(real(name).quote))
    assert padded == 3065
    assert claims == verify(replace(real(name), quote=unpadded(real(name).quote)), now=case["now"])


def test_what_a_trust_domain_is_ends_up_in_its_claims():
    claims = verify(real("tdx_v4_gcp_cos113"), now=CASES["tdx_v4_gcp_cos113"]["now"])
    assert claims.tcb == {"module": 4, "module_major": 1, "seam_patch": 7, "qe": 6, "pce": 11, "evaluation": 17}
    assert set(claims.registers) == {
        *("mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3", "mrconfigid", "mrowner", "mrownerconfig"),
        *("mrseam", "mrsignerseam", "seamattributes", "tdattributes", "xfam"),
    }
    assert claims.attributes["attribute_sept_ve_disable"] is True
    assert (claims.attributes["smt"], claims.attributes["cached_keys"]) == (True, False)
    assert (claims.weaknesses, claims.migratable, claims.signer) == ((), False, "")


@pytest.mark.parametrize(("version", "service_td"), [(4, None), (5, None), (5, bytes(48))])
def test_quotes_of_every_version_say_the_same(version, service_td):
    intel = Intel(quoting=QUOTING["tdx"])
    body = td_body(service_td=service_td, report_data=b"r" * 64)
    claims = verify(intel.evidence(body, tee="tdx", version=version), now=NOW, anchors=intel.anchors())
    assert (claims.report_data, claims.tcb_status) == (b"r" * 64, "UpToDate")
    assert claims.registers["mrconfigid"] == (b"c" * 48).hex()
    assert ("mrservicetd" in claims.registers) == (service_td is not None)
    assert ("current_tcb_svn" in claims.attributes) == (service_td is not None)


def test_every_flag_has_its_bit():
    for name, bit in TD_FLAGS.items():
        report = parse_quote(Intel().quote(td_body(attributes=1 << bit))).report
        assert [flag for flag, value in report.flags.items() if value] == [name]


def test_any_bit_of_debugging_is_refused():
    for bit in range(8):
        with pytest.raises(DebugEnclaveError):
            verify(Intel().evidence(td_body(attributes=SEPT_VE_DISABLE | 1 << bit)), now=NOW)


@pytest.mark.parametrize(
    ("body", "migratable", "weaknesses"),
    [
        (td_body(), False, ()),
        (td_body(attributes=SEPT_VE_DISABLE | MIGRATABLE), True, ()),
        (td_body(service_td=bytes(47) + b"\1"), True, ()),
        (td_body(service_td=bytes(48)), False, ()),
        (td_body(attributes=0), False, ("sept-ve",)),
    ],
)
def test_weaknesses_are_claims(body, migratable, weaknesses):
    intel = Intel()
    evidence = intel.evidence(body, version=4 if len(body) == 584 else 5)
    quote = parse_quote(evidence.quote)
    platform, _ = follow_with(parse_collateral(evidence.endorsements), quote, intel.root, now=NOW, intel=False)
    claims = dcap_claims("tdx", quote, platform, TcbLevel("UpToDate"), VENDORS.intel.fingerprint)
    assert (claims.migratable, claims.weaknesses) == (migratable, weaknesses)
    wanted = ReferenceValues(("tdx",), (claims.measurement,))
    if not migratable and not weaknesses:
        appraise(claims, wanted, expected_report_data=bytes(64), now=NOW)
        return
    with pytest.raises(StrongroomError, match="weaknesses: got "):
        appraise(claims, wanted, expected_report_data=bytes(64), now=NOW)
    # dcap-qvl lets none of these pass but MIGRATABLE, which nothing else than the claims says.
    if b"\1" in body[-48:] or weaknesses:
        with pytest.raises(VerificationError):
            verify(evidence, now=NOW)


def test_our_own_code_finds_the_level_that_dcap_qvl_finds():
    """On every real quote; and on one that it will not judge, the level of its platform."""
    paths = sorted(VECTORS.glob("dcap-sgx/*.quote.bin")) + sorted(VECTORS.glob("dcap-tdx/*.quote.bin"))
    for path in paths:
        case = json.loads((path.parent / "cases.json").read_text())[path.name.removesuffix(".quote.bin")]
        collateral = parse_collateral((path.parent / f"{case['endorsements']}.collateral.json").read_bytes())
        quote = parse_quote(path.read_bytes())
        _, level = follow_with(collateral, quote, VENDORS.intel, now=case["now"])
        if case["status"]:
            assert (level.status, list(level.advisories)) == (case["status"], case["advisories"])
        elif "azure" in path.name:
            assert level.status == "OutOfDate"
            assert level.advisories == ("INTEL-SA-00960", "INTEL-SA-00982", "INTEL-SA-00986")


def test_our_own_code_refuses_a_platform_without_a_level(vector):
    case = vector("v5_no_matching_tcb")
    quote, collateral = parse_quote(case.evidence.quote), parse_collateral(case.evidence.endorsements)
    with pytest.raises(TcbError, match="TCB information: no level for a platform with such old versions"):
        follow_with(collateral, quote, VENDORS.intel, now=case.now)


def test_endorsements_of_another_platform_are_refused():
    """Both are of real platforms, in force, and signed by Intel."""
    both_in_force = 1_752_400_000
    verify(real("tdx_v4_gcp_cos113"), now=both_in_force)
    other = (VECTORS / "tdx" / "v4_up_to_date.collateral.json").read_bytes()
    mixed = replace(real("tdx_v4_gcp_cos113"), endorsements=other)
    with pytest.raises(FormatError, match=r"(?i)fmspc"):
        verify(mixed, now=both_in_force)
    with pytest.raises(FormatError, match="TCB information: got that of FMSPC b0c06f000000"):
        follow_with(parse_collateral(other), parse_quote(mixed.quote), VENDORS.intel, now=both_in_force)
