"""What a host, or anybody, tries with SNP reports and AMD's certificates; each is refused."""

from __future__ import annotations

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding

from strongroom.attest.evidence import Evidence
from strongroom.attest.parse.endorsements import parse_endorsements
from strongroom.attest.verify import VENDORS, verify
from strongroom.attest.verify.anchors import AMD_INTERMEDIATES
from strongroom.errors import AttestationError, ExpiredError, FormatError, VerificationError
from tests.attest.amd import CHIP, NOW, Amd, amd_name, evidence, leaf_of, vector, with_byte
from tests.crypto.certificates import issue


def refused(
    shown: Evidence, match: str | None = None, error: type[Exception] = VerificationError, now: int = NOW, **options
) -> None:
    with pytest.raises(error, match=match):
        verify(shown, now=now, **options)


def test_every_byte_of_a_report_counts():
    """Bytes 0 to 0x29F are signed, the signature follows, and then zeros."""
    shown = vector("milan_v2")
    for place, value in enumerate(shown.quote):
        flipped = Evidence("snp", with_byte(shown.quote, place, value ^ 1 << place % 8), shown.endorsements)
        with pytest.raises((FormatError, AttestationError)):
            verify(flipped, now=NOW)


def test_the_one_malleable_part_is_the_signatures_own_and_no_claim_tells_it():
    # The order of P-384: (r, s) and (r, n - s) sign the same.
    order = int(
        "ffffffffffffffffffffffffffffffffffffffffffffffffc7634d81f4372ddf581a0db248b0a77aecec196accc52973", base=16
    )
    shown = vector("milan_v2")
    other = order - int.from_bytes(shown.quote[0x2E8:0x330], "little")
    turned = shown.quote[:0x2E8] + other.to_bytes(72, "little") + shown.quote[0x330:]
    assert turned != shown.quote
    assert verify(Evidence("snp", turned, shown.endorsements), now=NOW) == verify(shown, now=NOW)


def test_a_signature_outside_of_the_curves_order_is_refused():
    shown = vector("milan_v2").quote
    leaf = [leaf_of("milan_v2")]
    for r, s in ((0, 0), (0, 1), (1, 0), (2**576 - 1, 2**576 - 1)):
        forged = shown[:0x2A0] + r.to_bytes(72, "little") + s.to_bytes(72, "little") + shown[0x330:]
        refused(evidence(forged, leaf), "does not match")


def test_a_certificate_that_amd_did_not_sign_is_refused():
    refused(evidence(vector("milan_v2").quote, [leaf_of("forged")]), "not signed by")


def test_an_amd_of_ones_own_is_refused():
    amd = Amd()
    refused(amd.evidence(), "not signed by")
    refused(evidence(amd.report(), [amd.leaf.certificate]), "not signed by")
    everything = [amd.leaf.certificate, amd.issuer.certificate, amd.root.certificate]
    refused(evidence(amd.report(), everything), "not signed by")
    refused(evidence(amd.report(), [*everything, VENDORS.amd["Milan"]]), "not signed by")


def test_the_certificate_of_another_report_is_refused():
    refused(evidence(vector("milan_v2").quote, [leaf_of("milan_v2_debug")]), "certified for TCB|chip")
    refused(evidence(vector("milan_v2").quote, [leaf_of("genoa_v3")]), "certified for TCB|chip|match")


def test_a_providers_key_is_no_chips_and_a_chips_no_providers():
    refused(evidence(vector("milan_v2").quote, [leaf_of("milan_v3_vlek")]), "wanted that of the VCEK")
    refused(evidence(vector("milan_v3_vlek").quote, [leaf_of("milan_v2")]), "wanted that of the VLEK")
    chip, provider = Amd(), Amd(kind="VLEK")
    for report, party in ((chip.report(), provider), (provider.report(), chip)):
        shown = evidence(report, [party.leaf.certificate, party.issuer.certificate])
        refused(shown, "which signed the report", anchors=party.anchors)
    # A provider's leaf under the issuer of chips' keys, and other mixtures.
    for amd in (
        Amd(subject="SEV-VLEK"),
        Amd(subject="SEV-Milan"),
        Amd(subject="SEV-VCEK-x"),
        Amd(extensions={"4": None}),
        Amd(kind="VLEK", extensions={"4": CHIP}),
    ):
        refused(amd.evidence(), "which signed the report", anchors=amd.anchors)


def test_an_issuer_is_not_the_key_of_a_report():
    shown = vector("milan_v2").quote
    for certificates in (AMD_INTERMEDIATES["Milan"], [VENDORS.amd["Milan"]]):
        refused(evidence(shown, list(certificates)), "which signed the report")


def test_the_chain_of_another_product_is_refused():
    milan, genoa = Amd("Milan"), Amd("Genoa")
    # Genoa's issuer did not sign it; nor does Genoa's root lead there.
    refused(evidence(milan.report(), [milan.leaf.certificate, genoa.issuer.certificate]), anchors=milan.anchors)
    refused(milan.evidence(), "not signed by", anchors=genoa.anchors)
    refused(Amd("Milan", name="Genoa-B1").evidence(), "the leaf Genoa|'Genoa'", anchors=milan.anchors)
    refused(milan.evidence(cpuid=bytes([0x19, 0x11, 0])), "processor of Genoa", anchors=milan.anchors)
    refused(milan.evidence(cpuid=bytes(3)), "unknown here", error=FormatError, anchors=milan.anchors)


@pytest.mark.parametrize("product", ["Rome", "Venice"])
def test_a_product_that_is_unknown_is_refused(product):
    amd = Amd()
    stranger = issue(amd_name(f"SEV-{product}"), amd.issuer.key, amd.root, ca=True)
    oid = x509.ObjectIdentifier("1.3.6.1.4.1.3704.1.2")
    extensions = ((x509.UnrecognizedExtension(oid, bytes([0x16, len(product)]) + product.encode()), False),)
    hardware = (x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.3704.1.4"), CHIP), False)
    leaf = issue(amd_name("SEV-VCEK"), amd.leaf.key, stranger, extensions=(*extensions, hardware))
    refused(evidence(amd.report(), [leaf.certificate, stranger.certificate]), "product", anchors=amd.anchors)


@pytest.mark.parametrize("component", ["1", "2", "3", "8"])
def test_a_key_for_another_tcb_is_refused(component):
    """So a host with old firmware cannot say that it is new."""
    amd = Amd(extensions={f"3.{component}": b"\2\1\x7f"})
    refused(amd.evidence(), "certified for TCB", anchors=amd.anchors)


def test_a_report_of_another_tcb_is_refused():
    amd = Amd()
    refused(amd.evidence(tcb=bytes.fromhex("0400000000001bdf")), "certified for TCB", anchors=amd.anchors)
    turin = Amd("Turin")
    refused(turin.evidence(tcb=bytes.fromhex("0202030500000075")), "certified for TCB", anchors=turin.anchors)
    refused(turin.evidence(tcb=bytes.fromhex("0102030501000075")), "reserved", FormatError, anchors=turin.anchors)


@pytest.mark.parametrize("value", [None, b"", b"\2\1", b"\2\2\0\1", b"\2\2\1\4", b"\4\1\4", b"\2\1\x84", b"\2\1\4\0"])
def test_a_version_number_of_another_form_is_refused(value):
    amd = Amd(extensions={"3.1": value})
    refused(amd.evidence(), "3.1 is missing, or no number", FormatError, anchors=amd.anchors)


def test_the_key_of_another_chip_is_refused():
    for product in ("Milan", "Turin"):
        amd = Amd(product)
        other = with_byte(amd.hardware_id, 0, 0xEE)
        refused(amd.evidence(chip=other), "of chip", anchors=amd.anchors)
    # Turin's chips have eight bytes, and nothing hides behind them.
    refused(Amd("Turin").evidence(chip=CHIP), "wanted zeros after 8", anchors=Amd("Turin").anchors)
    for wrong in (CHIP[:63], b"\4\x40" + CHIP[:63], b"\4\x3f" + CHIP, b""):
        amd = Amd(extensions={"4": wrong})
        refused(amd.evidence(), "hardware id", FormatError, anchors=amd.anchors)


@pytest.mark.parametrize("value", [None, b"", b"\x16\x09Milan-B1", b"\x0c\x08Milan-B1", b"\x16\x08Milan-B\xff"])
def test_a_product_name_of_another_form_is_refused(value):
    amd = Amd(extensions={"2": value})
    refused(amd.evidence(), "1.2 is missing, or no text", FormatError, anchors=amd.anchors)


def test_a_provider_cannot_write_over_the_terminal():
    amd = Amd(kind="VLEK", extensions={"5": b"\x16\x05\x1b[2Jx"})
    refused(amd.evidence(), "not printable", FormatError, anchors=amd.anchors)


@pytest.mark.parametrize(
    ("options", "error", "reason"),
    [
        ({"end": NOW - 1}, ExpiredError, "not valid at"),
        ({"start": NOW + 1}, ExpiredError, "not valid at"),
        ({"constraints": True, "ca": True}, VerificationError, "a CA"),
        (
            {"rsa_padding": padding.PSS(padding.MGF1(hashes.SHA384()), 32)},
            VerificationError,
            "signed with RSA-PSS sha384 32",
        ),
        ({"rsa_padding": padding.PKCS1v15()}, VerificationError, "signed with RSA sha384"),
        (
            {"algorithm": hashes.SHA256(), "rsa_padding": padding.PSS(padding.MGF1(hashes.SHA256()), 48)},
            VerificationError,
            "signed with RSA-PSS sha256",
        ),
    ],
)
def test_a_leaf_is_as_amd_makes_them(options, error, reason):
    amd = Amd(options=options)
    refused(amd.evidence(), reason, error, anchors=amd.anchors)


def test_a_list_of_the_issuers_other_side_is_refused():
    amd, other = Amd(), Amd(kind="VLEK")
    refused(amd.evidence((amd.revoking(other.issuer),)), "of no issuer", anchors=amd.anchors)


def test_without_a_certificate_there_is_nothing_to_verify():
    for endorsements in (b"", b'{"certificates":""}'):
        refused(Evidence("snp", vector("milan_v2").quote, endorsements), "no certificates", FormatError)
    with pytest.raises(FormatError):
        parse_endorsements(b"\0")


def test_every_third_byte_of_a_real_certificate_counts():
    shown, leaf = vector("milan_v2"), leaf_of("milan_v2")
    for place in range(0, len(leaf.der), 3):
        der = with_byte(leaf.der, place, leaf.der[place] ^ 1 << place % 8)
        with pytest.raises((FormatError, AttestationError)):
            verify(evidence(shown.quote, [type(leaf)(der)]), now=NOW)
