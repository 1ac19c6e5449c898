"""What an attested enclave gets of a CAS, and that it stays attested."""

from __future__ import annotations

import base64
import datetime as dt
import json
import socket
import threading

import pytest

from strongroom.attest.binding import parse_canonical
from strongroom.attest.result import verify_result
from strongroom.attest.token import verify_token
from strongroom.cas.start.authority import Authority
from strongroom.cas.wire import CAS_URI, RESULT_LIFETIME, TIME_TOKEN
from strongroom.crypto import Certificate, SigningKey, digest
from strongroom.errors import (
    BindingError,
    CasError,
    ConflictError,
    ExpiredError,
    FormatError,
    MeasurementError,
    NotStoredError,
    PolicyError,
    UnauthorizedError,
    UnknownPolicyError,
    VerificationError,
)
from strongroom.sealed import Root
from tests.cas.world import PROGRAM, TOKEN, VAULT_KEY, Clock, cas_in, world_in

ONE, TWO, THREE = (Root(n, bytes([n]) * 32) for n in (1, 2, 3))
MODELS = {"digits": "sha256:" + "ab" * 32}


def test_an_enclave_receives_what_its_policy_names(world):
    with world.session() as session:
        got = session.attest()
    assert got.policy_digest == world.policy.digest
    assert got.vault_keys == {"data": VAULT_KEY, "out": VAULT_KEY[::-1]}
    assert got.vault_access == {"data": "read-only", "out": "read-write"}
    assert got.environment["TOKEN"] == TOKEN.decode()
    assert len(bytes.fromhex(got.environment["SEED"])) == 16
    assert set(got.environment) == {"TOKEN", "SEED"}
    entry = world.client.log()[-1]
    said = {"role": "program", "tee": "simulated", "measurement": world.policy.reference.measurements[0], "version": 1}
    detail = json.loads(entry["detail"])
    assert detail.pop("expires") - entry["time"] == 600
    assert detail.pop("lease") == entry["number"] == got.lease
    assert (entry["event"], detail) == ("attested", said)


def test_a_generated_secret_is_the_same_for_every_enclave_and_version(world):
    with world.session() as one, world.session() as two:
        seed = one.attest().environment["SEED"]
        assert two.attest().environment["SEED"] == seed
        world.renew()
        assert one.attest().environment["SEED"] == seed
    with world_in(world.cas) as other, other.session() as session:
        assert session.attest().environment["SEED"] != seed


def test_a_secret_may_be_bytes_of_any_encoding(world):
    world.client.put_secret(world.name, "token", b"\xff\xfe ok")
    with world.session() as session:
        assert session.attest().environment["TOKEN"].encode("utf-8", "surrogateescape") == b"\xff\xfe ok"


def test_a_missing_secret_or_key_is_named(cas):
    with world_in(cas, more="") as world, world.session() as session:
        session.attest()
        world.renew(more=PROGRAM)
        with pytest.raises(PolicyError, match="vault data: its key has not been stored"):
            session.attest()
        world.client.put_vault_key(world.name, "data", VAULT_KEY)
        world.client.put_vault_key(world.name, "out", VAULT_KEY)
        with pytest.raises(NotStoredError, match="secret token: has not been stored") as refused:
            session.attest()
        assert f"cas secret {world.name} token" in refused.value.hint
        assert json.loads(world.client.log()[-1]["detail"])["code"] == "not-stored"
        world.client.put_secret(world.name, "token", TOKEN)
        session.attest()


def test_the_certificate_names_the_policy_and_lasts_an_hour(world):
    now = dt.datetime.fromtimestamp(world.cas.clock(), dt.UTC)
    with world.session() as session:
        certificate = session.attest().certificate
        assert session.serving_identity().key.public == certificate.key
    assert certificate.uris == [f"spiffe://strongroom/{world.name}"]
    assert certificate.not_after == now.replace(microsecond=0) + dt.timedelta(hours=1)
    with world.enclave() as enclave:
        _, root = enclave.stream.peer
        certificate.verify_issued_by(root, now=now)
        assert root.key.fingerprint == world.cas.address.cas_root
        assert certificate.key != enclave.identity.key.public
        assert CAS_URI in enclave.stream.peer[0].uris


def test_a_certificate_for_another_key_is_not_taken(world, monkeypatch):
    certify, other = Authority.certify_enclave, SigningKey.generate().public
    monkeypatch.setattr(
        Authority, "certify_enclave", lambda self, key, *rest, **named: certify(self, other, *rest, **named)
    )
    with world.session() as session, pytest.raises(CasError, match="certificate: the CAS sent one for another key"):
        session.attest()


# Anchors


def test_an_enclave_moves_the_anchor_of_a_vault_that_it_may_write(world):
    with world.session() as session:
        anchor = session.anchor("out")
        assert anchor.read() is None
        anchor.advance(None, ONE)
        anchor.advance(ONE, TWO)
        anchor.advance(ONE, TWO)
        with pytest.raises(ConflictError):
            anchor.advance(ONE, THREE)
        assert anchor.read() == world.client.anchor(world.name, "out").read() == TWO
    assert world.events()[-3:] == ["attested", "anchor", "anchor"]


def test_an_enclave_reads_the_anchor_of_a_vault_that_it_may_read(world):
    world.client.anchor(world.name, "data").advance(None, ONE)
    with world.session() as session:
        assert session.anchor("data").read() == ONE
        with pytest.raises(PolicyError, match="names none called 'nothing'"):
            session.anchor("nothing").read()


# Staying attested


class Dial:
    """Makes connections and can drop the newest, as a CAS does with one that is idle."""

    def __init__(self, cas):
        self._cas, self.sockets = cas, []

    def __call__(self):
        self.sockets.append(self._cas.dial())
        return self.sockets[-1]

    def drop(self):
        self.sockets[-1].shutdown(socket.SHUT_RDWR)


def test_after_a_dropped_connection_the_enclave_attests_before_it_asks(world):
    dial = Dial(world.cas)
    with world.session(dial=dial) as session:
        session.attest()
        dial.drop()
        session.anchor("out").advance(None, ONE)
    assert len(dial.sockets) == 2
    assert world.events()[-3:] == ["attested", "attested", "anchor"]


def test_attesting_does_not_depend_on_an_old_connection(world):
    dial = Dial(world.cas)
    with world.session(dial=dial) as session:
        session.attest()
        dial.drop()
        session.attest()
        session.anchor("out").read()
    assert len(dial.sockets) == 2


def test_a_closed_session_attests_anew(world):
    with world.session() as session:
        session.attest()
        session.close()
        assert session.anchor("out").read() is None
    assert world.events().count("attested") == 2


def test_an_enclave_survives_its_cas_starting_again(tmp_path):
    clock = Clock(dt.datetime.now(dt.UTC).timestamp())
    with cas_in(tmp_path, clock) as cas, world_in(cas) as world:
        context = world.session(dial=lambda: world.cas.dial())
        session = context.__enter__()
        session.anchor("out").advance(None, ONE)
    with cas_in(tmp_path, clock) as world.cas, world.cas.owner(world.owner) as world.client:
        session.anchor("out").advance(ONE, TWO)
        assert world.events()[-2:] == ["attested", "anchor"]
        context.__exit__(None, None, None)


def test_a_new_version_of_the_policy_makes_the_enclave_attest_under_it(world):
    with world.session() as session:
        session.anchor("out").advance(None, ONE)
        world.renew()
        session.anchor("out").advance(ONE, TWO)
        assert session._provisions.policy_digest == world.policy.digest
    assert world.events()[-5:] == ["attested", "anchor", "policy", "attested", "anchor"]


def test_a_new_version_of_the_policy_shuts_out_what_it_no_longer_names(world):
    with world.session() as session:
        session.anchor("out").advance(None, ONE)
        world.renew(reference={"measurements": ["00" * 48]})
        for _ in range(2):
            with pytest.raises(MeasurementError):
                session.anchor("out").advance(ONE, TWO)
    assert world.client.anchor(world.name, "out").read() == ONE


def test_a_policy_that_changes_during_an_attestation_is_noticed(world):
    with world.enclave() as enclave:
        nonce, claims = enclave.nonce(), enclave.claims()
        evidence = enclave.evidence(nonce, claims)
        world.renew()
        with pytest.raises(BindingError, match=r"claims.policy_digest: got sha256:.*, wanted " + world.policy.digest):
            enclave.show(evidence, claims)


def test_one_session_serves_several_threads(world):
    failures = []
    with world.session() as session:

        def work():
            try:
                for _ in range(5):
                    session.anchor("out").read()
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures
    assert world.events().count("attested") == 1


def test_an_unknown_policy_is_said_to_be_unknown(world):
    with world.session(policy="acme/nothing") as session, pytest.raises(UnknownPolicyError):
        session.attest()


# Services


def ask_for_a_result(enclave, token, claims):
    body = {"evidence": enclave.service_evidence(token, claims).to_wire(), "time_token": token}
    body["claims"] = base64.b64encode(claims).decode()
    return enclave.http.post("/v1/service", body, fresh=True)


def test_a_service_s_evidence_is_appraised_for_all_its_clients(world):
    name = world.service()
    with world.session(policy=name, role="service") as session:
        result = session.certify_service(MODELS)
        key = session.serving_identity().key.public.fingerprint
    leaf, root = (Certificate(der) for der in result.cas_chain)
    assert root.key.fingerprint == world.cas.address.cas_root
    now = int(world.cas.clock())
    root_of_vendor = world.cas.vendor.root_digest
    said = verify_result(result.result, leaf.key, now=now, allow_simulated=[root_of_vendor])
    assert said.expires == now + RESULT_LIFETIME
    assert (said.issuer, said.policy, said.claims) == (root.key.fingerprint, name, digest(result.claims).hex())
    assert said.policy_digest == world.client.policy(name).digest
    assert said.fresh == digest(result.time_token.encode())
    claims = parse_canonical(result.claims)
    assert (claims["spki"], claims["models"], claims["role"]) == (key, MODELS, "service")
    verify_token(result.time_token, leaf.key, TIME_TOKEN, now=now)
    assert TOKEN.decode() not in repr(result)


def test_a_service_renews_its_result_under_a_new_version(world):
    name = world.service()
    with world.session(policy=name, role="service") as session:
        session.certify_service(MODELS)
        first = world.client.policy(name)
        again = world.text(name=name, role="service", more="", version=2, previous=first.digest)
        digest_now = world.client.apply(again).digest
        assert parse_canonical(session.certify_service(MODELS).claims)["policy_digest"] == digest_now


def test_a_program_is_no_service(world):
    with world.session() as session, pytest.raises(UnauthorizedError, match="its role is program, wanted service"):
        session.certify_service(MODELS)


@pytest.mark.parametrize(
    ("models", "says"),
    [
        (None, "claims: got cas_root"),
        ([], "claims.models: wanted an object of digests"),
        ({"x": "ab"}, "claims.models"),
        ({"x": 1}, "claims.models"),
    ],
)
def test_a_service_names_its_models_by_digest(world, models, says):
    with world.enclave(policy=world.service(), role="service") as enclave:
        enclave.attest()
        token, claims = enclave.time_token(), enclave.claims(models=models)
        with pytest.raises(FormatError, match=says):
            ask_for_a_result(enclave, token, claims)


def test_a_service_names_the_plan_of_a_model_in_parts_by_digest(world):
    with world.enclave(policy=world.service(), role="service") as enclave:
        enclave.attest()
        token, claims = enclave.time_token(), enclave.claims(models=MODELS, plan="ff183005")
        with pytest.raises(FormatError, match=r"claims\.plan: wanted a digest"):
            ask_for_a_result(enclave, token, claims)
        ask_for_a_result(enclave, token, enclave.claims(models=MODELS, plan="sha256:" + "ab" * 32))


def test_a_time_token_has_its_time(tmp_path):
    clock = Clock(dt.datetime.now(dt.UTC).timestamp())
    with (
        cas_in(tmp_path, clock) as cas,
        world_in(cas) as world,
        world.enclave(policy=world.service(), role="service") as enclave,
    ):
        enclave.attest()
        token, claims = enclave.time_token(), enclave.claims(models=MODELS)
        clock.now += RESULT_LIFETIME - 1
        ask_for_a_result(enclave, token, claims)
        clock.now += 1
        enclave.attest()
        with pytest.raises(ExpiredError, match=r"token strongroom-time\+jwt: expired"):
            ask_for_a_result(enclave, token, claims)
        clock.now -= RESULT_LIFETIME + 61
        enclave.attest()
        with pytest.raises(ExpiredError, match=r"token strongroom-time\+jwt: expired"):
            ask_for_a_result(enclave, token, claims)


def test_only_the_cas_s_own_time_tokens_count(world):
    with world.enclave(policy=world.service(), role="service") as enclave:
        enclave.attest()
        token = enclave.time_token()
        claims = enclave.claims(models=MODELS)
        for bad in (token[:-8] + "A" * 8, token + "x", "", "ü", "a.b.c"):
            with pytest.raises(VerificationError):
                ask_for_a_result(enclave, bad, claims)
