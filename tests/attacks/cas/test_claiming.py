"""What an enclave may claim before a CAS, or try once it has attested."""

from __future__ import annotations

import json

import pytest

from strongroom.attest.binding import NO_BINDER, Kind, report_data
from strongroom.attest.tee.simulated import SimulatedVendor
from strongroom.cas.wire import b64
from strongroom.crypto import HpkeKey, SigningKey, digest
from strongroom.errors import (
    AttestationError,
    BindingError,
    ConflictError,
    DebugEnclaveError,
    FormatError,
    MeasurementError,
    RollbackError,
    SimulatedEnclaveError,
    UnauthorizedError,
    UnknownPolicyError,
    VerificationError,
)
from strongroom.sealed import Root
from tests.attacks.cas.conftest import is_not_attested
from tests.cas.world import MEASURED, PROGRAM, cas_in, world_in

ONE, TWO, THREE = (Root(n, bytes([n]) * 32) for n in (1, 2, 3))
MODELS = {"digits": "sha256:" + "ab" * 32}


# Claims


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"cas_root": "sha256:" + "00" * 32}, BindingError),
        ({"policy_digest": "sha256:" + "00" * 32}, BindingError),
        ({"spki": "sha256:" + "00" * 32}, BindingError),
        ({"role": "service"}, BindingError),
        ({"cas_root": None}, FormatError),
        ({"spki": None}, FormatError),
        ({"hpke": None}, FormatError),
        ({"hpke": "00" * 31}, FormatError),
        ({"hpke": "00" * 32}, FormatError),  # the neutral point: its shared secret is known to all
        ({"hpke": "zz" * 32}, FormatError),
        ({"hpke": 7}, FormatError),
        ({"policy": 7}, FormatError),
        ({"role": ["program"]}, FormatError),
        ({"debug": False}, FormatError),
        ({"policy": "acme/unknown"}, BindingError),
    ],
)
def test_claims_that_say_something_else_are_refused(enclave, change, error):
    with pytest.raises(error):
        enclave.attest(**change)
    assert is_not_attested(enclave)


def test_claims_altered_after_the_evidence_are_refused(world, enclave):
    """Above all the key that the secrets are sealed to."""
    nonce, claims = enclave.nonce(), enclave.claims()
    evidence = enclave.evidence(nonce, claims)
    with pytest.raises(BindingError, match="report data: got"):
        enclave.show(evidence, enclave.claims(hpke=HpkeKey().public.hex()))
    assert is_not_attested(enclave)
    assert world.refusals() == ["binding"]


def test_claims_in_another_spelling_are_refused(enclave):
    claims = enclave.claims()
    for spelling in (claims.replace(b":", b": ", 1), claims[:-1] + b',"role":"program"}', b"[]", b"", b"{" * 60000):
        nonce = enclave.nonce()
        with pytest.raises(FormatError, match=r"canonical JSON|claims"):
            enclave.show(enclave.evidence(nonce, spelling), spelling)


def test_evidence_for_another_policy_is_refused(world, enclave):
    """Two policies, two measurements: the claims decide which, and the measurement must agree."""
    with world_in(world.cas, reference={"measurements": ["ab" * 48]}, more="") as other:
        with pytest.raises(BindingError, match="is not the one that the nonce was asked for"):
            enclave.attest(policy=other.name, policy_digest=other.policy.digest)
        assert is_not_attested(enclave)
        with other.enclave() as same, pytest.raises(MeasurementError):
            same.attest()
        assert other.refusals() == ["measurement"]


def test_an_enclave_under_one_policy_gets_nothing_of_another(world, enclave):
    enclave.attest()
    with world_in(world.cas) as other:
        for method in ("GET", "PUT"):
            body = json.dumps({"old": None, "new": str(ONE)}).encode()
            with pytest.raises(UnauthorizedError, match="has not the right 'anchors'"):
                path, headers = f"/v1/policies/{other.name}/anchors/out", {"content-type": "application/json"}
                enclave.http.request(method, path, body=body, headers=headers).expect_ok()
        assert other.client.anchor(other.name, "out").read() is None


def test_an_attested_enclave_is_no_owner(world, enclave):
    enclave.attest()
    with pytest.raises(UnauthorizedError):
        enclave.put(f"/v1/policies/{world.name}/secrets/token", {"value": b64(b"mine")})
    text = world.text(version=2, previous=world.policy.digest, owner=enclave.identity.key.public.fingerprint)
    with pytest.raises(VerificationError):
        enclave.put(f"/v1/policies/{world.name}", {"text": text, "signature": b64(bytes(64))})
    assert enclave.http.get("/v1/log") == {"entries": [], "next": None}


# Kinds


def ask_for_a_result(enclave, evidence, token, claims):
    body = {"evidence": evidence.to_wire(), "claims": b64(claims), "time_token": token}
    return enclave.http.post("/v1/service", body, fresh=True)


@pytest.fixture
def service(world):
    with world.enclave(policy=world.service(), role="service") as made:
        yield made


def test_a_service_s_evidence_is_not_accepted_for_a_session(service):
    service.attest()
    claims = service.claims()
    evidence = service.service_evidence(service.time_token(), claims)
    service.nonce()
    with pytest.raises(BindingError, match="report data: got"):
        service.show(evidence, claims)


def test_evidence_over_a_nonce_with_no_binder_is_not_accepted_for_a_session(service):
    nonce, claims = service.nonce(), service.claims()
    bound = report_data(Kind.SERVICE, fresh=nonce, binder=NO_BINDER, claims=claims)
    with pytest.raises(BindingError, match="report data: got"):
        service.show(service.vendor.quote(MEASURED, bound), claims)


def test_a_session_s_evidence_is_not_accepted_for_a_service(world, service):
    service.attest()
    token, claims = service.time_token(), service.claims(models=MODELS)
    with pytest.raises(BindingError, match="report data: got"):
        ask_for_a_result(service, service.evidence(digest(token.encode()), claims), token, claims)
    refused = [e for e in world.client.log() if e["event"] == "refused"]
    assert [e["policy"] for e in refused] == [service.policy]


def test_a_service_s_result_is_for_an_attested_connection_only(service):
    service.attest()
    token, claims = service.time_token(), service.claims(models=MODELS)
    evidence = service.service_evidence(token, claims)
    elsewhere = service.world.enclave(policy=service.policy, role="service", identity=service.identity)
    with elsewhere as stranger, pytest.raises(UnauthorizedError, match="no enclave has attested"):
        ask_for_a_result(stranger, evidence, token, claims)


def test_a_service_cannot_have_another_key_certified(service):
    service.attest()
    token, claims = service.time_token(), service.claims(models=MODELS, spki="sha256:" + "00" * 32)
    with pytest.raises(BindingError, match=r"claims.spki: got sha256:0000"):
        ask_for_a_result(service, service.service_evidence(token, claims), token, claims)


def test_a_service_cannot_speak_for_another_policy(world, service):
    service.attest()
    token, claims = service.time_token(), service.claims(models=MODELS, policy=world.name)
    with pytest.raises(BindingError, match=r"claims.policy: got"):
        ask_for_a_result(service, service.service_evidence(token, claims), token, claims)


def test_a_time_token_of_another_cas_is_refused(service, tmp_path):
    service.attest()
    claims = service.claims(models=MODELS)
    with cas_in(tmp_path) as other, world_in(other) as elsewhere, elsewhere.enclave() as stranger:
        stranger.attest()
        token = stranger.time_token()
    with pytest.raises(VerificationError, match="signature"):
        ask_for_a_result(service, service.service_evidence(token, claims), token, claims)


# Whose enclave, and what runs in it


def test_the_key_of_the_claims_must_be_the_connection_s(world, enclave):
    """Evidence made inside one enclave, shown over a connection that another key proved."""
    key = SigningKey.generate().public.fingerprint
    with pytest.raises(BindingError, match=f"claims.spki: got {key}, wanted {enclave.identity.key.public.fingerprint}"):
        enclave.attest(spki=key)


def test_an_enclave_without_a_certificate_gets_nothing(world):
    with world.enclave(anonymous=True) as nobody:
        for spki in (None, "a TLS client certificate", nobody.identity.key.public.fingerprint):
            with pytest.raises(BindingError, match="TLS: the enclave showed no certificate"):
                nobody.attest(spki=spki)


def test_a_debug_enclave_gets_nothing(world):
    with world.enclave(debug=True) as enclave:
        with pytest.raises(DebugEnclaveError):
            enclave.attest()
        assert is_not_attested(enclave)
    assert world.refusals() == ["debug-enclave"]


def test_a_simulated_enclave_gets_nothing_unless_the_policy_says_so(cas):
    with world_in(cas, reference={"allow_simulated": None}) as world, world.enclave() as enclave:
        with pytest.raises(SimulatedEnclaveError, match="wanted no simulated enclave"):
            enclave.attest()
        assert is_not_attested(enclave)


def test_a_simulated_enclave_gets_nothing_under_a_policy_for_hardware(cas):
    with (
        world_in(cas, reference={"tees": ["tdx"]}) as world,
        world.enclave() as enclave,
        pytest.raises(AttestationError, match="tee: got simulated, wanted tdx"),
    ):
        enclave.attest()


def test_another_vendor_s_enclave_gets_nothing(world, tmp_path):
    stranger = SimulatedVendor.open(tmp_path, now=int(world.cas.clock()))
    refused = pytest.raises(SimulatedEnclaveError, match=f"got vendor root {stranger.root_digest}")
    with world.enclave(vendor=stranger) as enclave, refused:
        enclave.attest()
    assert world.refusals() == ["simulated-enclave"]


@pytest.mark.parametrize("register", sorted(MEASURED))
def test_a_measurement_off_by_one_bit_is_refused(world, register):
    wrong = bytearray(MEASURED[register])
    wrong[-1] ^= 1
    with world.enclave(registers=MEASURED | {register: bytes(wrong)}) as enclave:
        with pytest.raises(MeasurementError):
            enclave.attest()
        assert is_not_attested(enclave)
    assert world.refusals() == ["measurement"]


def test_an_unknown_policy_gives_nothing(enclave):
    enclave.policy = "acme/unknown"
    with pytest.raises(UnknownPolicyError):
        enclave.nonce()


def test_a_role_that_the_policy_does_not_give_is_refused(world):
    with world.enclave(role="service") as enclave, pytest.raises(BindingError, match=r"claims.role: got service"):
        enclave.attest()


# Anchors


def test_an_enclave_cannot_roll_an_anchor_back(world):
    with world.session() as session:
        anchor = session.anchor("out")
        anchor.advance(None, ONE)
        anchor.advance(ONE, THREE)
        for back in (ONE, TWO, Root(3, bytes(32))):
            with pytest.raises(RollbackError, match="anchor: got"):
                anchor.advance(THREE, back)
        for old in (None, ONE, TWO):
            with pytest.raises(ConflictError):
                anchor.advance(old, Root(4, bytes(32)))
    assert world.client.anchor(world.name, "out").read() == THREE


def test_an_enclave_cannot_move_the_anchor_of_a_vault_that_it_may_only_read(world):
    world.client.anchor(world.name, "data").advance(None, ONE)
    with world.session() as session, pytest.raises(UnauthorizedError, match="vault data: this enclave may only read"):
        session.anchor("data").advance(ONE, TWO)
    assert world.client.anchor(world.name, "data").read() == ONE


def test_an_enclave_that_loses_the_right_to_write_loses_it_at_once(world):
    with world.session() as session:
        session.anchor("out").advance(None, ONE)
        world.renew(more=PROGRAM.replace("read-write", "read-only"))
        with pytest.raises(UnauthorizedError, match="vault out: this enclave may only read"):
            session.anchor("out").advance(ONE, TWO)
