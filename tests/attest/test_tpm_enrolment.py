"""Enrolling a TPM: what a verifier makes sure of before it trusts an attestation key."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from strongroom.attest.enrolment import Challenge, EnrolledKey, EnrolmentRequest, begin_enrolment
from strongroom.attest.evidence import Evidence
from strongroom.attest.parse.endorsements import Endorsements
from strongroom.attest.parse.tpm_key import parse_public
from strongroom.attest.verify import VENDORS, verify
from strongroom.crypto import CertificateAuthority
from strongroom.crypto.chains import VendorCertificate, pem_certificates
from strongroom.errors import ExpiredError, FormatError, VerificationError
from tests.attest.tpms import AES, AK_BITS, EK_BITS, NONE, P256, RSA, activate, public_area, quoted
from tests.crypto.certificates import END, NOW, START, Party, issue

VECTORS = Path(__file__).parents[1] / "vectors" / "tpm2" / "enrolled"
EK_USAGE = (x509.ExtendedKeyUsage([x509.ObjectIdentifier("2.23.133.8.1")]), False)
# As makers write them: an empty subject, and so a critical alternative name.
NAME = (x509.SubjectAlternativeName([x509.DirectoryName(x509.Name([]))]), True)
EKS = {"RSA": rsa.generate_private_key(65537, 2048), "P-256": ec.generate_private_key(ec.SECP256R1())}
ROOT = issue("maker", ec.generate_private_key(ec.SECP256R1()), ca=True)
AK_PUBLIC = public_area(P256, AK_BITS)
OTHER_AK = ec.generate_private_key(ec.SECP256R1())


def certified(ek, *, extensions=(EK_USAGE, NAME), **options) -> Party:
    return issue(x509.Name([]), ek, ROOT, extensions=extensions, **options)


def request(kind: str = "RSA", **changes) -> EnrolmentRequest:
    ek = EKS[kind]
    endorsements = Endorsements((certified(ek).certificate,))
    shown = EnrolmentRequest(endorsements, public_area(ek, EK_BITS, symmetric=AES), AK_PUBLIC)
    return dataclasses.replace(shown, **changes)


def begin(shown: EnrolmentRequest, now: int = NOW):
    return begin_enrolment(EnrolmentRequest.from_bytes(shown.to_bytes()), (ROOT.certificate,), now=now)


def refused(shown: EnrolmentRequest, match: str, error: type[Exception] = VerificationError, now: int = NOW) -> None:
    with pytest.raises(error, match=match):
        begin(shown, now)


def enrolled() -> EnrolledKey:
    pending = begin(request())
    answer = activate(EKS["RSA"], parse_public(AK_PUBLIC).name, pending.challenge.credential, pending.challenge.seed)
    assert answer is not None
    return pending.finish(answer)


@pytest.mark.parametrize("kind", EKS)
def test_the_tpm_of_both_keys_is_enrolled(kind):
    pending = begin(request(kind))
    challenge = Challenge.from_bytes(pending.challenge.to_bytes())
    answer = activate(EKS[kind], parse_public(AK_PUBLIC).name, challenge.credential, challenge.seed)
    key = pending.finish(answer)
    assert key.key == parse_public(AK_PUBLIC).key
    assert key.ek_root == ROOT.certificate.fingerprint
    assert len(answer) == 32


@pytest.mark.parametrize("kind", EKS)
def test_a_tpm_without_the_attestation_key_gets_no_secret(kind):
    challenge = begin(request(kind)).challenge
    name = parse_public(public_area(OTHER_AK, AK_BITS)).name
    assert activate(EKS[kind], name, challenge.credential, challenge.seed) is None


def test_another_answer_is_refused():
    for answer in (b"", bytes(32), bytes(64)):
        with pytest.raises(VerificationError, match="the answer is not the secret of the challenge"):
            begin(request()).finish(answer)


def test_the_secret_is_new_each_time_and_is_not_shown():
    first, second = begin(request()), begin(request())
    name = parse_public(AK_PUBLIC).name
    answers = [activate(EKS["RSA"], name, each.challenge.credential, each.challenge.seed) for each in (first, second)]
    assert answers[0] != answers[1]
    assert answers[0].hex() not in repr(first)
    assert repr(answers[0]) not in repr(first)
    with pytest.raises(VerificationError):
        second.finish(answers[0])


class TestEndorsementKey:
    def test_no_certificate(self):
        refused(request(endorsements=Endorsements()), "no certificate")

    def test_another_makers(self):
        other = issue("maker", ec.generate_private_key(ec.SECP256R1()), ca=True)
        leaf = issue(x509.Name([]), EKS["RSA"], other, extensions=(EK_USAGE, NAME))
        refused(request(endorsements=Endorsements((leaf.certificate,))), "not signed by")

    def test_no_root_is_nobodys(self):
        with pytest.raises(VerificationError, match="wanted one of 0 roots"):
            begin_enrolment(request(), (), now=NOW)

    def test_out_of_its_time(self):
        for now in (START - 1, END + 1):
            refused(request(), "not valid at", ExpiredError, now=now)

    @pytest.mark.parametrize(
        "extensions", [(NAME,), (NAME, (x509.ExtendedKeyUsage([x509.ObjectIdentifier("2.23.133.8.3")]), False))]
    )
    def test_a_certificate_for_something_else(self, extensions):
        leaf = certified(EKS["RSA"], extensions=extensions).certificate
        refused(request(endorsements=Endorsements((leaf,))), "is not for endorsement keys")

    def test_a_certificate_of_another_key(self):
        leaf = certified(EKS["P-256"]).certificate
        refused(request(endorsements=Endorsements((leaf,))), "its certificate is for another key")

    @pytest.mark.parametrize(
        ("bits", "symmetric"),
        [(EK_BITS ^ 1 << 1, AES), (EK_BITS ^ 1 << 16, AES), (EK_BITS | 1 << 18, AES), (AK_BITS, AES), (EK_BITS, NONE)],
    )
    def test_a_key_that_is_no_endorsement_key(self, bits, symmetric):
        refused(request(ek_public=public_area(EKS["RSA"], bits, symmetric=symmetric)), "endorsement key: got")


def test_an_attestation_key_that_signs_anything_is_refused():
    refused(request(ak_public=public_area(P256, AK_BITS ^ 1 << 16)), "attestation key: lacks restricted")
    refused(request(ak_public=public_area(P256, AK_BITS ^ 1 << 1)), "attestation key: lacks fixedTPM")


def test_other_forms_are_refused():
    wire = json.loads(request().to_bytes())
    for change in ({"ak_public": ""}, {"endorsements": 7}, {"more": 1}):
        raw = json.dumps(wire | change, sort_keys=True, separators=(",", ":")).encode()
        with pytest.raises(FormatError):
            EnrolmentRequest.from_bytes(raw)
    for raw in (b"{}", b'{"credential":"00"}', b'{"credential":"00","seed":"0"}'):
        with pytest.raises(FormatError):
            Challenge.from_bytes(raw)


class TestCertificate:
    """An authority of the verifier's certifies enrolled keys, and others trust the authority."""

    now = dt.datetime.fromtimestamp(NOW, dt.UTC)

    def authority(self) -> CertificateAuthority:
        return CertificateAuthority.create("TPMs of ours", now=self.now)

    def verify(self, leaf: VendorCertificate, authority: CertificateAuthority, now: int = NOW, key=P256):
        evidence = Evidence("tpm", quoted(key).to_bytes(), Endorsements((leaf,)).to_bytes())
        anchors = dataclasses.replace(VENDORS, tpm=(VendorCertificate(authority.certificate.der),))
        return verify(evidence, now=now, anchors=anchors)

    def test_a_quote_verifies_under_the_authority(self):
        authority = self.authority()
        leaf = enrolled().certify(authority, now=self.now, lifetime=dt.timedelta(hours=1))
        assert self.verify(leaf, authority).vendor_root == VendorCertificate(authority.certificate.der).fingerprint
        with pytest.raises(ExpiredError):
            self.verify(leaf, authority, now=NOW + 3601)
        with pytest.raises(VerificationError, match="not signed by"):
            self.verify(leaf, self.authority())

    def test_a_quote_by_another_key_does_not(self):
        authority = self.authority()
        leaf = enrolled().certify(authority, now=self.now, lifetime=dt.timedelta(hours=1))
        with pytest.raises(VerificationError, match="the certificate shown is for another key"):
            self.verify(leaf, authority, key=RSA)

    def test_a_certificate_of_the_authority_for_something_else_does_not(self):
        authority = self.authority()
        leaf = authority.issue(authority.key.public, "a server", now=self.now, lifetime=dt.timedelta(hours=1))
        with pytest.raises(VerificationError, match="the certificate shown is for another key"):
            self.verify(VendorCertificate(leaf.der), authority)
        server = issue("server", P256, ROOT, extensions=((x509.ExtendedKeyUsage([x509.OID_SERVER_AUTH]), False),))
        evidence = Evidence("tpm", quoted().to_bytes(), Endorsements((server.certificate,)).to_bytes())
        with pytest.raises(VerificationError, match="its certificate is not for attestation keys"):
            verify(evidence, now=NOW, anchors=dataclasses.replace(VENDORS, tpm=(ROOT.certificate,)))


def test_a_recorded_request_of_a_software_tpm():
    case = json.loads((VECTORS / "cases.json").read_text())
    shown = EnrolmentRequest.from_bytes((VECTORS / "request.json").read_bytes())
    roots = pem_certificates((VECTORS / "root.pem").read_bytes())
    begin_enrolment(shown, roots, now=case["now"])
    assert parse_public(shown.ak_public).key.fingerprint == case["key"]
    evidence = Evidence("tpm", (VECTORS / "evidence.json").read_bytes(), b"")
    anchors = dataclasses.replace(VENDORS, tpm_keys=(parse_public(shown.ak_public).key,))
    claims = verify(evidence, now=case["now"], anchors=anchors)
    assert claims.vendor_root == case["key"]
    assert claims.tcb == {"firmware": 0x20191023}
    assert (claims.attributes["hierarchy"], claims.attributes["secure_boot"]) == ("endorsement", True)
