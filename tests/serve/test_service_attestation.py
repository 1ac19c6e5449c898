"""The attestation document: what an honest one says, and how each malformed one is refused."""

import base64
import datetime as dt
from dataclasses import replace

import pytest

from strongroom.attest.result import RESULT_TOKEN
from strongroom.attest.token import sign_token, verify_token
from strongroom.channel import Identity
from strongroom.errors import ExpiredError, FormatError, VerificationError
from strongroom.serve import ServiceAttestation, appraise_service
from tests.serve.world import MEASUREMENT, MOMENT, NOW, POLICY, Cas, reference, vendor

CAS = Cas()
IDENTITY = Identity.fresh("service", now=MOMENT)
MODELS = {"digits": "sha256:" + "12" * 32}
HONEST = CAS.attest(IDENTITY.key, MODELS)


def appraise(document, **changes):
    expected = {"peer": IDENTITY.chain[0], "cas_root": CAS.root, "policy": POLICY, "reference": reference(), "now": NOW}
    return appraise_service(document, **expected | changes)


def test_an_honest_service():
    service = appraise(HONEST)
    assert service.key == IDENTITY.key.public.fingerprint
    assert service.expires == NOW + 600
    assert dict(service.models) == MODELS
    assert (service.policy, service.policy_digest) == (POLICY, "sha256:" + "cd" * 32)
    result = service.result
    assert (result.tee, result.measurement, result.vendor_root) == ("simulated", MEASUREMENT, vendor().root_digest)


def test_it_holds_until_the_result_expires_and_no_longer():
    assert appraise(HONEST, now=NOW + 599).expires == NOW + 600
    with pytest.raises(ExpiredError):
        appraise(HONEST, now=NOW + 600)


def test_the_time_token_must_hold_when_the_result_is_given_not_longer():
    brief = CAS.attest(IDENTITY.key, MODELS, time={"exp": NOW + 5}, result={"issued_at": NOW + 3})
    assert appraise(brief, now=NOW + 300).expires == NOW + 600


def test_the_wire_form_round_trips():
    wire = HONEST.to_wire()
    back = ServiceAttestation.from_wire(wire)
    assert back.to_wire() == wire
    appraise(back)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "got version 2, wanted 1"),
        ({"version": True}, "got version True"),
        ({"extra": 1}, "unknown field 'extra'"),
        ({"claims": ...}, "has no claims"),
        ({"evidence": {}}, "evidence"),
        ({"claims": "e30"}, "claims: not the base64"),
        ({"claims": "e30=\n"}, "claims: not the base64"),
        ({"claims": ""}, "claims: got ''"),
        ({"claims": base64.b64encode(bytes(65537)).decode()}, "claims"),
        ({"time_token": None}, "time_token: got None"),
        ({"result": "x" * 1_000_000}, "result: got"),
        ({"cas_chain": []}, "cas_chain: got 0 certificates, wanted 2"),
        ({"cas_chain": ["AAAA", "AAAA"]}, "certificate"),
        ({"cas_chain": "AAAA"}, "cas_chain: got a string"),
    ],
)
def test_malformed_documents(change, message):
    wire = {name: value for name, value in (HONEST.to_wire() | change).items() if value is not ...}
    with pytest.raises(FormatError) as caught:
        ServiceAttestation.from_wire(wire)
    assert message in caught.value.message


@pytest.mark.parametrize("wire", [None, [], "document", 3])
def test_documents_that_are_no_object(wire):
    with pytest.raises(FormatError, match="attestation document: got"):
        ServiceAttestation.from_wire(wire)


@pytest.mark.parametrize(
    ("claims", "message"),
    [
        ({"role": "program"}, "got role 'program', wanted 'service'"),
        ({"hpke": "AB" * 32}, "hpke"),
        ({"hpke": 5}, "hpke"),
        ({"policy_digest": "sha256:0"}, "policy_digest"),
        ({"models": {}}, "name no models"),
        ({"models": ["digits"]}, "name no models"),
        ({"models": {"digits": "12"}}, "digest of model 'digits'"),
        ({"plan": "12"}, "got plan '12'"),
        ({"plan": None}, "got plan None"),
        ({"more": 1}, "got the fields"),
    ],
)
def test_claims_of_another_form(claims, message):
    changes = {"policy_digest": claims["policy_digest"]} if "policy_digest" in claims else {}
    document = CAS.attest(IDENTITY.key, MODELS, claims=claims, result=changes)
    with pytest.raises(Exception, match=message) as caught:
        appraise(document)
    assert caught.type.__mro__[1].__name__ == "AttestationError"


def test_a_result_with_more_or_fewer_fields():
    said = verify_token(HONEST.result, CAS.key.public, RESULT_TOKEN, now=NOW, kid=True)
    for other in (said | {"more": 1}, {name: value for name, value in said.items() if name != "iss"}):
        result = sign_token(CAS.key, RESULT_TOKEN, other, kid=True)
        with pytest.raises(VerificationError, match="attestation result: "):
            appraise(replace(HONEST, result=result))


def test_the_cas_certificate_must_be_valid_now():
    later = NOW + int(dt.timedelta(days=8).total_seconds())
    with pytest.raises(ExpiredError, match="certificate: not valid at"):
        appraise(HONEST, now=later)
