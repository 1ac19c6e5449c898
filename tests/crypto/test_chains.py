"""Chains of vendors' certificates: what is followed, and what is refused."""

from __future__ import annotations

import base64
import subprocess
import sys

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding

from strongroom.crypto import chains
from strongroom.crypto.chains import RevocationList, VendorCertificate, pem_certificates, verify_chain
from strongroom.errors import ExpiredError, FormatError, VerificationError
from tests.crypto.certificates import (
    END,
    NOW,
    P384,
    RSA,
    START,
    Party,
    chain,
    issue,
    revocation_list,
    signed_again,
)

UNKNOWN = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.99999.1"), b"\x05\x00")


def follow(*parties: Party, now: int = NOW, **options) -> None:
    *below, root = (each.certificate for each in parties)
    verify_chain(below, root, now=now, **options)


def refused(*parties: Party, match: str, error: type[Exception] = VerificationError, **options) -> None:
    with pytest.raises(error, match=match):
        follow(*parties, **options)


def test_a_chain_is_followed_to_its_root_which_may_be_repeated():
    leaf, middle, root = chain()
    follow(leaf, middle, root)
    verify_chain([each.certificate for each in (leaf, middle, root)], root.certificate, now=NOW)


@pytest.mark.parametrize(
    ("scheme", "options"),
    [
        ("RSA-PSS sha384 48", {}),
        (
            "RSA-PSS sha256 32",
            {"algorithm": hashes.SHA256(), "rsa_padding": padding.PSS(padding.MGF1(hashes.SHA256()), 32)},
        ),
        ("RSA sha512", {"algorithm": hashes.SHA512(), "rsa_padding": padding.PKCS1v15()}),
    ],
)
def test_rsa_chains_say_with_what_they_are_signed(scheme, options):
    root = issue("root", RSA["root"], ca=True, **options)
    middle = issue("middle", RSA["middle"], root, ca=True, serial=8, **options)
    leaf = issue("leaf", P384["leaf"], middle, serial=9, **options)
    follow(leaf, middle, root)
    assert leaf.certificate.signed_with == scheme
    follow(leaf, middle, root, revocation_lists=[revocation_list(root, 99), revocation_list(middle)])


def test_an_ecdsa_chain_says_with_what_it_is_signed():
    assert chain()[0].certificate.signed_with == "ECDSA sha384"


def test_no_chain_at_all_is_refused():
    leaf, middle, root = chain()
    refused(root, match="0 certificates")
    with pytest.raises(VerificationError, match="0 certificates"):
        verify_chain([root.certificate], root.certificate, now=NOW)
    refused(root, root, root, match="twice")
    refused(leaf, middle, middle, root, match="twice")
    refused(leaf, root, middle, root, match="twice")


def test_a_chain_is_at_most_eight_certificates_long():
    parties = [issue("root", P384["root"], ca=True)]
    for i in range(8):
        parties.insert(0, issue(f"ca {i}", P384["middle"], parties[0], ca=True))
    parties.insert(0, issue("leaf", P384["leaf"], parties[0]))
    refused(*parties, match="9 certificates")
    follow(issue("leaf", P384["leaf"], parties[2]), *parties[2:])


def test_whoever_did_not_sign_is_no_issuer():
    leaf, middle, root = chain()
    refused(middle, leaf, root, match="CA|signed")
    refused(leaf, root, match="not signed by")
    # The same name, another key; and the same key, another name.
    refused(leaf, issue("middle", P384["other"], root, ca=True), root, match="not signed by")
    refused(leaf, issue("muddle", P384["middle"], root, ca=True), root, match="not signed by")
    refused(leaf, middle, issue("root", P384["other"], ca=True), match="not signed by")


def test_a_root_signed_itself():
    leaf, middle, root = chain()
    cross = issue("root", P384["root"], issue("elder", P384["other"], ca=True), ca=True)
    refused(leaf, middle, cross, match="not signed by")
    # A self-signed stranger with the root's name leads nowhere else.
    stranger = issue("root", P384["other"], ca=True)
    refused(leaf, middle, stranger, root, match="not signed by")


@pytest.mark.parametrize(
    ("middle", "reason"),
    [
        ({"ca": False}, "no CA"),
        ({"constraints": False}, "no CA"),
        ({"usages": ("digital_signature", "crl_sign")}, "may not sign certificates"),
        ({"extensions": ((x509.NameConstraints([x509.DNSName("a")], None), False),)}, "name constraints"),
        ({"extensions": ((UNKNOWN, True),)}, "critical extensions"),
    ],
)
def test_an_issuer_must_be_allowed_to_issue(middle, reason):
    refused(*chain(**middle), match=reason)


def test_critical_extensions_are_for_callers_who_read_them():
    root = issue("root", P384["root"], ca=True)
    leaf = issue("leaf", P384["leaf"], root, extensions=((UNKNOWN, True),))
    refused(leaf, root, match="critical")
    follow(leaf, root, known_critical={"1.3.6.1.4.1.99999.1"})
    follow(issue("leaf", P384["leaf"], root, extensions=((UNKNOWN, False),)), root)
    assert leaf.certificate.extension("1.3.6.1.4.1.99999.1") == b"\x05\x00"
    assert leaf.certificate.extension("1.2.3") is None


def test_a_path_length_holds():
    root = issue("root", P384["root"], ca=True, path_length=1)
    middle = issue("middle", P384["middle"], root, ca=True, path_length=0)
    inner = issue("inner", P384["other"], middle, ca=True)
    follow(issue("leaf", P384["leaf"], middle), middle, root)
    refused(issue("leaf", P384["leaf"], inner), inner, middle, root, match="may have 0 CAs")
    wide = issue("middle", P384["middle"], root, ca=True)
    inner = issue("inner", P384["other"], wide, ca=True)
    refused(issue("leaf", P384["leaf"], inner), inner, wide, root, match="may have 1 CAs")


def test_a_ca_is_no_leaf():
    root = issue("root", P384["root"], ca=True)
    refused(issue("leaf", P384["leaf"], root, ca=True), root, match="a CA")


@pytest.mark.parametrize("late", ["leaf", "middle", "root"])
def test_every_certificate_has_its_time(late):
    def times(who: str) -> dict[str, int]:
        return {"start": START + 10, "end": END - 10} if who == late else {}

    root = issue("root", P384["root"], ca=True, **times("root"))
    middle = issue("middle", P384["middle"], root, ca=True, **times("middle"))
    leaf = issue("leaf", P384["leaf"], middle, **times("leaf"))
    for now in (START + 10, END - 10):
        follow(leaf, middle, root, now=now)
    for now in (START + 9, END - 9):
        refused(leaf, middle, root, now=now, error=ExpiredError, match=f"{late}.*not valid at")


def test_dates_before_1970_and_in_9999_are_read():
    root = issue("root", P384["root"], ca=True, start=-631_152_000, end=253_402_300_799)
    follow(issue("leaf", P384["leaf"], root), root)
    assert root.certificate.valid == (-631_152_000, 253_402_300_799)


def test_a_digest_that_is_not_sha_2_of_256_bits_or_more_is_refused():
    root = issue("root", P384["root"], ca=True)
    leaf = issue("leaf", P384["leaf"], root, algorithm=hashes.SHA224())
    refused(leaf, root, match="not signed by")


def test_a_signature_with_another_algorithm_than_the_signed_part_says_is_refused():
    root = issue("root", P384["root"], ca=True)
    leaf = issue("leaf", P384["leaf"], root)
    verify_chain([VendorCertificate(signed_again(leaf, P384["root"]))], root.certificate, now=NOW)
    other = VendorCertificate(signed_again(leaf, P384["root"], algorithm=hashes.SHA256()))
    assert other.signed_with == "ECDSA sha256"
    with pytest.raises(VerificationError, match="not signed by"):
        verify_chain([other], root.certificate, now=NOW)


def test_one_digest_is_used_for_all_of_an_rsa_pss_signature():
    root = issue("root", RSA["root"], ca=True)
    leaf = issue("leaf", P384["leaf"], root, rsa_padding=padding.PSS(padding.MGF1(hashes.SHA256()), 48))
    refused(leaf, root, match="not signed by")


def test_every_byte_of_a_signed_certificate_counts():
    root = issue("root", P384["root"], ca=True)
    der = issue("leaf", P384["leaf"], root).der
    for place in range(0, len(der), 3):
        flipped = bytearray(der)
        flipped[place] ^= 0x01
        with pytest.raises((FormatError, VerificationError)):
            verify_chain([VendorCertificate(bytes(flipped))], root.certificate, now=NOW)


# Serial numbers


def zeroed(party: Party, signer: object) -> bytes:
    """The certificate with the serial number 0 in place of 7."""
    message = party.native.tbs_certificate_bytes
    assert message.count(b"\x02\x01\x07") == 1
    return signed_again(party, signer, message=message.replace(b"\x02\x01\x07", b"\x02\x01\x00"))


@pytest.fixture
def strict_loader(monkeypatch):
    """The loader of a `cryptography` that refuses the serial number 0, as it announces."""
    load = x509.load_der_x509_certificate

    def refuse(der: bytes) -> x509.Certificate:
        if b"\x02\x01\x00\x30" in der[:24]:
            raise ValueError("invalid serial number")
        return load(der)

    monkeypatch.setattr(chains.x509, "load_der_x509_certificate", refuse)


@pytest.mark.parametrize("kind", [P384, RSA])
def test_serial_number_zero_is_read_whatever_cryptography_thinks_of_it(kind, strict_loader):
    root = issue("root", kind["root"], ca=True)
    der = zeroed(issue("leaf", P384["leaf"], root), kind["root"])
    leaf = VendorCertificate(der)
    assert (leaf.serial, leaf.der, leaf.subject) == (0, der, "CN=leaf")
    assert pem_certificates(leaf.pem().encode()) == (leaf,)
    verify_chain([leaf], root.certificate, now=NOW)
    # What the signature covers is the zero.
    other = VendorCertificate(der.replace(b"\x02\x01\x00\x30", b"\x02\x01\x01\x30", 1))
    assert other.serial == 1
    with pytest.raises(VerificationError, match="not signed by"):
        verify_chain([other], root.certificate, now=NOW)


def test_serial_number_zero_can_be_revoked(strict_loader):
    root = issue("root", P384["root"], ca=True)
    leaf = VendorCertificate(zeroed(issue("leaf", P384["leaf"], root), P384["root"]))
    verify_chain([leaf], root.certificate, now=NOW, revocation_lists=[revocation_list(root, 1)])


def test_a_negative_serial_number_is_refused():
    root = issue("root", P384["root"], ca=True)
    leaf = issue("leaf", P384["leaf"], root)
    message = leaf.native.tbs_certificate_bytes.replace(b"\x02\x01\x07", b"\x02\x01\x87")
    with pytest.raises(FormatError):
        VendorCertificate(signed_again(leaf, P384["root"], message=message))


# Revocation lists


def test_a_revocation_list_revokes_what_its_issuer_issued():
    leaf, middle, root = chain()
    follow(leaf, middle, root, revocation_lists=[revocation_list(root, 9), revocation_list(middle, 8)])
    refused(leaf, middle, root, revocation_lists=[revocation_list(middle, 9)], match="leaf.*revoked")
    refused(leaf, middle, root, revocation_lists=[revocation_list(root), revocation_list(root, 8)], match="revoked")


def test_a_revocation_list_is_by_an_issuer_of_the_chain():
    leaf, middle, root = chain()
    for issuer, reason in (
        (issue("other", P384["other"], ca=True), "of no issuer"),
        (leaf, "of no issuer"),
        (issue("middle", P384["other"], root, ca=True), "not signed by"),
    ):
        refused(leaf, middle, root, revocation_lists=[revocation_list(issuer)], match=reason)
    certifier = chain(usages=("key_cert_sign",))
    refused(*certifier, revocation_lists=[revocation_list(certifier[1])], match="may not sign revocation lists")
    both = chain(usages=("key_cert_sign", "crl_sign"))
    follow(*both, revocation_lists=[revocation_list(both[1])])


def test_a_revocation_list_has_its_time():
    leaf, middle, root = chain()
    listed = revocation_list(middle, start=NOW, end=NOW + 10)
    assert listed.valid == (NOW, NOW + 10)
    for now in (NOW, NOW + 10):
        follow(leaf, middle, root, now=now, revocation_lists=[listed])
    for now in (NOW - 1, NOW + 11):
        refused(leaf, middle, root, now=now, revocation_lists=[listed], error=ExpiredError, match="not in force")


POINT = x509.IssuingDistributionPoint(
    full_name=None,
    relative_name=None,
    only_contains_user_certs=False,
    only_contains_ca_certs=True,
    only_some_reasons=None,
    indirect_crl=False,
    only_contains_attribute_certs=False,
)


@pytest.mark.parametrize(
    ("listed", "entry"),
    [
        ((POINT, True), None),
        ((POINT, False), None),
        ((x509.DeltaCRLIndicator(1), True), None),
        ((UNKNOWN, True), None),
        (None, (x509.CertificateIssuer([x509.DNSName("elsewhere")]), False)),
        (None, (x509.CRLReason(x509.ReasonFlags.key_compromise), True)),
    ],
)
def test_a_partial_revocation_list_is_refused(listed, entry):
    leaf, middle, root = chain()
    made = revocation_list(middle, 77, extensions=(listed,) if listed else (), of_entries=(entry,) if entry else ())
    refused(leaf, middle, root, revocation_lists=[made], match="partial, or with critical")


def test_a_revocation_list_of_the_ordinary_kind_may_say_more():
    leaf, middle, root = chain()
    made = revocation_list(
        middle,
        77,
        extensions=((x509.CRLNumber(5), False),),
        of_entries=((x509.CRLReason(x509.ReasonFlags.key_compromise), False),),
    )
    follow(leaf, middle, root, revocation_lists=[made])


def test_every_byte_of_a_revocation_list_counts():
    _, middle, _ = chain()
    der = revocation_list(middle, 77).der
    for place in range(0, len(der), 3):
        flipped = bytearray(der)
        flipped[place] ^= 0x01
        with pytest.raises((FormatError, VerificationError)):
            RevocationList(bytes(flipped)).verify(middle.certificate, now=NOW)


# Bytes


@pytest.mark.parametrize("read", [VendorCertificate, RevocationList])
def test_what_is_cut_short_too_long_or_something_else_does_not_parse(read):
    _, middle, root = chain()
    der = revocation_list(root).der if read is RevocationList else middle.der
    assert read(der).der == der
    for wrong in (b"", der[:-1], der + b"\0", der[:30], b"\x30\x80" + der[4:], b"\x30", b"\x30\x84", b"\0" * 600_000):
        with pytest.raises(FormatError):
            read(wrong)


def test_an_extension_there_twice_does_not_parse():
    leaf = issue("leaf", P384["leaf"], extensions=((UNKNOWN, False),))
    other = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.99999.2"), b"\x05\x00")
    der = issue("leaf", P384["leaf"], extensions=((UNKNOWN, False), (other, False))).der
    oid = bytes.fromhex("2b06010401868d1f")
    assert der.count(oid) == 2 and oid + b"\x02" in der
    with pytest.raises(FormatError):
        VendorCertificate(der.replace(oid + b"\x02", oid + b"\x01"))
    assert leaf.certificate.subject == "CN=leaf"


@pytest.mark.parametrize("action", ["error", "always"])
def test_names_that_break_a_rule_print_nothing(action):
    """A country of one letter makes `cryptography` warn; so a stranger's certificate could end or litter a program."""
    der = issue(x509.Name([x509.NameAttribute(x509.NameOID.COUNTRY_NAME, "XQ")]), P384["leaf"]).der
    # The letter A alone takes two bytes too, as a BMPString.
    mutated = der.replace(b"\x13\x02XQ", b"\x1e\x02\0A")
    assert mutated != der
    program = (
        "import sys; from strongroom.crypto.chains import VendorCertificate\n"
        "print(ascii(VendorCertificate(sys.stdin.buffer.read()).subject))"
    )
    ended = subprocess.run(
        [sys.executable, "-W", action, "-c", program], input=mutated, capture_output=True, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, b"")


def test_pem_is_read_as_people_write_it():
    leaf, middle, _ = chain()
    text = leaf.certificate.pem() + middle.certificate.pem()
    wanted = (leaf.certificate, middle.certificate)
    one_line = "".join(
        f"-----BEGIN CERTIFICATE-----{base64.b64encode(each.der).decode()}-----END CERTIFICATE-----" for each in wanted
    )
    for spelling in (text, text.replace("\n", "\r\n"), "# a note\n" + text, one_line, text.replace("\n", "\n  ")):
        assert pem_certificates(spelling.encode()) == wanted
    assert leaf.certificate.pem() == leaf.native.public_bytes(serialization.Encoding.PEM).decode()


def test_pem_that_holds_something_else_is_refused():
    pem = chain()[0].certificate.pem()
    for wrong, reason in (
        ("", "0 in the PEM"),
        (pem * 10, "10 in the PEM"),
        (pem + pem.replace("M", "*", 1), "not PEM"),
        (pem.replace("-----END", "A-----END"), "PEM"),
        ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----", "not X.509"),
        (pem * 2000, "too much"),
    ):
        with pytest.raises(FormatError, match=reason):
            pem_certificates(wrong.encode())
