"""Reports of AMD SEV-SNP: what a verified one says, and what a policy makes of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from strongroom.attest.appraise import ReferenceValues, appraise
from strongroom.attest.claims import Claims
from strongroom.attest.parse.snp import parse_snp, product_of, tcb_components
from strongroom.attest.verify import VENDORS, verify
from strongroom.attest.verify.anchors import AMD_INTERMEDIATES
from strongroom.errors import (
    AttestationError,
    DebugEnclaveError,
    ExpiredError,
    FormatError,
    MeasurementError,
    TcbError,
    VerificationError,
)
from tests.attest.amd import CHIP, NOW, Amd, evidence, leaf_of, vector, with_byte

REAL = ("milan_v2", "milan_v2_debug", "milan_v3_vlek", "genoa_v3")
MILAN_ROOT = "sha256:69d063b45344d26a2e94e1f4210de49ef555308287d4c174445c95639a540bcd"


def claims_of(amd: Amd, **changes: object) -> Claims:
    return verify(amd.evidence(**changes), now=NOW, anchors=amd.anchors)


def appraised(claims: Claims, reference: ReferenceValues) -> None:
    """Appraises as if the tests' AMD were AMD."""
    appraise(replace(claims, vendor_root=MILAN_ROOT), reference, expected_report_data=claims.report_data, now=NOW)


# Real reports


@pytest.mark.parametrize("name", REAL)
def test_real_reports_are_verified_while_their_certificates_are_valid(name):
    shown = vector(name)
    assert verify(shown, now=NOW).tee == "snp"
    start, end = leaf_of(name).valid
    for now in (start, end):
        verify(shown, now=now)
    for now in (start - 1, end + 1):
        with pytest.raises(ExpiredError, match="not valid at"):
            verify(shown, now=now)


def test_a_real_report_says_what_was_launched_where():
    claims = verify(vector("milan_v2"), now=NOW)
    assert claims.measurement == (
        "7a1e5c266c0108dbc9bb94fa926951320940915d0aafb42464bd88b579ea158d3e1a0dc39b2c60bd95b9c480cd81841f"
    )
    assert claims.report_data.hex().startswith("d447b55d197491bfe15cf298f9de9986")
    assert (claims.product, claims.vendor_root, claims.debug) == ("Milan", MILAN_ROOT, False)
    assert claims.tcb == {"bootloader": 3, "tee": 0, "snp": 8, "microcode": 115}
    assert claims.hardware_id.startswith("d49554ec717f4e5b0fe6")
    assert (claims.signer, claims.weaknesses, claims.migratable) == ("", (), False)
    assert (claims.attributes["report_version"], claims.attributes["signing_key"]) == (2, "VCEK")


def test_a_real_guest_with_debugging_is_authentic_and_refused():
    claims = verify(vector("milan_v2_debug"), now=NOW)
    assert claims.debug
    with pytest.raises(DebugEnclaveError):
        appraised(claims, wanted(claims))


def test_a_real_report_under_a_providers_key_names_the_provider_and_no_chip():
    claims = verify(vector("milan_v3_vlek"), now=NOW)
    assert claims.attributes["provider"] == "CN=cc-us-east-2.amazonaws.com"
    assert (claims.hardware_id, claims.attributes["chip_id_masked"], claims.weaknesses) == ("", True, ("vmpl",))


def test_a_real_guest_with_an_id_key_names_its_signer():
    claims = verify(vector("genoa_v3"), now=NOW)
    assert (claims.product, claims.signer[:16], claims.attributes["guest_svn"]) == ("Genoa", "942fd93ebde6ea7a", 65547)
    assert claims.registers["id_key_digest"] == claims.signer


@pytest.mark.parametrize("name", REAL)
def test_the_issuers_may_come_along(name):
    shown, leaf = vector(name), leaf_of(name)
    product = verify(shown, now=NOW).product
    issuers = [each for each in AMD_INTERMEDIATES[product] if each.subject == leaf.issuer]
    for certificates in ([leaf, *issuers], [leaf, *issuers, VENDORS.amd[product]]):
        assert verify(evidence(shown.quote, certificates), now=NOW) == verify(shown, now=NOW)


def test_certificates_of_other_keys_may_lie_beside():
    """A host's table may hold both kinds of key, and the issuer of one of them."""
    for name, other in (("milan_v2", "milan_v3_vlek"), ("milan_v3_vlek", "milan_v2")):
        shown = vector(name)
        for issuers in ([], AMD_INTERMEDIATES["Milan"][:1], AMD_INTERMEDIATES["Milan"][::-1]):
            for leaves in ([leaf_of(name), leaf_of(other)], [leaf_of(other), leaf_of(name)]):
                assert verify(evidence(shown.quote, [*leaves, *issuers]), now=NOW) == verify(shown, now=NOW)


# Fields


@pytest.mark.parametrize("product", ["Milan", "Genoa", "Turin"])
@pytest.mark.parametrize("kind", ["VCEK", "VLEK"])
@pytest.mark.parametrize("version", [2, 3, 4, 5])
def test_every_product_key_and_version(product, kind, version):
    claims = claims_of(Amd(product, kind), version=version)
    told = CHIP[:8].hex() if product == "Turin" else CHIP.hex()
    assert (claims.product, claims.hardware_id) == (product, told if kind == "VCEK" else "")
    assert (
        claims.tcb
        == {
            "Milan": {"bootloader": 4, "tee": 0, "snp": 27, "microcode": 222},
            "Genoa": {"bootloader": 10, "tee": 0, "snp": 23, "microcode": 84},
            "Turin": {"fmc": 1, "bootloader": 2, "tee": 3, "snp": 5, "microcode": 117},
        }[product]
    )
    assert ("cpuid" in claims.attributes) == (version >= 3)
    assert claims.attributes.get("launch_mitigations") == ("0xb" if version >= 4 else None)
    assert claims.attributes.get("current_mitigations") == ("0xf" if version >= 4 else None)
    assert claims.measurement == (b"m" * 48).hex() and claims.report_data == b"d" * 64


def test_what_was_given_at_launch_is_for_a_policy_to_ask_for():
    claims = claims_of(Amd(), id_key=b"k" * 48, author_key=b"a" * 48, key_info=1)
    assert claims.signer == (b"k" * 48).hex()
    assert claims.registers == {
        "host_data": (b"h" * 32).hex(),
        "family_id": (b"f" * 16).hex(),
        "image_id": (b"i" * 16).hex(),
        "id_key_digest": (b"k" * 48).hex(),
        "author_key_digest": (b"a" * 48).hex(),
    }
    assert claims.attributes["author_key_enabled"] and claims.attributes["guest_svn"] == 6
    assert (claims.attributes["current_version"], claims.attributes["committed_version"]) == ("1.55.35", "1.55.34")
    reference = wanted(claims)
    appraised(claims, reference)
    other = replace(reference, registers={"host_data": ("00" * 32,)})
    with pytest.raises(MeasurementError, match="host_data"):
        appraised(claims, other)


def test_the_guests_policy_is_told_bit_by_bit():
    attributes = claims_of(Amd(), policy=0x02F2_0133).attributes
    assert attributes["policy"] == "0x2f20133" and attributes["policy_abi"] == "1.51"
    told = {name: value for name, value in attributes.items() if name.startswith("policy_") and value is True}
    assert set(told) == {
        "policy_cxl_allowed",
        "policy_aes_256_xts",
        "policy_rapl_disabled",
        "policy_single_socket",
        "policy_page_swap_disabled",
    }
    platform = claims_of(Amd(), platform=0xFF).attributes
    assert all(value for name, value in platform.items() if name.startswith("platform_"))


@pytest.mark.parametrize(
    ("changes", "debug", "migratable", "weaknesses"),
    [
        ({"policy": 0x3001F | 1 << 19}, True, False, ()),
        ({"policy": 0x3001F | 1 << 18}, False, True, ()),
        ({"report_id_ma": b"\1" * 32}, False, True, ()),
        ({"report_id_ma": bytes(32)}, False, False, ()),
        ({"vmpl": 1}, False, False, ("vmpl",)),
        ({"vmpl": 3}, False, False, ("vmpl",)),
        ({"policy": 0x3001F | 1 << 26}, False, False, ("policy-bits",)),
        ({"policy": 0x3001F | 1 << 63, "vmpl": 2}, False, False, ("vmpl", "policy-bits")),
    ],
)
def test_what_takes_from_a_guests_isolation_is_refused_by_default(changes, debug, migratable, weaknesses):
    claims = claims_of(Amd(), **changes)
    assert (claims.debug, claims.migratable, claims.weaknesses) == (debug, migratable, weaknesses)
    reference = wanted(claims)
    allowed = replace(reference, weaknesses_allowed=("vmpl", "policy-bits", "migratable"))
    if debug:
        with pytest.raises(DebugEnclaveError):
            appraised(claims, allowed)
        return
    if weaknesses or migratable:
        with pytest.raises(AttestationError, match="weaknesses"):
            appraised(claims, reference)
    appraised(claims, allowed)


def wanted(claims: Claims) -> ReferenceValues:
    return ReferenceValues(
        tees=("snp",),
        measurements=(claims.measurement,),
        minimum_tcb={"snp": dict(claims.tcb)},
        hardware_ids=(claims.hardware_id,) if claims.hardware_id else None,
    )


def test_a_policy_names_the_lowest_tcb_and_the_chips():
    claims = verify(vector("milan_v2"), now=NOW)
    reference = wanted(claims)
    appraised(claims, reference)
    for refused, error in (
        (replace(reference, minimum_tcb={"snp": {**claims.tcb, "snp": 9}}), TcbError),
        (replace(reference, minimum_tcb={}), TcbError),
        (replace(reference, hardware_ids=("00" * 64,)), AttestationError),
    ):
        with pytest.raises(error):
            appraised(claims, refused)


# Chips


@pytest.mark.parametrize("product", ["Milan", "Genoa", "Turin"])
def test_a_hidden_chip_is_named_by_its_certificate(product):
    amd = Amd(product)
    claims = claims_of(amd, chip=bytes(64))
    assert (claims.hardware_id, claims.attributes["chip_id_masked"]) == (amd.hardware_id.hex(), True)


def test_a_hardware_id_may_be_an_octet_string():
    for product, size in (("Milan", 64), ("Turin", 8)):
        amd = Amd(product)
        wrapped = Amd(product, extensions={"4": bytes([4, size]) + amd.hardware_id})
        assert claims_of(wrapped).hardware_id == amd.hardware_id.hex()


def test_a_provider_may_tell_the_chip():
    assert claims_of(Amd(kind="VLEK"), chip=CHIP).hardware_id == CHIP.hex()


@pytest.mark.parametrize("name", ["Genoa", "Genoa-B2", "Siena-A0", "Bergamo"])
def test_siblings_of_genoa_sign_with_its_chain(name):
    assert claims_of(Amd("Genoa", name=name), cpuid=bytes([0x19, 0xA1, 2])).product == "Genoa"


# Revocation


def test_revocation_lists_are_obeyed_and_told():
    amd = Amd()
    lists = (amd.revoking(amd.root, 77), amd.revoking(amd.issuer, 77))
    assert verify(amd.evidence(lists), now=NOW, anchors=amd.anchors).attributes["revocation"] == "lists"
    assert claims_of(amd).attributes["revocation"] == "not checked"
    # AMD publishes the root's lists alone: those are what it takes.
    for given, told in ((lists, "checked"), (lists[:1], "checked"), (lists[1:], "not checked"), ((), "not checked")):
        assert verify(amd.evidence(given), now=NOW, anchors=amd.anchors).revocation == told
    for revoked in (amd.revoking(amd.root, 2), amd.revoking(amd.issuer, 3)):
        with pytest.raises(VerificationError, match="revoked"):
            verify(amd.evidence((revoked,)), now=NOW, anchors=amd.anchors)


# Parsing


@pytest.mark.parametrize("version", [0, 1, 6, 2**32 - 1])
def test_other_versions_are_refused(version):
    with pytest.raises(FormatError, match=r"version \d+, wanted 2 to 5"):
        parse_snp(Amd().report(version=version))


@pytest.mark.parametrize("size", [0, 1183, 1185, 4096])
def test_other_sizes_are_refused(size):
    with pytest.raises(FormatError, match="wanted 1184"):
        parse_snp(bytes(size))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"algorithm": 0}, "signature algorithm"),
        ({"algorithm": 2}, "signature algorithm"),
        ({"key_info": 7 << 2}, "signing key 7"),
        ({"key_info": 2 << 2}, "signing key 2"),
        ({"key_info": 1 << 5}, "0x48"),
        ({"key_info": 1 << 31}, "0x48"),
        ({"at": {0x4F: b"\1"}}, "0x4c"),
        ({"vmpl": 4}, "VMPL 4"),
        ({"vmpl": 2**32 - 1}, "VMPL 4294967295"),
        ({"policy": 0x1001F}, "bit 17"),
        ({"at": {0x18B: b"\1"}}, "0x188"),
        ({"version": 2, "at": {0x188: b"\x19"}}, "0x188"),
        ({"at": {0x1EB: b"\1"}}, "0x1eb"),
        ({"at": {0x1EF: b"\1"}}, "0x1ef"),
        ({"at": {0x208: b"\1"}}, "0x1f8"),
        ({"at": {0x29F: b"\1"}}, "0x1f8"),
        ({"version": 3, "at": {0x1F8: b"\1"}}, "0x1f8"),
    ],
)
def test_what_amd_reserves_must_be_as_amd_says(changes, reason):
    with pytest.raises(FormatError, match=reason):
        parse_snp(Amd().report(**changes))


def test_a_report_that_the_host_asked_for_says_so():
    with pytest.raises(FormatError) as caught:
        parse_snp(Amd().report(vmpl=2**32 - 1))
    assert "the host asked" in (caught.value.hint or "")


@pytest.mark.parametrize("place", [0x330, 0x400, 0x49F])
def test_bytes_after_the_signature_are_zero(place):
    with pytest.raises(FormatError, match="0x330"):
        parse_snp(with_byte(vector("milan_v2").quote, place, 1))


def test_products_and_tcb_versions_that_are_unknown_are_refused():
    assert [product_of(0x19, 0x0F), product_of(0x19, 0xAF), product_of(0x1A, 0x11)] == ["Milan", "Genoa", "Turin"]
    for family, model in ((0x17, 1), (0x19, 0x20), (0x19, 0x9F), (0x1A, 0x50), (0x1B, 0)):
        with pytest.raises(FormatError, match="unknown here"):
            product_of(family, model)
    for product, place in (("Milan", 2), ("Milan", 5), ("Genoa", 3), ("Turin", 4), ("Turin", 6)):
        with pytest.raises(FormatError, match="reserved bytes"):
            tcb_components(with_byte(bytes(8), place, 1), product)
