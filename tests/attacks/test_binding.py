"""Evidence shown on another channel, another time, to another party, as another kind: each over real TLS channels.

What a CAS is shown is in `test_cas`, what a client is shown for all in `test_service`. Here a client asks the service's
enclave for evidence of its own (`fresh=True`), of a real service of a real CAS, with somebody in between who has
everything that can be had: even the service's TLS key.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pytest

from strongroom.attest.appraise import ReferenceValues
from strongroom.attest.binding import EXPORTER_LABEL, NO_BINDER, Kind, canonical, parse_canonical, report_data
from strongroom.attest.claims import registers_measurement
from strongroom.attest.evidence import Evidence
from strongroom.cas import EnclaveSession
from strongroom.channel import HttpClient, Identity, TlsInfo, bind
from strongroom.crypto import digest
from strongroom.errors import (
    AttestationError,
    BindingError,
    ChannelError,
    ExpiredError,
    FormatError,
    MeasurementError,
    ServeError,
    SimulatedEnclaveError,
)
from strongroom.serve import Client, ServiceApp, ServiceAttestation
from strongroom.serve.attestation import ATTESTATION_PATH, SESSION_ROLE, session_claims
from strongroom.serve.inside import Attestation
from tests.cas.world import MEASURED, Clock, World, cas_in, world_in
from tests.serve.world import serving, stages

X = np.arange(6, dtype=np.float32).reshape(2, 3)
CANARY = 1.2345678e-30
EVIL = dict.fromkeys(MEASURED, b"\xee" * 48)


@dataclass
class Service:
    """A service that runs, what it shows, and who made it."""

    world: World
    policy: str
    session: EnclaveSession
    attestation: Attestation
    identity: Identity
    port: int

    def client(self, port: int | None = None, **options) -> Client:
        vendor = self.world.cas.vendor.root_digest
        reference = ReferenceValues(("simulated",), (registers_measurement(MEASURED),), allow_simulated=vendor)
        known = {"cas_root": self.world.cas.address.cas_root, "policy": self.policy, "reference": reference}
        known |= {"fresh": True, "clock": self.world.cas.clock}
        return Client(f"https://127.0.0.1:{port or self.port}", **known | options)

    @property
    def document(self) -> ServiceAttestation:
        return ServiceAttestation.from_wire(json.loads(json.dumps(self.attestation.document())))


@contextmanager
def running(world: World, **options) -> Iterator[Service]:
    policy = world.service()
    loaded = stages()
    with world.session(policy=policy, role="service", **options) as session:
        digests = {name: f"sha256:{stage.digest}" for name, stage in loaded.items()}
        clock = world.cas.clock
        attestation = Attestation(session, digests, tell=lambda text: None, clock=clock)
        app = ServiceApp(loaded, attestation.document, session=attestation.session)
        identity = session.serving_identity()
        with serving(app, identity) as server:
            yield Service(world, policy, session, attestation, identity, server.port)
        app.close()


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Iterator[World]:
    with cas_in(tmp_path_factory.mktemp("cas")) as cas, world_in(cas) as made:
        yield made


@pytest.fixture(scope="module")
def service(world) -> Iterator[Service]:
    with running(world) as made:
        yield made


class Between:
    """Answers with the real service's document, and with whatever evidence it is told to; writes down what it gets."""

    def tell(self, service: Service, evidence, *, status: int = 200, version: object = 1, document=None) -> None:
        self.document = document or service.attestation.document()
        self.evidence, self.status, self.version = evidence, status, version
        self.paths: list[str] = []

    async def __call__(self, scope, receive, send) -> None:
        body, more = b"", True
        while more:
            event = await receive()
            body, more = body + event.get("body", b""), event.get("more_body", False)
        self.paths.append(scope["path"])
        assert np.float32(CANARY).tobytes() not in body
        status, answer = 200, self.document
        if scope["method"] == "POST":
            status = self.status
            nonce, tls = bytes.fromhex(json.loads(body)["nonce"]), scope["extensions"]["strongroom.tls"]
            made = self.evidence(nonce, tls)
            answer = {"version": self.version, "evidence": made.to_wire() if isinstance(made, Evidence) else made}
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": json.dumps(answer).encode()})


_running: dict[str, tuple[Between, int]] = {}


@pytest.fixture(scope="module", autouse=True)
def thief(service: Service) -> Iterator[None]:
    """Somebody with the service's TLS key, for all attempts: starting a server takes most of an attempt's time."""
    made = Between()
    with serving(made, service.identity) as server:
        _running["thief"] = made, server.port
        yield


@contextmanager
def between(service: Service, evidence, *, key: Identity | None = None, **options) -> Iterator[tuple[Between, int]]:
    if key is None:
        made, port = _running["thief"]
        made.tell(service, evidence, **options)
        yield made, port
        return
    made = Between()
    made.tell(service, evidence, **options)
    with serving(made, key) as server:
        yield made, server.port


def attempt(service: Service, evidence, error, *, match=None, key: Identity | None = None, **options):
    """Put somebody in front of the service, who holds its TLS key; the client must send no input."""
    with between(service, evidence, key=key, **options) as (thief, port):
        with service.client(port) as ours, pytest.raises(error, match=match):
            ours.predict({"x": np.full((1, 3), CANARY, np.float32)})
        assert set(thief.paths) == {ATTESTATION_PATH}


def quote(service: Service, *, registers=MEASURED, claims: bytes | None = None, **bound) -> Evidence:
    """What the vendor signs for the host of a simulated enclave; of a real one, only what its program asks for."""
    raw = claims or canonical(session_claims(service.document.claims))
    return service.world.cas.vendor.quote(registers, report_data(**{"claims": raw, "kind": Kind.SESSION} | bound))


def honest(service: Service, nonce: bytes, tls: TlsInfo) -> Evidence:
    return quote(service, fresh=nonce, binder=tls.export(EXPORTER_LABEL, SESSION_ROLE.encode()))


def ask(service: Service, nonce: bytes, port: int | None = None):
    """The real service's evidence for a nonce, and the exporter of the channel that it came over."""
    with HttpClient.to("127.0.0.1", port or service.port, expect=lambda chain: None) as http:
        exported = http.connect().export(EXPORTER_LABEL, SESSION_ROLE.encode())
        answer = http.post(ATTESTATION_PATH, {"nonce": nonce.hex()}, fresh=True)
        return Evidence.from_wire(answer["evidence"]), exported


# The honest one, so that the refusals mean something


def test_a_fresh_service_is_asked(service):
    with service.client() as ours:
        appraised = ours.appraise()
        assert appraised.session.measurement == registers_measurement(MEASURED)
        assert np.array_equal(ours.predict({"x": X})["y"], X + X)
    with service.client(fresh=False) as ours:
        assert ours.appraise().session is None


def test_somebody_between_who_could_make_the_right_evidence_would_be_believed(service):
    """The attempts below fail by what they change, not by how they are made."""
    with between(service, partial(honest, service)) as (_, port), service.client(port) as ours:
        assert ours.appraise().session.measurement == registers_measurement(MEASURED)


# Relay


def test_a_relay_with_the_stolen_key_cannot_pass_on_the_enclaves_evidence(service):
    """It asks the enclave on a channel of its own, with the client's own nonce."""
    attempt(service, lambda nonce, tls: ask(service, nonce)[0], BindingError, match="report data")


def test_without_fresh_evidence_a_stolen_key_is_good_until_the_result_expires(service):
    """What docs/spec/service.md says is not shown; `fresh=True` is there for it."""
    with between(service, None) as (_, port), service.client(port, fresh=False) as ours:
        assert ours.appraise().key == service.identity.key.public.fingerprint


def test_a_relay_with_a_key_of_its_own(service):
    own = Identity.fresh("relay", now=dt.datetime.now(dt.UTC))
    attempt(service, partial(honest, service), BindingError, match="which this connection showed", key=own)


# Replay


def test_evidence_of_an_earlier_session(service):
    old, _ = ask(service, b"n" * 32)
    attempt(service, lambda nonce, tls: old, BindingError, match="report data")


def test_evidence_of_an_earlier_nonce_on_this_channel(service):
    def replay(nonce, tls):
        return quote(service, fresh=b"n" * 32, binder=tls.export(EXPORTER_LABEL, SESSION_ROLE.encode()))

    attempt(service, replay, BindingError, match="report data")


def test_the_client_never_sends_a_nonce_twice(service):
    nonces = []

    def note(nonce, tls):
        nonces.append(nonce)
        return honest(service, nonce, tls)

    with between(service, note) as (_, port):
        for _ in range(3):
            service.client(port).appraise()
    assert len(set(nonces)) == 3


# Reflection


def test_what_a_service_shows_a_client_convinces_no_cas(service):
    """Somebody asks the enclave with the CAS's nonce, and shows the CAS the answer as a boot."""
    world = service.world
    with world.enclave(policy=service.policy, role="service", identity=service.identity) as enclave:
        evidence, _ = ask(service, enclave.nonce())
        with pytest.raises(BindingError, match="report data"):
            enclave.show(evidence, canonical(session_claims(service.document.claims)))
        # Even on a channel that exports the same, its claims are of a role that no policy has.
        claims = canonical(session_claims(service.document.claims))
        binder = enclave.stream.export(EXPORTER_LABEL, SESSION_ROLE.encode())
        made = quote(service, fresh=enclave.nonce(), binder=binder, claims=claims)
        with pytest.raises(FormatError, match="claims: got"):
            enclave.show(made, claims)


def test_what_an_enclave_shows_its_cas_convinces_no_client(service):
    """The same channel and nonce, in the role of a boot."""

    def boot(nonce, tls):
        claims = parse_canonical(service.document.claims)
        said = canonical({name: value for name, value in claims.items() if name != "models"})
        return quote(service, fresh=nonce, binder=tls.export(EXPORTER_LABEL, b"service"), claims=said)

    attempt(service, boot, BindingError, match="report data")


def test_the_exporter_of_another_role(service):
    def other(nonce, tls):
        return quote(service, fresh=nonce, binder=tls.export(EXPORTER_LABEL, b"service"))

    attempt(service, other, BindingError, match="report data")


def test_a_service_that_is_a_client_does_not_take_its_own_evidence_for_another_s(service):
    """Its own document comes back to it, from somebody who does not hold its key."""
    other = Identity.fresh("mirror", now=dt.datetime.now(dt.UTC))
    attempt(service, lambda nonce, tls: ask(service, nonce)[0], BindingError, match="this connection showed", key=other)


# Kind confusion


def test_service_evidence_as_session_evidence(service):
    attempt(service, lambda nonce, tls: service.document.evidence, BindingError, match="report data")

    def unbound(nonce, tls):
        return quote(service, kind=Kind.SERVICE, fresh=nonce, binder=NO_BINDER)

    attempt(service, unbound, BindingError, match="report data")


def test_session_evidence_as_service_evidence(service):
    """A service asked with the digest of its own time token as nonce."""
    real = service.document
    evidence, _ = ask(service, digest(real.time_token.encode()))
    for claims in (real.claims, canonical(session_claims(real.claims))):
        document = replace(real, evidence=evidence, claims=claims).to_wire()
        attempt(service, partial(honest, service), BindingError, match="report data", document=document)


# Downgrade


def test_a_service_that_declines_to_make_evidence(service):
    for status in (404, 405, 503):
        attempt(service, lambda nonce, tls: None, (ServeError, ChannelError), status=status)


@pytest.mark.parametrize("version", [0, 2, True, "1", None])
def test_another_version_of_the_answer(service, version):
    attempt(service, partial(honest, service), FormatError, match="session evidence: got version", version=version)


def test_no_evidence_at_all(service):
    for nothing in (None, [], {"tee": "simulated"}):
        attempt(service, lambda nonce, tls, nothing=nothing: nothing, FormatError, match="evidence")


@pytest.mark.parametrize("label", [b"strongroom/evidence/v0", b"strongroom/evidence/v2", b"strongroom/device/v1", b""])
def test_another_label(service, label):
    def older(nonce, tls):
        claims = canonical(session_claims(service.document.claims))
        binder = tls.export(EXPORTER_LABEL, SESSION_ROLE.encode())
        bound = hashlib.sha512(label + b"\x01" + nonce + binder + hashlib.sha256(claims).digest()).digest()
        return service.world.cas.vendor.quote(MEASURED, bound)

    attempt(service, older, BindingError, match="report data")


def test_another_exporter_label(service):
    def older(nonce, tls):
        return quote(service, fresh=nonce, binder=tls.export(b"EXPORTER-Strongroom-v0", SESSION_ROLE.encode()))

    attempt(service, older, BindingError, match="report data")


def test_an_older_tls(service, tmp_path):
    pem = tmp_path / "key.pem"
    pem.write_bytes(service.identity.key.pem() + service.identity.chain[0].pem())
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    old.load_cert_chain(pem)
    with bind("127.0.0.1", 0) as listening:

        def serve():
            for _ in range(2):  # a client whose connection breaks asks once more
                with listening.accept()[0] as sock, pytest.raises(ssl.SSLError):
                    old.wrap_socket(sock, server_side=True)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(ChannelError, match="TLS handshake"):
            service.client(listening.getsockname()[1]).appraise()
        thread.join()


def test_a_weaker_kind_of_evidence(service):
    """A policy for hardware is not served by what software vouches for, nor by a kind that it does not list."""
    measurement = registers_measurement(MEASURED)
    hardware = ReferenceValues(("tdx",), (measurement,))
    with service.client(reference=hardware) as ours, pytest.raises(SimulatedEnclaveError):
        ours.appraise()
    listed = ReferenceValues(("tdx",), (measurement,), allow_simulated=service.world.cas.vendor.root_digest)
    with service.client(reference=listed) as ours, pytest.raises(AttestationError, match="tee: got simulated"):
        ours.appraise()
    relabelled = partial(honest, service)
    for tee in ("tdx", "snp", "tpm"):
        attempt(service, lambda n, t, tee=tee: replace(relabelled(n, t), tee=tee), (AttestationError, FormatError))


def test_missing_devices(service):
    reference = ReferenceValues(
        ("simulated",),
        (registers_measurement(MEASURED),),
        allow_simulated=service.world.cas.vendor.root_digest,
        devices=ReferenceValues(("nvidia",), ("ab" * 48,)),
    )
    with (
        service.client(reference=reference) as ours,
        pytest.raises(AttestationError, match="devices: got none, wanted"),
    ):
        ours.appraise()


def test_a_device_that_is_none(service):
    def with_device(nonce, tls):
        return replace(honest(service, nonce, tls), devices=(Evidence("nvidia", b"\0" * 64, b""),))

    attempt(service, with_device, (AttestationError, FormatError))


def test_another_enclave_than_the_document_is_of(service):
    """Both are in the client's list; the one that holds the key is not the one that answers."""
    measurements = (registers_measurement(MEASURED), registers_measurement(EVIL))
    allowed = service.world.cas.vendor.root_digest
    both = ReferenceValues(("simulated",), measurements, allow_simulated=allowed)

    def other(nonce, tls):
        binder = tls.export(EXPORTER_LABEL, SESSION_ROLE.encode())
        return quote(service, registers=EVIL, fresh=nonce, binder=binder)

    with between(service, other) as (_, port):
        ours = service.client(port, reference=both)
        with ours, pytest.raises(MeasurementError, match="session evidence: got measurement"):
            ours.appraise()


def test_claims_of_another_document(service):
    def other(nonce, tls):
        claims = session_claims(service.document.claims) | {"models": {"digits": "sha256:" + "00" * 32}}
        binder = tls.export(EXPORTER_LABEL, SESSION_ROLE.encode())
        return quote(service, fresh=nonce, binder=binder, claims=canonical(claims))

    attempt(service, other, BindingError, match="report data")


# What a service is asked


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"[]", b'{"nonce": 1}', b'{"nonce": "00"}', b'{"nonce": "' + b"A" * 64 + b'"}', b"x" * 300]
)
def test_a_nonce_of_another_form(service, body):
    with HttpClient.to("127.0.0.1", service.port, expect=lambda chain: None) as http:
        answer = http.request("POST", ATTESTATION_PATH, body=body)
        assert answer.status in (400, 413)
        assert answer.json()["code"] in ("format", "serve")


# Attesting again


def test_a_service_whose_policy_no_longer_wants_it_says_so_and_clients_end(tmp_path):
    clock = Clock(time.time())
    with cas_in(tmp_path, clock) as cas, world_in(cas) as world, running(world) as service:
        ours, late = service.client(), service.client(fresh=False)
        ours.predict({"x": X})
        first = world.client.policy(service.policy)
        measurements = {"measurements": ["ee" * 48]}
        text = world.text(
            name=service.policy, role="service", more="", version=2, previous=first.digest, reference=measurements
        )
        world.client.apply(text)
        ours.predict({"x": X})  # the result that it has is good for ten minutes
        clock.now += 300
        service.attestation.renewal.step()
        with pytest.raises(MeasurementError):
            late.predict({"x": X})
        clock.now += 200  # within two minutes of the end the client asks again
        with pytest.raises(MeasurementError):
            ours.predict({"x": X})
        for client in (ours, late):
            client.close()


def test_a_service_that_cannot_renew_is_trusted_until_the_result_expires(tmp_path):
    clock = Clock(time.time())
    with cas_in(tmp_path, clock) as cas, world_in(cas) as world, running(world) as service:
        ours = service.client(fresh=False)
        for seconds in (0, 479, 20, 100):
            clock.now += seconds
            ours.predict({"x": X})
        clock.now += 1
        with ours, pytest.raises(ExpiredError, match="could not be renewed within 600 seconds"):
            ours.predict({"x": X})


def test_a_client_appraises_again_before_the_end_and_sends_on(tmp_path):
    clock = Clock(time.time())
    with cas_in(tmp_path, clock) as cas, world_in(cas) as world, running(world) as service, service.client() as ours:
        first = ours.appraise()
        for _ in range(5):
            clock.now += 300
            service.attestation.renewal.step()
            assert np.array_equal(ours.predict({"x": X})["y"], X + X)
        assert ours.appraise().expires >= first.expires + 1200
        assert ours.appraise().key == first.key


def test_who_asks_for_evidence_without_end_is_turned_away(service):
    """A TEE makes one at a time; sixteen may wait, the next is told so at once, and everything else goes on."""
    asked, go_on = threading.Event(), threading.Event()

    def slow(nonce, binder):
        asked.set()
        go_on.wait()
        return {}

    app = ServiceApp(stages(), service.attestation.document, session=slow)
    body = json.dumps({"nonce": "00" * 32}).encode()

    def post(_=None):
        with HttpClient.to("127.0.0.1", server.port, expect=lambda chain: None) as http:
            return http.request("POST", ATTESTATION_PATH, body=body).status

    with serving(app) as server, ThreadPoolExecutor(16) as pool:
        waiting = [pool.submit(post) for _ in range(16)]
        asked.wait()
        while app._nonces < 16:
            pass
        assert post() == 429
        with HttpClient.to("127.0.0.1", server.port, expect=lambda chain: None) as http:
            assert http.get("/v2/health/live") == {"live": True}
        go_on.set()
        assert [each.result() for each in waiting] == [200] * 16
    app.close()
