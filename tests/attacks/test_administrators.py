"""Administrators who want more than their policy lets them: each attempt is refused, and changes nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from strongroom.cas.api.operation import Operation
from strongroom.cas.callers.oidc import OidcAuthenticator, https_fetch
from strongroom.cas.policy.version import parse_policy, sign_policy
from strongroom.cas.wire import b64
from strongroom.crypto import SigningKey
from strongroom.errors import ConflictError, RollbackError, StrongroomError, UnauthorizedError
from strongroom.sealed import Root
from strongroom.testing.oidc import Issuer, running_issuer, signed
from tests.cas.owners import signed_by, table
from tests.cas.test_administrators import administrator
from tests.cas.world import PROGRAM, VAULT_KEY, Cas, World, cas_in, document, world_in

AUDIENCE = "strongroom-cas"
TWO_OF_THREE = table(2, ["alice", "bob", "carol"])


@pytest.fixture(scope="module")
def issuer_and_cas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Issuer, Cas]]:
    directory = tmp_path_factory.mktemp("issuer")
    with running_issuer(directory) as (issuer, ca):
        authenticator = OidcAuthenticator([issuer.url], AUDIENCE, fetch=https_fetch(ca))
        with cas_in(directory, operation=Operation(authenticator=authenticator)) as cas:
            yield issuer, cas


@pytest.fixture
def issuer(issuer_and_cas: tuple[Issuer, Cas]) -> Issuer:
    return issuer_and_cas[0]


@pytest.fixture
def world(issuer_and_cas: tuple[Issuer, Cas]) -> Iterator[World]:
    with world_in(issuer_and_cas[1]) as made:
        yield made


def unchanged(world: World) -> tuple[object, ...]:
    return world.policy.digest, world.client.log()[-1]["number"]


@pytest.mark.parametrize(
    ("may", "resources"),
    [
        (["apply", "anchors", "log", "revoke", "grants"], None),  # all but one right
        (["secrets"], ["secret:seed", "vault:out"]),  # the right, over others
    ],
)
def test_a_right_too_few_stores_no_secret(world, may, resources):
    key = SigningKey.generate()
    world.renew(more=PROGRAM + administrator("x", key, may, resources))
    before = unchanged(world)
    with world.cas.owner(key) as client:
        for attempt in (
            lambda: client.put_secret(world.name, "token", b"evil"),
            lambda: client.put_secret(world.name, "vault:data", VAULT_KEY),
        ):
            with pytest.raises(UnauthorizedError, match="has not the right 'secrets' over"):
                attempt()
    assert unchanged(world) == before


def test_anchors_of_another_resource_are_neither_read_nor_moved(world):
    key = SigningKey.generate()
    world.renew(more=PROGRAM + administrator("x", key, ["anchors"], ["vault:data"]))
    world.client.anchor(world.name, "out").advance(None, Root(2, b"\2" * 32))
    before = unchanged(world)
    with world.cas.owner(key) as client:
        anchor = client.anchor(world.name, "out")
        for attempt in (anchor.read, lambda: anchor.advance(Root(2, b"\2" * 32), Root(1, b"\1" * 32))):
            with pytest.raises(UnauthorizedError, match="has not the right 'anchors' over vault:out"):
                attempt()
    assert unchanged(world) == before


def test_an_administrator_gives_nobody_a_right(world):
    """The right to apply is not that to say who may what: neither itself, nor others, nor owners."""
    key, friend = SigningKey.generate(), SigningKey.generate()
    named = administrator("x", key, ["apply"])
    world.renew(more=PROGRAM + named)
    current = unchanged(world)
    everything = ["apply", "secrets", "anchors", "log", "revoke", "grants"]
    with world.cas.owner(key) as client:
        for more in (
            PROGRAM + administrator("x", key, everything),
            PROGRAM + named + administrator("friend", friend, ["secrets"]),
            table(1, ["alice"]) + PROGRAM + named,
        ):
            text = world.text(version=3, previous=world.policy.digest, more=more)
            with pytest.raises(UnauthorizedError):
                client.apply(text, ())
        usurped = document(
            key,
            name=world.name,
            version=3,
            previous=world.policy.digest,
            vendor_root=world.cas.vendor.root_digest,
            more=PROGRAM,
        )
        with pytest.raises(UnauthorizedError):
            client.apply(usurped)
    assert unchanged(world) == current


def test_the_owner_alone_is_below_the_threshold(world):
    """Where owners must sign, neither the owner's key nor an administrator's is enough, nor both."""
    key = SigningKey.generate()
    named = administrator("x", key, ["apply"])
    first = TWO_OF_THREE + PROGRAM + named
    text = world.text(version=2, previous=world.policy.digest, more=first)
    world.client.apply(text, signed_by(parse_policy(text), "alice", "bob"))
    before = unchanged(world)
    following = world.text(version=3, previous=world.policy.digest, more=first + "# another\n")
    parsed = parse_policy(following)
    for signer in (world.owner, key):
        with world.cas.owner(signer) as client:
            for names in ((), ("alice",), ("alice", "dave")):
                with pytest.raises(UnauthorizedError, match=r"must give|is the key of no owner"):
                    client.apply(following, signed_by(parsed, *names))
    assert unchanged(world) == before


def test_a_signature_of_the_owner_s_is_not_carried_by_a_stranger(world):
    """Whoever saw the owner's signature of a version that was not applied does not apply it with a key of its own."""
    text = world.text(version=2, previous=world.policy.digest)
    body = {"text": text, "signature": b64(sign_policy(text, world.owner))}
    with world.cas.owner() as stranger, pytest.raises(StrongroomError, match="signature"):
        stranger._put(f"/v1/policies/{world.name}", body)
    assert world.policy.version == 1


# Tokens


def person(world: World, issuer: Issuer, subject: str = "alice") -> None:
    table = f'[[administrators]]\nname = "p"\noidc = "{issuer.url}"\nsubject = "{subject}"\nmay = ["secrets"]\n'
    world.renew(more=PROGRAM + table)


@pytest.mark.parametrize(
    "forge",
    [
        "another audience",
        "another issuer",
        "alg none",
        "expired",
        "another key under the same name",
        "another subject",
        "the subject of another issuer",
    ],
)
def test_a_forged_token_stores_no_secret(issuer, world, forge):
    person(world, issuer)
    now = world.cas.clock.now
    claims = {"iss": issuer.url, "sub": "alice", "aud": AUDIENCE, "iat": int(now), "exp": int(now) + 600}
    header = {"alg": "ES256", "kid": issuer.kid}
    evil = SigningKey.generate()
    token = {
        "another audience": issuer.token("alice", "another", now=now),
        "another issuer": issuer.token("alice", AUDIENCE, now=now, iss="https://evil.example"),
        "alg none": signed(evil, {"alg": "none", "kid": issuer.kid}, claims).rpartition(".")[0] + ".",
        "expired": issuer.token("alice", AUDIENCE, now=now - 601),
        "another key under the same name": signed(evil, header, claims),
        "another subject": issuer.token("mallory", AUDIENCE, now=now),
        "the subject of another issuer": signed(evil, header, claims | {"iss": "https://localhost"}),
    }[forge]
    before = unchanged(world)
    with world.cas.bearer(token) as client, pytest.raises(UnauthorizedError):
        client.put_secret(world.name, "token", b"evil")
    assert unchanged(world) == before


def test_a_token_is_a_bearer_s_on_any_connection_until_it_expires(issuer, world):
    """Not protected: whoever steals a token is its bearer, does what its policy lets, and is in the log."""
    person(world, issuer)
    token = issuer.token("alice", AUDIENCE, now=world.cas.clock.now)
    with world.cas.bearer(token) as one, world.cas.bearer(token) as thief:
        one.put_secret(world.name, "token", b"mine")
        thief.put_secret(world.name, "token", b"stolen")
        with pytest.raises(UnauthorizedError, match="has not the right 'anchors' over vault:data"):
            thief.anchor(world.name, "data").read()
    by = [json.loads(e["detail"])["by"] for e in world.client.log() if e["event"] == "secret"][-2:]
    assert by == [f"{issuer.url} alice"] * 2


def test_a_removed_person_s_token_is_worth_nothing(issuer, world):
    person(world, issuer)
    token = issuer.token("alice", AUDIENCE, now=world.cas.clock.now)
    with world.cas.bearer(token) as client:
        client.put_secret(world.name, "token", b"x")
        world.renew()
        with pytest.raises(UnauthorizedError, match="has not the right"):
            client.put_secret(world.name, "token", b"y")


def test_an_old_version_that_gave_a_right_is_not_put_back(world):
    key = SigningKey.generate()
    given = world.renew(more=PROGRAM + administrator("x", key, ["apply", "secrets"]))
    world.renew()
    with world.cas.owner(key) as client:
        with pytest.raises((RollbackError, UnauthorizedError, ConflictError)):
            client.apply(given.text)
        with pytest.raises(UnauthorizedError):
            client.put_secret(world.name, "token", b"evil")
