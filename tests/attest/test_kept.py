"""What is kept of one verification stands for the next only while nothing but report data and signature differ."""

from __future__ import annotations

import json
from dataclasses import replace

import dcap_qvl
import pytest

from strongroom.attest.evidence import Evidence
from strongroom.attest.tee import simulated
from strongroom.attest.tee.simulated import SimulatedVendor
from strongroom.attest.verify import verify
from strongroom.attest.verify.anchors import VENDORS
from strongroom.attest.verify.dcap_kept import Answers
from strongroom.crypto.chains import pem_certificates
from strongroom.crypto.vendor import Issuer, Validity
from strongroom.errors import ExpiredError, VerificationError

NOW = 1_750_000_000
SOON = 1000
# The report data of a TD report 1.0, and the signature after it, in a quote of version 4.
REPORT_DATA, SIGNATURE = 48 + 520, 48 + 584 + 4


@pytest.fixture(autouse=True)
def asked(monkeypatch):
    """How often dcap-qvl was asked, from an empty memory on."""
    real, questions = dcap_qvl.QuoteVerifier, []

    class Verifier:
        def __init__(self, root):
            self._real = real(root)

        def verify_with_policy(self, *question):
            questions.append(question)
            return self._real.verify_with_policy(*question)

    monkeypatch.setattr("dcap_qvl.QuoteVerifier", Verifier)
    monkeypatch.setattr("strongroom.attest.verify.dcap._answers", Answers())
    return questions


def test_of_an_enclave_that_asks_again_the_signature_alone_is_verified(vendor, registers, asked):
    first = verify(vendor.quote(registers, b"a" * 64), now=NOW)
    again = verify(vendor.quote(registers, b"b" * 64), now=NOW + 7)
    assert len(asked) == 1
    assert again == replace(first, report_data=b"b" * 64)


def test_every_other_difference_asks_anew(vendor, registers, asked):
    verify(vendor.quote(registers, bytes(64)), now=NOW)
    verify(vendor.quote(registers | {"rtmr3": b"x" * 48}, bytes(64)), now=NOW)
    evidence = vendor.quote(registers, bytes(64))
    spaced = json.dumps(json.loads(evidence.endorsements), indent=1).encode()
    verify(Evidence("simulated", evidence.quote, spaced), now=NOW)
    assert len(asked) == 3


def test_what_was_kept_of_a_good_quote_does_not_let_a_forged_one_pass(vendor, registers, asked):
    good = vendor.quote(registers, bytes(64))
    verify(good, now=NOW)
    for place in (*range(REPORT_DATA, REPORT_DATA + 64, 9), *range(SIGNATURE, SIGNATURE + 64, 9)):
        forged = bytearray(good.quote)
        forged[place] ^= 1
        with pytest.raises(VerificationError, match="signature"):
            verify(Evidence("simulated", bytes(forged), good.endorsements), now=NOW)


def test_what_was_kept_of_a_simulated_quote_does_not_let_it_pass_as_another_kind(vendor, registers, asked):
    """Even where one root vouches for both: of `tdx` the quoting enclave must be Intel's."""
    simulated = vendor.quote(registers, bytes(64))
    chain = json.loads(simulated.endorsements)["pck_crl_issuer_chain"]
    anchors = replace(VENDORS, intel=pem_certificates(chain.encode())[-1])
    verify(simulated, now=NOW, anchors=anchors)
    with pytest.raises(VerificationError, match="quoting enclave"):
        verify(replace(simulated, tee="tdx"), now=NOW, anchors=anchors)
    assert len(asked) == 2


def test_a_refusal_is_not_kept(vendor, registers, asked):
    good = vendor.quote(registers, bytes(64))
    for _ in range(2):
        with pytest.raises(ExpiredError):
            verify(good, now=NOW + 9000 * 86_400)
    assert len(asked) == 2
    verify(good, now=NOW)


@pytest.mark.parametrize(
    "short", ["TCB Signing", "PCK Platform CA", "PCK Certificate", "lists", "tcb_info", "qe_identity"]
)
def test_what_is_kept_ends_with_whatever_ends_first(tmp_path, monkeypatch, registers, asked, short):
    """Each certificate, list and document in turn is valid for some seconds only: from a while before to `SOON`."""
    window = Validity(NOW - SOON, NOW + SOON)

    def certificate(self, name, public, validity, **more):
        return issue(self, name, public, window if short in name else validity, **more)

    def revocation_list(self, validity):
        return revoke(self, window if short == "lists" else validity)

    issue, revoke = Issuer.certificate, Issuer.revocation_list
    monkeypatch.setattr(Issuer, "certificate", certificate)
    monkeypatch.setattr(Issuer, "revocation_list", revocation_list)
    if short in ("tcb_info", "qe_identity"):
        document = getattr(simulated.dcap, short)
        monkeypatch.setattr(simulated.dcap, short, lambda *_: document(window.start, window.end))
    evidence = SimulatedVendor.open(tmp_path, now=NOW).quote(registers, bytes(64))
    verify(evidence, now=NOW)
    verify(evidence, now=NOW + SOON - 1)
    assert len(asked) == 1
    for now in (window.start - 1, window.end + 1):
        with pytest.raises(ExpiredError):
            verify(evidence, now=now)
