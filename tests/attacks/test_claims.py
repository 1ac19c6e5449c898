"""What the owner of a machine may try so that evidence which is signed as it should be says more than is true."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from cryptography import x509

from strongroom.attest.endorsements.cache import Cache
from strongroom.attest.evidence import Evidence
from strongroom.attest.files import read_evidence
from strongroom.attest.parse.azure import from_coco, parse_azure
from strongroom.attest.parse.collateral import parse_collateral
from strongroom.attest.parse.dcap import parse_quote
from strongroom.attest.parse.endorsements import Endorsements
from strongroom.attest.parse.tpm import TpmEvidence
from strongroom.attest.tee import dcap
from strongroom.attest.verify import VENDORS, verify
from strongroom.attest.verify.dcap_chain import follow
from strongroom.attest.verify.dcap_tcb import judge
from strongroom.crypto.chains import VendorKey
from strongroom.crypto.tpm import AK_USAGE
from strongroom.crypto.vendor import pem_chain
from strongroom.errors import FormatError, StrongroomError, VerificationError
from strongroom.testing.event_log import FirmwareLog, variable
from strongroom.testing.nvidia import SimulatedNvidia
from tests.attest.azure import Vm
from tests.attest.intel import NOW, QUOTING, SEPT_VE_DISABLE, VALID, Intel, sgx_body, td_body
from tests.attest.tpms import P256, attest, check, public_area, quoted, sign, spki
from tests.crypto.certificates import P384, START, issue

# Who signs what Intel says of platforms. The key of a platform, PCK, is under Intel's root as well, and whoever breaks
# that one platform has it.


def kinds() -> list[tuple[str, bytes, int, Intel]]:
    return [
        ("tdx", td_body(), 4, Intel(quoting=QUOTING["tdx"])),
        ("sgx", sgx_body(), 3, Intel(quoting=QUOTING["sgx"])),
        ("sgx", sgx_body(), 4, Intel(quoting=QUOTING["sgx"])),
        ("simulated", td_body(), 4, Intel()),
    ]


def edited(evidence: Evidence, **changes: object) -> Evidence:
    return replace(evidence, endorsements=json.dumps(json.loads(evidence.endorsements) | changes).encode())


def signed_by_platform(intel: Intel, evidence: Evidence, part: str) -> Evidence:
    """What `part` says, under the platform's own signature."""
    document = json.loads(evidence.endorsements)[part]
    chain = pem_chain(*(each.der for each in parse_quote(evidence.quote).certificates))
    signature = intel._pck.sign(document.encode()).hex()
    return edited(evidence, **{f"{part}_signature": signature, f"{part}_issuer_chain": chain})


@pytest.mark.parametrize("kind", range(4))
@pytest.mark.parametrize("part", ["tcb_info", "qe_identity"])
def test_a_platform_does_not_say_how_new_it_is(kind, part):
    tee, body, version, intel = kinds()[kind]
    evidence = intel.evidence(body, tee=tee, version=version)
    verify(evidence, now=NOW, anchors=intel.anchors())
    with pytest.raises(VerificationError, match=r"certificate .*Tests PCK.* not signed by .*Tests Root"):
        verify(signed_by_platform(intel, evidence, part), now=NOW, anchors=intel.anchors())


def test_a_platform_behind_azure_s_does_not_either():
    vm = Vm()
    evidence = vm.evidence()
    verify(evidence, now=NOW, anchors=vm.intel.anchors())
    quote = parse_azure("azure-tdx", evidence.quote).td_quote
    forged = signed_by_platform(vm.intel, Evidence("tdx", quote, evidence.endorsements), "tcb_info").endorsements
    with pytest.raises(VerificationError, match=r"not signed by .*Tests Root"):
        verify(replace(evidence, endorsements=forged), now=NOW, anchors=vm.intel.anchors())


@pytest.mark.parametrize("what", [{"ca": True}, {"extensions": {dcap.SGX_EXTENSION: b"\x05\0"}}])
def test_other_certificates_of_the_root_sign_no_tcb_information(what):
    intel = Intel(quoting=QUOTING["tdx"])
    evidence = intel.evidence(td_body(), tee="tdx")
    leaf = intel._root.certificate("Tests TCB", intel._tcb.public, VALID, **({"ca": False} | what))
    platform = follow(parse_quote(evidence.quote), intel.root, now=NOW)
    forged = edited(evidence, tcb_info_issuer_chain=pem_chain(leaf, intel.root.der))
    with pytest.raises(VerificationError, match=r"signed by .*Tests TCB.*, wanted Intel's signer of TCBs"):
        judge(parse_quote(evidence.quote), platform, parse_collateral(forged.endorsements), intel.root, now=NOW)
    with pytest.raises(StrongroomError):
        verify(forged, now=NOW, anchors=intel.anchors())


def test_under_intel_s_root_the_signer_has_the_name_that_intel_gave_it(monkeypatch):
    intel = Intel(quoting=QUOTING["tdx"])
    evidence = intel.evidence(td_body(), tee="tdx")
    monkeypatch.setattr("strongroom.attest.verify.dcap_tcb.INTEL_ROOT", intel.root.fingerprint)
    with pytest.raises(VerificationError, match="wanted Intel's signer of TCBs"):
        verify(evidence, now=NOW, anchors=intel.anchors())


# Two opinions on a TCB.


@pytest.mark.parametrize(
    ("platform", "enclave", "module", "status"),
    [
        ("UpToDate", "ConfigurationNeeded", "OutOfDate", "OutOfDate"),
        ("UpToDate", "OutOfDateConfigurationNeeded", "UpToDate", "OutOfDateConfigurationNeeded"),
        ("SWHardeningNeeded", "ConfigurationNeeded", "UpToDate", "ConfigurationNeeded"),
        ("SWHardeningNeeded", "OutOfDateConfigurationNeeded", "OutOfDate", "OutOfDateConfigurationNeeded"),
        ("OutOfDate", "ConfigurationNeeded", "UpToDate", "OutOfDate"),
    ],
)
def test_the_worse_of_two_opinions_counts(platform, enclave, module, status):
    intel = Intel(quoting=QUOTING["tdx"])
    info = json.loads(dcap.tcb_info(VALID.start, VALID.end))
    levels = json.loads(dcap.qe_identity(VALID.start, VALID.end))["tcbLevels"]
    info["tcbLevels"][0] |= {"tcbStatus": platform, "advisoryIDs": ["A-1"]}
    info["tdxModuleIdentities"][0]["tcbLevels"][0] |= {"tcbStatus": module, "advisoryIDs": ["A-2"]}
    levels[0] |= {"tcbStatus": enclave, "advisoryIDs": ["A-3"]}
    intel.tcb_edits = {name: info[name] for name in ("tcbLevels", "tdxModuleIdentities")}
    intel.qe_edits = {"tcbLevels": levels}
    claims = verify(intel.evidence(td_body(), tee="tdx"), now=NOW, anchors=intel.anchors())
    assert (claims.tcb_status, set(claims.advisories)) == (status, {"A-1", "A-2", "A-3"})


# Attributes that this version does not know.


def test_bits_that_nobody_here_knows_are_a_weakness():
    vm = Vm()
    for bit, weaknesses in ((8, ("attribute-bits",)), (63, ()), (40, ("attribute-bits",))):
        vm.attributes = SEPT_VE_DISABLE | 1 << bit
        assert verify(vm.evidence(), now=NOW, anchors=vm.intel.anchors()).weaknesses == weaknesses
    intel = Intel(quoting=QUOTING["sgx"])
    for version in (3, 4):
        evidence = intel.evidence(sgx_body(flags=0x5 | 1 << 20), tee="sgx", version=version)
        assert verify(evidence, now=NOW, anchors=intel.anchors()).weaknesses == ("attribute-bits",)


def test_a_trust_domain_to_which_service_tds_may_be_bound_may_be_moved():
    vm = Vm(attributes=SEPT_VE_DISABLE | 1 << 17)
    assert verify(vm.evidence(), now=NOW, anchors=vm.intel.anchors()).migratable


@pytest.mark.parametrize("version", [3, 4])
def test_an_enclave_that_was_never_initialised_is_refused(version):
    intel = Intel(quoting=QUOTING["sgx"])
    with pytest.raises(VerificationError, match=r"ATTRIBUTES\.INIT is 0"):
        verify(intel.evidence(sgx_body(flags=0x4), tee="sgx", version=version), now=NOW, anchors=intel.anchors())


def test_a_vtpm_that_quotes_only_what_programs_can_reset_is_weak():
    vm = Vm(attributes=SEPT_VE_DISABLE, pcrs={23: b"\t" * 32})
    assert verify(vm.evidence(), now=NOW, anchors=vm.intel.anchors()).weaknesses == ("pcr-resettable",)


# A TPM's event log: a host writes the types of events as it likes.

SEPARATOR, IPL, VARIABLE = 0x4, 0xD, 0x80000001
ON, OFF = (variable("SecureBoot", value) for value in (b"\1", b"\0"))


@pytest.mark.parametrize("end", [bytes(4), b"\xff" * 4], ids=["zeros", "ones"])
@pytest.mark.parametrize("hidden", [OFF, b"?"], ids=["data", "digest alone"])
def test_secure_boot_is_not_switched_on_by_who_was_booted(end, hidden):
    true = FirmwareLog(("sha256",))
    for kind, data in ((VARIABLE, OFF), (SEPARATOR, end), (VARIABLE, ON)):  # the last by the system that was booted
        true.measure(7, kind, data)
    forged = FirmwareLog(("sha256",))
    forged.measure(7, IPL, hidden, digested=OFF)
    forged.measure(7, IPL, end)
    forged.measure(7, VARIABLE, ON)
    pcrs = {"sha256": true.pcrs("sha256")}
    assert forged.pcrs("sha256") == pcrs["sha256"]
    told = [
        check(replace(quoted(pcrs=pcrs), event_log=log.to_bytes()), VendorKey(spki(P256))).attributes.get("secure_boot")
        for log in (true, forged)
    ]
    assert told == [False, False if hidden == OFF else None]


# Certificates of other keys under the same root.

ROOT = issue("TPM root", P384["root"], ca=True)
SIGNS = ("digital_signature",)


def usage(*identifiers: str) -> tuple[tuple[x509.ExtensionType, bool], ...]:
    return ((x509.ExtendedKeyUsage([x509.ObjectIdentifier(each) for each in identifiers]), False),)


EMPTY = ((x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.37"), b"\x30\0"), False),)


def certified(public: bool, **of_leaf: object) -> str:
    message = attest({"sha256": {7: bytes(32)}}, b"n" * 32)
    area = {"public": public_area(P256, 0x00050072)} if public else {"spki": spki(P256)}
    shown = TpmEvidence(message, sign(P256, message), {"sha256": {7: bytes(32)}}, **area)
    leaf = issue("key", P256, ROOT, serial=9, **of_leaf).certificate
    evidence = Evidence("tpm", shown.to_bytes(), Endorsements((leaf,)).to_bytes())
    return verify(evidence, now=START + 1, anchors=replace(VENDORS, tpm=(ROOT.certificate,))).vendor_root


@pytest.mark.parametrize("public", [True, False])
def test_a_key_for_something_else_attests_nothing(public):
    for of_leaf in (
        {"extensions": usage("2.23.133.8.1"), "usages": SIGNS},  # an endorsement key
        {"extensions": usage("1.3.6.1.5.5.7.3.1"), "usages": SIGNS},  # a server of TLS
        {"extensions": usage("2.5.29.37.0"), "usages": SIGNS},  # any
        {"extensions": EMPTY, "usages": SIGNS},
        {"extensions": usage(AK_USAGE), "usages": ("key_encipherment",)},
        {"usages": ("key_encipherment",)},  # endorsement keys as many makers certify them
        {"usages": ("key_agreement",)},
        {"usages": ("digital_signature", "key_encipherment")},
        {},
    ):
        with pytest.raises(StrongroomError, match="certificate"):
            certified(public, **of_leaf)
    for of_leaf in (
        {"extensions": usage(AK_USAGE)},
        {"extensions": usage(AK_USAGE), "usages": SIGNS},
        {"usages": SIGNS},
    ):
        assert certified(public, **of_leaf) == ROOT.certificate.fingerprint


# A GPU's firmware: each has a key of its own, whose certificate names it.


def test_other_firmware_of_a_gpu_does_not_pass_by_saying_nothing(monkeypatch):
    maker = SimulatedNvidia(now=NOW)
    anchors = replace(VENDORS, nvidia=maker.root)
    honest = verify(maker.gpu().answer(bytes(32)), now=NOW, anchors=anchors)
    with pytest.raises(VerificationError, match="got firmware id none"):
        verify(maker.gpu(fields={3: b"1.0\0"}).answer(bytes(32)), now=NOW, anchors=anchors)
    monkeypatch.setattr("strongroom.testing.nvidia._FIRMWARE", b"e" * 48)
    other = verify(maker.gpu(fields={20: b"e" * 48}).answer(bytes(32)), now=NOW, anchors=anchors)
    assert other.measurement == honest.measurement
    assert other.registers["firmware_id"] == (b"e" * 48).hex() != honest.registers["firmware_id"]


# Text of a stranger's.


@pytest.mark.parametrize("size", [500, 500_000])
def test_what_cannot_be_read_is_refused_without_reading_it_again(size):
    """Once the time for this was by the square of the size: hours."""
    evidence = Intel().evidence(td_body())
    with pytest.raises(FormatError) as refused:
        verify(replace(evidence, endorsements=json.dumps("{" * size).encode()), now=NOW)
    assert len(refused.value.message) < 400
    intel = Intel(tcb_edits={"version": "{" * size})
    with pytest.raises(VerificationError):
        verify(intel.evidence(td_body()), now=NOW)


ESCAPES = "\x1b[31m\x07\ud800\u202e"


@pytest.mark.parametrize(
    "attempt",
    [
        lambda: from_coco({"version": ESCAPES}),
        lambda: parse_azure("azure-snp", json.dumps({ESCAPES.replace("\ud800", ""): 1}, ensure_ascii=False).encode()),
        lambda: read_evidence(json.dumps({ESCAPES: 1}).encode()),
        lambda: read_evidence(
            json.dumps({"primary_evidence": {}, "additional_evidence": f'{{"{ESCAPES}":1}}'}).encode()
        ),
        lambda: verify(Intel(tcb_edits=levels("tcbStatus", "\x1b[31m")).evidence(td_body()), now=NOW),
        lambda: verify(Intel(tcb_edits=levels("advisoryIDs", ["\x1b[31m"])).evidence(td_body()), now=NOW),
    ],
)
def test_refusals_and_claims_can_be_printed(attempt):
    with pytest.raises(StrongroomError) as refused:
        attempt()
    assert f"{refused.value.message}{refused.value.hint or ''}".isprintable()


def levels(name: str, value: object) -> dict[str, object]:
    found = json.loads(dcap.tcb_info(VALID.start, VALID.end))["tcbLevels"]
    return {"tcbLevels": [found[0] | {name: value}]}


def test_a_directory_in_the_cache_stops_nobody_from_pruning_it(tmp_path):
    (tmp_path / "x.json").mkdir()
    (tmp_path / "y.json").write_text("{}")
    assert Cache(tmp_path).prune(NOW) == 1
    assert [each.name for each in tmp_path.iterdir()] == ["x.json"]
