"""Logging in on a connection, by a key with which TLS is not done."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from strongroom.attest.binding import EXPORTER_LABEL
from strongroom.cas.callers.administrators import LOGIN_ROLE, login_statement
from strongroom.cas.client.address import cas_expectation
from strongroom.cas.wire import b64
from strongroom.channel import HttpClient
from strongroom.crypto import PublicKey, SigningKey, digest
from strongroom.errors import FormatError, UnauthorizedError, VerificationError
from tests.cas.world import World


class Kept:
    """A key that signs and is not to be had, as a token's."""

    def __init__(self, key: SigningKey) -> None:
        self._key, self.signed = key, 0

    @property
    def public(self) -> PublicKey:
        return self._key.public

    def sign(self, message: bytes) -> bytes:
        self.signed += 1
        return self._key.sign(message)


def anonymous(world: World) -> HttpClient:
    return HttpClient(world.cas.dial, host="cas", expect=cas_expectation(world.cas.address.cas_root))


def statement(world: World, http: HttpClient, *, root: str = "") -> bytes:
    http.get("/v1/cas")  # the handshake has ended
    binder = http.connect().export(EXPORTER_LABEL, LOGIN_ROLE.encode())
    return login_statement(binder, root or world.cas.address.cas_root)


def test_a_key_that_does_no_tls_does_all_that_its_policy_lets_it(world):
    kept = Kept(world.owner)
    with world.cas.owner(kept) as client:
        client.put_secret(world.name, "token", b"new")
        assert client.log()[-1]["event"] == "secret"
        client.apply(world.text(version=2, previous=world.policy.digest))
        assert kept.signed == 2  # one login, one policy
        client.close()
        client.put_secret(world.name, "token", b"again")  # another connection, another login
        assert kept.signed == 3
    assert json.loads(world.client.log()[-1]["detail"])["by"] == world.owner.public.fingerprint


def test_the_right_signature_logs_in_and_others_do_not(world):
    with anonymous(world) as http, anonymous(world) as other:
        key = b64(world.owner.public.spki)
        good = world.owner.sign(statement(world, http))
        wrong = [
            (world.owner.sign(statement(world, other)), "another connection's"),
            (world.owner.sign(statement(world, http, root="sha256:" + "0" * 64)), "another CAS's"),
            (SigningKey.generate().sign(statement(world, http)), "another key's"),
            (good[:-1], "a shorter one"),
        ]
        for signature, _ in wrong:
            with pytest.raises(VerificationError, match="signature"):
                http.post("/v1/login", {"key": key, "signature": b64(signature)})
        with pytest.raises(UnauthorizedError, match="a client certificate with the owner's key is wanted, or a login"):
            http.get("/v1/log")
        answer = http.post("/v1/login", {"key": key, "signature": b64(good)})
        assert answer == {"caller": world.owner.public.fingerprint, "expires": None}
        assert http.get("/v1/log")["entries"]
        with pytest.raises(UnauthorizedError):  # of that connection alone
            other.get("/v1/log")


@pytest.mark.parametrize(
    "body", [{}, {"key": ""}, {"token": "x", "key": "", "signature": ""}, {"key": "AAAA", "signature": "AAAA"}]
)
def test_a_malformed_login_is_refused(world, body):
    with anonymous(world) as http, pytest.raises(FormatError, match=r"login|public key"):
        http.post("/v1/login", body)


def test_a_cas_without_issuers_takes_no_tokens(world):
    with world.cas.bearer("a.b.c") as client, pytest.raises(UnauthorizedError, match="takes those of no issuer"):
        client.log()


def test_what_is_signed_is_that_of_the_specification():
    spec = (Path(__file__).parents[2] / "docs" / "spec" / "cas.md").read_text()
    assert digest(login_statement(bytes(range(32)), "sha256:" + "0" * 64)).hex() in spec
