"""Azure's confidential VMs: from the hardware to the vTPM's quote."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from pathlib import Path

import pytest

from strongroom.attest.appraise import ReferenceValues, appraise
from strongroom.attest.binding import bound_data
from strongroom.attest.claims import layers_measurement, pcrs_measurement
from strongroom.attest.evidence import Evidence
from strongroom.attest.parse.azure import from_coco, parse_azure, parse_hcl_report
from strongroom.attest.verify import VENDORS, verify
from strongroom.attest.verify.anchors import INTEL_ROOT
from strongroom.errors import (
    AttestationError,
    BindingError,
    DebugEnclaveError,
    ExpiredError,
    FormatError,
    StrongroomError,
    TcbError,
    VerificationError,
)
from tests.attest.azure import PCRS, Vm
from tests.attest.intel import NOW

VECTORS = Path(__file__).parents[1] / "vectors"
REAL_NOW = 1_753_175_614
KINDS = ("snp", "tdx")


def document(kind: str) -> dict:
    return json.loads((VECTORS / "azure-vtpm" / f"az-{kind}-vtpm_evidence-v1.json").read_text())


def real(kind: str) -> Evidence:
    return from_coco(document(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_real_evidence_verifies_and_a_default_policy_refuses_it(kind):
    evidence = real(kind)
    claims = verify(evidence, now=REAL_NOW)
    assert (claims.tee, claims.report_data, claims.debug) == (f"azure-{kind}", b"challenge", False)
    assert (claims.tcb_status, claims.advisories) == ("", ())
    reference = ReferenceValues((f"azure-{kind}",), (claims.measurement,))
    with pytest.raises(AttestationError):
        appraise(claims, reference, expected_report_data=bytes(64), now=REAL_NOW)


def test_both_layers_are_measured():
    claims = verify(real("snp"), now=REAL_NOW)
    shown = parse_azure("azure-snp", real("snp").quote)
    hardware = "6a063be9dd79f6371c842e480f8dc3b5c725961344e57130e88c5adf49e8f7f6c79b75a5eb77fc769959f4aeb2f9401e"
    guest = pcrs_measurement("sha256", shown.pcrs)
    assert claims.measurement == layers_measurement(hardware, guest)
    assert (claims.attributes["paravisor_measurement"], claims.attributes["guest_measurement"]) == (hardware, guest)
    assert {f"pcr{index}" for index in range(24)} <= set(claims.registers)
    assert claims.registers["pcr0"] == "e15c44796beabf46abcec7c57e590942041e47497e4ec27571c8b7664f48dced"
    assert (claims.product, claims.vendor_root) == ("Milan", VENDORS.amd["Milan"].fingerprint)


def test_what_the_paravisor_says_of_the_vm_is_in_the_claims():
    attributes = verify(real("tdx"), now=REAL_NOW).attributes
    assert attributes["vm_secure_boot"] is True
    assert attributes["vm_vmUniqueId"] == "6332533D-5649-4D02-8AA7-8F64B7C3EE21"
    assert attributes["user_data"] == "0" * 128


def test_a_trust_domain_that_its_host_can_disturb_says_so():
    claims = verify(real("tdx"), now=REAL_NOW)
    assert (claims.weaknesses, claims.vendor_root) == (("sept-ve",), INTEL_ROOT)
    assert claims.tcb == {"module": 2, "module_major": 1, "seam_patch": 6, "qe": 5, "pce": 11}


def test_endorsements_give_a_real_trust_domain_its_status():
    collateral = (VECTORS / "dcap-tdx" / "tdx_v4_gcp_cos113.collateral.json").read_bytes()
    evidence = replace(real("tdx"), endorsements=collateral)
    claims = verify(evidence, now=REAL_NOW)
    assert claims.tcb_status == "OutOfDate"
    assert claims.advisories == ("INTEL-SA-00960", "INTEL-SA-00982", "INTEL-SA-00986")
    with pytest.raises(ExpiredError):
        verify(evidence, now=REAL_NOW + 90 * 24 * 3600)


def test_a_policy_can_accept_such_a_vm():
    vm = Vm()
    report_data = bytes(range(64))
    vm.extra_data = bound_data("azure-tdx", report_data)
    claims = verify(vm.evidence(), now=NOW, anchors=vm.intel.anchors())
    claims = replace(claims, vendor_root=INTEL_ROOT)
    wanted = ReferenceValues(
        tees=("azure-tdx",),
        measurements=(claims.measurement,),
        registers={"pcr7": ("07" * 32,)},
        weaknesses_allowed=("sept-ve",),
    )
    appraise(claims, wanted, expected_report_data=report_data, now=NOW)
    with pytest.raises(BindingError):
        appraise(claims, wanted, expected_report_data=bytes(64), now=NOW)
    with pytest.raises(AttestationError, match="weaknesses: got sept-ve"):
        appraise(claims, replace(wanted, weaknesses_allowed=()), expected_report_data=report_data, now=NOW)


def test_without_endorsements_there_is_no_status():
    vm = Vm(collateral=False)
    claims = replace(verify(vm.evidence(), now=NOW, anchors=vm.intel.anchors()), vendor_root=INTEL_ROOT)
    wanted = ReferenceValues(("azure-tdx",), (claims.measurement,), weaknesses_allowed=("sept-ve",))
    report_data = bytes(64)
    claims = replace(claims, report_data=bound_data("azure-tdx", report_data))
    with pytest.raises(TcbError, match="tcb status: got none"):
        appraise(claims, wanted, expected_report_data=report_data, now=NOW)


@pytest.mark.parametrize("digest", ["sha256", "sha384", "sha512"])
@pytest.mark.parametrize("request_version", [1, 2])
def test_every_digest_and_layout_of_the_report_is_read(digest, request_version):
    vm = Vm(digest=digest, request_version=request_version, collateral=False)
    assert verify(vm.evidence(), now=NOW, anchors=vm.intel.anchors()).report_data == vm.extra_data


def test_a_vm_may_quote_some_registers_only():
    vm = Vm(pcrs={4: b"4" * 32, 11: b"b" * 32}, collateral=False)
    claims = verify(vm.evidence(), now=NOW, anchors=vm.intel.anchors())
    assert {name for name in claims.registers if name.startswith("pcr")} == {"pcr4", "pcr11"}
    assert claims.attributes["guest_measurement"] == pcrs_measurement("sha256", vm.pcrs)


def test_a_debug_trust_domain_is_refused():
    vm = Vm(attributes=1)
    with pytest.raises(DebugEnclaveError, match="azure-tdx enclave: debug is on, wanted off"):
        verify(vm.evidence(), now=NOW, anchors=vm.intel.anchors())


def test_coco_evidence_of_every_version_is_the_same_evidence():
    """Version 0 has lists of numbers, and the certificate as PEM; version 2 has user data in the HCL report."""
    snp, tdx = document("snp"), document("tdx")

    def listed(text: str) -> list[int]:
        return list(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))

    def quote(tpm: dict) -> dict:
        hexes = {name: list(bytes.fromhex(tpm[name])) for name in ("signature", "message")}
        return hexes | {"pcrs": [list(bytes.fromhex(each)) for each in tpm["pcrs"]]}

    pem = "-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(bytes(listed(snp["vcek"]))).decode()
    old = {
        "quote": quote(snp["tpm_quote"]),
        "report": listed(snp["hcl_report"]),
        "vcek": pem + "-----END CERTIFICATE-----\n",
    }
    assert from_coco(old) == from_coco(snp) == from_coco(snp | {"version": 2})
    old = {
        "tpm_quote": quote(tdx["tpm_quote"]),
        "hcl_report": listed(tdx["hcl_report"]),
        "td_quote": listed(tdx["td_quote"]),
    }
    assert from_coco(old) == from_coco(tdx)
    assert from_coco(tdx | {"td_quote": tdx["td_quote"].rstrip("=")}) == from_coco(tdx)


@pytest.mark.parametrize(
    "change",
    [
        {"version": 3},
        {"version": True},
        {"version": "1"},
        {"tpm_quote": None},
        {"tpm_quote": {}},
        {"tpm_quote": {"pcrs": [], "message": "", "signature": ""}},
        {"hcl_report": None},
        {"hcl_report": [256]},
        {"hcl_report": [1, "2"]},
        {"hcl_report": "ü"},
        {"hcl_report": {"a": 1}},
        {"vcek": None},
        {"vcek": ""},
        {"vcek": [1, 2, 3]},
        {"td_quote": "AAAA"},
    ],
)
def test_other_coco_evidence_is_refused(change):
    with pytest.raises(StrongroomError):
        from_coco(document("snp") | change)


def test_each_register_that_is_quoted_must_be_there_once():
    wrong = document("snp")
    for pcrs in (wrong["tpm_quote"]["pcrs"][:-1], wrong["tpm_quote"]["pcrs"] * 2):
        with pytest.raises(FormatError, match="pcrs, wanted the 24 that are quoted"):
            from_coco(wrong | {"tpm_quote": wrong["tpm_quote"] | {"pcrs": pcrs}})
    vm = Vm(bank=0x0004)  # SHA-1
    with pytest.raises(VerificationError):
        verify(vm.evidence(), now=NOW, anchors=vm.intel.anchors())


def test_evidence_has_one_spelling():
    quote = real("snp").quote
    shown = parse_azure("azure-snp", quote)
    assert shown.to_bytes() == quote
    wire = json.loads(quote)
    for other in (
        quote + b" ",
        quote.replace(b":", b": ", 1),
        json.dumps(wire | {"x": ""}, separators=(",", ":"), sort_keys=True).encode(),
        json.dumps(wire | {"pcrs": {}}, separators=(",", ":"), sort_keys=True).encode(),
        json.dumps(wire | {"pcrs": {"32": "00" * 32}}, separators=(",", ":"), sort_keys=True).encode(),
        json.dumps(wire | {"pcrs": {"0": "AA" * 32}}, separators=(",", ":"), sort_keys=True).encode(),
        json.dumps(wire | {"message": "AB=="}, separators=(",", ":"), sort_keys=True).encode(),
    ):
        with pytest.raises(FormatError):
            parse_azure("azure-snp", other)
    with pytest.raises(FormatError, match="azure-tdx evidence: got "):
        parse_azure("azure-tdx", quote)


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (0, 0, "got magic"),
        (4, 3, "got version 3"),
        (8, 0, "do not add up"),
        (12, 1, "got request type 1, wanted 2"),
        (16, 1, "got status 1"),
        (20, 1, "got reserved bytes"),
        (1216, 0, "do not add up"),
        (1220, 3, "got request version 3"),
        (1220, 2, "do not add up"),
        (1224, 3, "got report type 3"),
        (1228, 0, "got digest 0"),
        (1232, 0, "do not add up"),
        (2599, 1, "do not add up"),
    ],
)
def test_an_hcl_report_whose_parts_are_off_is_refused(offset, value, message):
    raw = bytearray(parse_azure("azure-snp", real("snp").quote).hcl_report)
    raw[offset] = value
    with pytest.raises(FormatError, match=message):
        parse_hcl_report(bytes(raw))
    for size in (0, 32, 1216, 1235, 2300):
        with pytest.raises(FormatError):
            parse_hcl_report(bytes(raw[:size]))


@pytest.mark.parametrize(
    ("runtime", "message"),
    [
        (b"", "not JSON"),
        (b"[]", "wanted one RSA key HCLAkPub"),
        (b"\xff", "not JSON"),
        (b"[" * 5000, "not JSON"),
        (b'{"keys":[],"keys":[]}', "not JSON"),
        (b'{"keys":{}}', "wanted one RSA key"),
        (b'{"keys":[1]}', "wanted one RSA key"),
        (b'{"keys":[{"kid":"HCLAkPub","kty":"EC"}]}', "wanted one RSA key"),
        (b'{"keys":[{"kid":"HCLAkPub","kty":"RSA"}]}', "wanted a modulus and an exponent"),
        (b'{"keys":[{"kid":"HCLAkPub","kty":"RSA","n":"AQAB","e":"AQAB"}]}', "key"),
        (b'{"keys":[{"kid":"HCLAkPub","kty":"RSA","n":"\xc3\xbc","e":"AQAB"}]}', "wanted a modulus"),
        (b'{"keys":[{"kid":"HCLAkPub","kty":"RSA"},{"kid":"HCLAkPub"}]}', "wanted one RSA key"),
    ],
)
def test_runtime_claims_without_a_key_are_refused(runtime, message):
    with pytest.raises(FormatError, match=message):
        parse_hcl_report(Vm().hcl_report(bytes(584), runtime))


def test_the_quoted_registers_are_all_of_the_bank():
    assert len(PCRS) == len(parse_azure("azure-tdx", Vm().evidence().quote).pcrs) == 24
