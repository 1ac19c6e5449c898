"""What an enclave, its host or the network may try with a CAS: replay, relay, and posing as the CAS."""

from __future__ import annotations

import argparse
import base64
import datetime as dt
from dataclasses import replace

import pytest

from strongroom.attest.binding import Kind, report_data
from strongroom.attest.tee.simulated import SimulatedAttester
from strongroom.cas import OwnerClient
from strongroom.cas.wire import CAS_URI, CONFIGURATION_INFO, b64
from strongroom.channel import Identity, Server, bind
from strongroom.cli.main import _fail
from strongroom.crypto import CertificateAuthority, HpkeKey, SigningKey
from strongroom.errors import (
    BindingError,
    FormatError,
    PeerIdentityError,
    TamperedError,
)
from tests.attacks.cas.conftest import is_not_attested
from tests.cas.world import MEASURED, TOKEN, VAULT_KEY


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
