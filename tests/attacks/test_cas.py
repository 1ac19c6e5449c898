"""What an enclave, the host, the network or a stranger may try with a CAS."""

from __future__ import annotations

import argparse
import base64
import datetime as dt
import json
import logging
from collections.abc import Iterator
from dataclasses import replace

import pytest

from strongroom.attest.binding import NO_BINDER, Kind, report_data
from strongroom.attest.tee.simulated import SimulatedAttester, SimulatedVendor
from strongroom.cas import OwnerClient
from strongroom.cas.policy.version import sign_policy
from strongroom.cas.wire import CAS_URI, CONFIGURATION_INFO, b64
from strongroom.channel import HttpClient, Identity, Server, bind
from strongroom.cli.main import _fail
from strongroom.crypto import CertificateAuthority, HpkeKey, SigningKey, digest
from strongroom.errors import (
    AttestationError,
    BindingError,
    ChannelError,
    ConflictError,
    DebugEnclaveError,
    FormatError,
    MeasurementError,
    PeerIdentityError,
    PolicyError,
    RollbackError,
    SimulatedEnclaveError,
    StrongroomError,
    TamperedError,
    UnauthorizedError,
    UnknownPolicyError,
    VerificationError,
)
from strongroom.sealed import Root
from tests.cas.world import MEASURED, PROGRAM, TOKEN, VAULT_KEY, Cas, World, cas_in, world_in

ONE, TWO, THREE = (Root(n, bytes([n]) * 32) for n in (1, 2, 3))
MODELS = {"digits": "sha256:" + "ab" * 32}


@pytest.fixture(scope="module")
def cas(tmp_path_factory) -> Iterator[Cas]:
    with cas_in(tmp_path_factory.mktemp("cas")) as running:
        yield running


@pytest.fixture
def world(cas) -> Iterator[World]:
    with world_in(cas) as made:
        yield made


@pytest.fixture
def enclave(world):
    with world.enclave() as made:
        yield made


def is_not_attested(enclave) -> bool:
    """Whether the CAS still treats the connection as anybody's."""
    with pytest.raises(UnauthorizedError):
        enclave.http.request("GET", f"/v1/policies/{enclave.policy}/anchors/out", fresh=True).expect_ok()
    with pytest.raises(UnauthorizedError, match="no enclave has attested"):
        enclave.time_token()
    return True


def test_the_honest_enclave_is_served(enclave):
    got = enclave.open(enclave.attest())
    assert got.vault_keys["data"] == VAULT_KEY
    enclave.time_token()


# Replay and relay


def test_evidence_of_another_connection_with_its_nonce_is_refused(world, enclave):
    nonce, claims = enclave.nonce(), enclave.claims()
    captured = enclave.evidence(nonce, claims)
    with world.enclave(identity=enclave.identity) as thief:
        with pytest.raises(BindingError, match="nonce: none was asked for on this connection"):
            thief.show(captured, claims)
        assert is_not_attested(thief)


def test_evidence_of_another_connection_with_a_new_nonce_is_refused(world, enclave):
    nonce, claims = enclave.nonce(), enclave.claims()
    captured = enclave.evidence(nonce, claims)
    with world.enclave(identity=enclave.identity) as thief:
        thief.nonce()
        with pytest.raises(BindingError, match="report data: got"):
            thief.show(captured, claims)
        assert is_not_attested(thief)
    assert world.refusals() == ["binding"]


def test_evidence_for_another_exporter_is_refused_though_all_else_is_right(world, enclave):
    """What a relay obtains that makes an enclave attest towards it: same nonce, same claims, another channel."""
    nonce, claims = enclave.nonce(), enclave.claims()
    with world.enclave(identity=enclave.identity) as victim:
        relayed = victim.evidence(nonce, claims)
    with pytest.raises(BindingError, match="report data: got"):
        enclave.show(relayed, claims)
    assert is_not_attested(enclave)


def test_a_nonce_serves_once(enclave):
    nonce, claims = enclave.nonce(), enclave.claims()
    evidence = enclave.evidence(nonce, claims)
    enclave.show(evidence, claims)
    with pytest.raises(BindingError, match="or it was used already"):
        enclave.show(evidence, claims)
    assert is_not_attested(enclave)


def test_a_replay_is_refused_in_two_lines_and_status_34(enclave, capsys):
    nonce, claims = enclave.nonce(), enclave.claims()
    evidence = enclave.evidence(nonce, claims)
    enclave.show(evidence, claims)
    with pytest.raises(BindingError) as caught:
        enclave.show(evidence, claims)
    assert _fail(caught.value, argparse.Namespace(debug=False, json=False)) == 34
    out, err = capsys.readouterr()
    problem, hint = err.splitlines()
    assert out == ""
    assert problem.startswith("strongroom: error: nonce: none was asked for on this connection")
    assert hint.startswith("strongroom: hint: evidence is good for one nonce on one connection")


@pytest.mark.parametrize("field", ["cas_root", "policy_digest", "spki"])
def test_claims_that_do_not_fit_say_what_to_do(enclave, field):
    with pytest.raises(BindingError, match=rf"claims\.{field}: got") as caught:
        enclave.attest(**{field: "other"})
    assert caught.value.hint


def test_a_nonce_is_used_up_by_a_failure(enclave):
    nonce, claims = enclave.nonce(), enclave.claims()
    evidence = enclave.evidence(nonce, claims)
    with pytest.raises(FormatError):
        enclave.http.post("/v1/attest", {"claims": b64(claims)}, fresh=True)
    with pytest.raises(BindingError, match="or it was used already"):
        enclave.show(evidence, claims)


def test_an_older_nonce_is_refused(enclave):
    nonce, claims = enclave.nonce(), enclave.claims()
    enclave.nonce()
    with pytest.raises(BindingError, match="report data: got"):
        enclave.show(enclave.evidence(nonce, claims), claims)


def test_a_failed_attestation_ends_an_earlier_one(enclave):
    enclave.attest()
    enclave.time_token()
    with pytest.raises(BindingError):
        enclave.attest(cas_root="sha256:" + "00" * 32)
    assert is_not_attested(enclave)


class Recorder:
    """A relay that terminates TLS: it answers everything and remembers what it was told."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    async def __call__(self, scope, receive, send) -> None:
        self.heard.append(scope["path"])
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"{}"})


def refused_as_cas(world, identity: Identity) -> None:
    """An impostor with this identity learns nothing of the enclave nor of the owner."""
    impostor = Recorder()
    with Server(impostor, bind("127.0.0.1", 0), identity) as server:
        url = f"https://127.0.0.1:{server.port}"
        root = world.cas.address.cas_root
        fake = replace(world.cas, address=replace(world.cas.address, url=url))
        with world.session(dial=fake.dial) as session, pytest.raises(PeerIdentityError):
            session.attest()
        with OwnerClient(url, cas_root=root, owner=world.owner) as owner:
            for request in (owner.describe, lambda: owner.put_vault_key(world.name, "data", VAULT_KEY)):
                with pytest.raises(PeerIdentityError):
                    request()
    assert impostor.heard == []


def now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


def test_a_relay_with_a_key_of_its_own_hears_nothing(world):
    refused_as_cas(world, Identity.fresh("CAS", now=now()))


def test_a_relay_that_shows_the_real_certificates_hears_nothing(world, enclave):
    """Beside its own, which is the one that it has the key of."""
    leaf, root = enclave.stream.peer
    key = SigningKey.generate()
    own = Identity.of_key(key, "Strongroom CAS", now=now()).chain[0]
    refused_as_cas(world, Identity(key, (own, root)))
    refused_as_cas(world, Identity(key, (own, leaf, root)))


def test_a_cas_under_another_root_of_the_same_name_is_refused(world):
    authority = CertificateAuthority.create("Strongroom CAS root", now=now())
    key = SigningKey.generate()
    week = dt.timedelta(days=7)
    leaf = authority.issue(key.public, "Strongroom CAS", now=now(), lifetime=week, uris=[CAS_URI])
    refused_as_cas(world, Identity(key, (leaf, authority.certificate)))


def test_an_enclave_cannot_pose_as_its_cas_with_the_certificate_it_was_given(world, enclave):
    certificate = enclave.open(enclave.attest()).certificate
    refused_as_cas(world, Identity(enclave.identity.key, (certificate, enclave.stream.peer[1])))


def test_an_expired_cas_is_refused(world, tmp_path):
    (tmp_path / "cas").mkdir()
    long_ago = dt.datetime.now(dt.UTC) - dt.timedelta(days=400)
    authority = CertificateAuthority.create("root", now=long_ago)
    key = SigningKey.generate()
    leaf = authority.issue(key.public, "CAS", now=long_ago, lifetime=dt.timedelta(days=365), uris=[CAS_URI])
    with Server(Recorder(), bind("127.0.0.1", 0), Identity(key, (leaf, authority.certificate))) as server:
        client = OwnerClient(f"https://127.0.0.1:{server.port}", cas_root=authority.key.public.fingerprint)
        with client, pytest.raises(PeerIdentityError, match="peer certificate: certificate: not valid at"):
            client.describe()


def test_what_travels_can_be_opened_by_the_attested_key_only(world, enclave):
    answer = enclave.attest()
    box = base64.b64decode(str(answer["configuration"]))
    for secret in (TOKEN, VAULT_KEY, base64.b64encode(VAULT_KEY)):
        assert secret not in box
    with pytest.raises(TamperedError):
        HpkeKey().open(box, info=CONFIGURATION_INFO)
    with pytest.raises(TamperedError):
        enclave.hpke.open(box, info=b"other")


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


# What leaks


def test_secrets_appear_nowhere_but_in_the_enclave(tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    with cas_in(tmp_path) as cas, world_in(cas) as world:
        with world.session() as session:
            got = session.attest()
            shown = [repr(x) for x in (session, got, world.policy, world.client, world.client.log())]
        for request in (
            lambda: world.client.put_secret(world.name, "nothing", TOKEN),
            lambda: world.client.put_secret(world.name, "token", TOKEN + b"\0"),
            lambda: world.client.put_vault_key(world.name, "data", VAULT_KEY + b"x"),
            lambda: world.client._put(f"/v1/policies/{world.name}/secrets/token", {"value": TOKEN.decode() + "*"}),
            lambda: world.client._put(f"/v1/policies/{world.name}/secrets/token", TOKEN.decode()),
        ):
            with pytest.raises(StrongroomError) as caught:
                request()
            shown += [repr(caught.value), str(caught.value.to_wire())]
        secrets = [TOKEN, VAULT_KEY, got.environment["SEED"].encode(), (cas.directory / "master.key").read_bytes()]
        files = {p.name: p.read_bytes() for p in cas.directory.iterdir() if p.name != "master.key"}
    text = "\n".join([caplog.text, *shown]).encode()
    for secret in secrets:
        for form in (secret, secret.hex().encode(), base64.b64encode(secret), repr(secret)[2:-1].encode()):
            assert form not in text
            assert not [name for name, content in files.items() if form in content]


BODIES = [
    b"",
    b"null",
    b"7",
    b'"text"',
    b"[]",
    b"{",
    b"\xff\xfe",
    b"{}",
    b"[" * 100_000,
    b'{"policy":' * 50_000,
    b'{"policy":' + b"1" * 10_000 + b"}",
    b'{"policy":1e999}',
    b'{"policy":"\\ud800","text":"\\ud800","signature":"\\ud800","value":"\\ud800","claims":"\\ud800","new":"\\ud800"}',
    b'{"policy":"\\u0000","text":"\\u0000","signature":"","value":"\xc3\xbc","claims":"e30=","new":"\\u0000"}',
    b'{"policy":null,"text":null,"signature":null,"value":null,"claims":null,"old":7,"new":null,"evidence":null}',
    b'{"policy":{},"text":[],"signature":{},"value":[],"claims":{},"old":{},"new":[],"evidence":[],"time_token":{}}',
    b'{"policy":"acme/x","text":"a = 0x' + b"f" * 9000 + b'","signature":"AA==","value":"AA==","claims":"AA=="}',
]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/nonce"),
        ("POST", "/v1/attest"),
        ("POST", "/v1/time-token"),
        ("POST", "/v1/service"),
        ("PUT", "/v1/policies/{name}"),
        ("PUT", "/v1/policies/{name}/secrets/token"),
        ("PUT", "/v1/policies/{name}/anchors/out"),
        ("POST", "/v1/log/cosignatures"),
    ],
)
def test_no_body_brings_a_cas_to_fall(world, caplog, method, path):
    with world.enclave() as attested, world.enclave() as asked, world.cas.owner(world.owner) as owner:
        attested.attest()
        for http in (attested.http, asked.http, owner._http):
            for body in [*BODIES, b'{"value":"' + b"A" * (1 << 20) + b'"}']:
                if http is asked.http:
                    asked.nonce()
                headers = {"content-type": "application/json"}
                answer = http.request(method, path.format(name=world.name), body=body, headers=headers)
                if answer.status == 200:
                    assert path == "/v1/time-token" and http is attested.http
                    continue
                assert 400 <= answer.status < 500
                assert set(answer.json()) <= {"error", "code", "hint"}
                assert "Traceback" not in answer.body.decode()
    assert "request failed" not in caplog.text


def test_a_body_over_the_limit_is_not_taken_in(world):
    for size in (1 << 20, 3 << 20):
        with pytest.raises(FormatError, match="request: longer than 1048576 bytes"):
            world.client.put_secret(world.name, "token", b"x" * size)
    world.client.put_secret(world.name, "token", b"x" * 700_000)


def test_evidence_of_wrong_types_is_refused(enclave):
    claims = enclave.claims()
    good = enclave.evidence(enclave.nonce(), claims).to_wire()
    changes = [{"tee": 7}, {"tee": "sgx"}, {"quote": "%"}, {"quote": ""}, {"quote": None}, {"endorsements": "AAAA"}]
    for evidence in ({}, [], "x", good | {"more": 1}, *(good | change for change in changes)):
        enclave.nonce()
        with pytest.raises((FormatError, VerificationError)):
            enclave.http.post("/v1/attest", {"evidence": evidence, "claims": b64(claims)}, fresh=True)
    assert is_not_attested(enclave)


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/v1",
        "/v1/cas/",
        "/v1/policies/",
        "/v1/policies/acme",
        "/v1/policies//x",
        "/v1/policies/acme/..",
        "/v1/policies/acme/%2e%2e/anchors/out",
        "/v1/policies/acme%2Fx/y",
        "/v1/policies/acme/x%00",
        "/v1/policies/acme/%ff%fe",
        "/v1/policies/acme/%ed%a0%80",
        "/v1/policies/acme/x%0d%0aSet-Cookie:y",
        "/v1/policies/" + "a" * 5000 + "/x",
        "/v1/policies/../../etc/passwd/x",
        "/v1/log?after=-1",
        "/v1/log?after=1e3",
        "/v1/log?after=" + "9" * 19,
        "/v1/log?after=%C2%B2",
        "/v1/log?after=%D9%A3",
        "/v1/log?after=",
        "/v1/log?proofs=",
        "/v1/log?proofs=" + "9" * 19,
        "/v1/log/",
        "/v1/log/consistency",
        "/v1/log/consistency?from=1&to=-1",
        "/v1/log/consistency?from=2&to=1",
        "/v1/log/consistency?from=0&to=" + "9" * 18,
        "//evil.example/v1/cas",
    ],
)
def test_no_path_leads_elsewhere(world, caplog, path):
    answer = world.client._http.request("GET", path)
    assert answer.status in (400, 404)
    assert set(answer.json()) <= {"error", "code", "hint"}
    assert len(answer.body) < 1000
    assert "location" not in answer.headers
    assert "request failed" not in caplog.text


@pytest.mark.parametrize("method", ["DELETE", "POST", "PATCH", "OPTIONS", "TRACE"])
def test_no_other_method_does_anything(world, method):
    answer = world.client._http.request(method, f"/v1/policies/{world.name}")
    assert (answer.status, answer.json()["code"]) == (405, "usage")


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x00\x01\x02\x03 nonsense\r\n\r\n",
        b"GET /v1/\xff HTTP/1.1\r\nHost: cas\r\n\r\n",
        b"POST /v1/nonce HTTP/1.1\r\nHost: cas\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/nonce HTTP/1.1\r\nHost: cas\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}",
        b"GET /v1/cas HTTP/9.9\r\nHost: cas\r\n\r\n",
    ],
)
def test_what_is_not_http_ends_the_connection_only(world, enclave, request_bytes):
    enclave.stream.send(request_bytes)
    answer = b""
    try:
        while part := enclave.stream.recv():
            answer += part
    except ChannelError:
        pass
    assert answer.startswith(b"HTTP/1.1 400") or not answer
    assert world.client.describe()["service"] == "strongroom-cas"


def test_a_request_that_is_cut_off_is_no_failure(world, enclave, caplog):
    enclave.stream.send(b"POST /v1/nonce HTTP/1.1\r\nHost: cas\r\nContent-Length: 100\r\n\r\n{")
    enclave.http.close()
    # Two more round trips on the same event loop: by then the CAS has seen the end of that connection.
    for _ in range(2):
        world.client.describe()
    assert "request failed" not in caplog.text


def test_a_policy_made_to_be_slow_is_refused_before_it_is_parsed(world):
    text = world.text() + "a." * 60_000 + "b = 1\n"
    with pytest.raises(PolicyError, match="60000 dots in one line outside strings, the limit is 16"):
        signature = b64(sign_policy(text, world.owner))
        world.client._put(f"/v1/policies/{world.name}", {"text": text, "signature": signature})


def test_an_internal_failure_says_nothing(world, caplog, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError(f"disk full, while writing {TOKEN.decode()}")

    monkeypatch.setattr("strongroom.cas.state.store.Store.put_secret", fail)
    path, body = f"/v1/policies/{world.name}/secrets/token", json.dumps({"value": b64(TOKEN)}).encode()
    answer = world.client._http.request("PUT", path, body=body, headers={"content-type": "application/json"})
    assert answer.status == 500
    assert answer.json() == {
        "error": "request: the CAS failed to handle it",
        "code": "cas",
        "hint": "its own log says why",
    }
    assert "request failed: PUT" in caplog.text


def test_an_enclave_measured_for_another_cas_does_not_attest_here(world):
    """The measured configuration names a CAS: the host cannot point the enclave at its own."""
    with world.session(cas_root="sha256:" + "00" * 32) as session, pytest.raises(PeerIdentityError):
        session.attest()


def test_a_client_without_the_exporter_of_its_channel_cannot_attest(enclave):
    nonce, claims = enclave.nonce(), enclave.claims()
    for binder in (b"x" * 32, enclave.stream.export(b"EXPORTER-Strongroom-v1", b"service")):
        bound = report_data(Kind.SESSION, fresh=nonce, binder=binder, claims=claims)
        with pytest.raises(BindingError):
            enclave.show(SimulatedAttester(enclave.vendor, MEASURED).evidence(bound), claims)
        nonce = enclave.nonce()


def test_the_owner_s_key_alone_opens_the_owner_s_doors(world):
    """A self-signed certificate of the owner's name, with another key."""
    impostor = Identity.fresh("Strongroom owner", now=now())
    http = HttpClient(world.cas.dial, host="cas", expect=lambda chain: None, identity=impostor)
    with http:
        answer = http.request("GET", f"/v1/policies/{world.name}/anchors/out")
        assert (answer.status, answer.json()["code"]) == (403, "unauthorized")
