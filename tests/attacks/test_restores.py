"""What an administrator, too few owners, a host with old signatures or an enclave may try to have an anchor go back."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator

import pytest

from strongroom.cas.policy.owners import OwnerSignature
from strongroom.cas.policy.restores import Restore, RestoreFile
from strongroom.cas.policy.version import parse_policy
from strongroom.crypto import SigningKey
from strongroom.errors import (
    ConflictError,
    FormatError,
    RollbackError,
    StrongroomError,
    UnauthorizedError,
    VerificationError,
)
from strongroom.sealed import Root
from tests.cas.owners import KEYS, signed_by, table
from tests.cas.world import PROGRAM, Cas, World, cas_in, world_in

OWNERS = table(2, ["alice", "bob", "carol"])
OLD, NEW, OTHER = Root(12, b"o" * 32), Root(7, b"n" * 32, 1), Root(6, b"x" * 32, 1)


@pytest.fixture(scope="module")
def cas(tmp_path_factory) -> Iterator[Cas]:
    with cas_in(tmp_path_factory.mktemp("cas")) as running:
        yield running


@pytest.fixture
def world(cas) -> Iterator[World]:
    """A policy of two of alice, bob and carol, of whose vaults both are at version 12."""
    with world_in(cas) as made:
        own(made)
        for vault in ("out", "data"):
            made.client.anchor(made.name, vault).advance(None, OLD)
        yield made


def own(world: World, owners: str = OWNERS, *names: str) -> None:
    current = world.policy
    new = world.text(version=current.version + 1, previous=current.digest, more=owners + PROGRAM)
    world.client.apply(new, signed_by(parse_policy(new), *(names or ("alice", "bob"))))


def statement(world: World, vault: str = "out", **changes: object) -> Restore:
    entry = world.client.anchored(world.name, vault)
    said = Restore(world.cas.address.cas_root, world.name, vault, OLD, NEW, "disk failed", entry)
    return dataclasses.replace(said, **changes)  # type: ignore[arg-type]


def signed(restore: Restore, *names: str) -> tuple:
    return tuple(restore.sign(KEYS[name]) for name in names)


def put(world: World, signatures: tuple, *, vault: str = "out", old: Root = OLD, new: Root = NEW, **more: str) -> None:
    reason = more.get("reason", "disk failed")
    world.client.restore_anchor(world.name, vault, old, new, reason=reason, signatures=signatures)


def holds(world: World, root: Root, vault: str = "out") -> bool:
    return world.client.anchor(world.name, vault).read() == root


def test_what_enough_owners_sign_goes_back_and_is_logged(world):
    put(world, signed(statement(world), "alice", "carol"))
    assert holds(world, NEW)
    assert holds(world, OLD, "data")
    entry = world.client.log()[-1]
    assert entry["event"] == "restored"
    assert json.loads(entry["detail"]) == {
        "vault": "out",
        "old": str(OLD),
        "root": str(NEW),
        "reason": "disk failed",
        "signed": [KEYS[name].public.fingerprint for name in ("alice", "carol")],
        "by": world.owner.public.fingerprint,
    }


def test_an_administrator_below_the_threshold_lets_nothing_go_back(world):
    said = statement(world)
    stranger = (*signed(said, "alice"), said.sign(SigningKey.generate()))
    twice = signed(said, "alice", "alice")
    for signatures in ((), signed(said, "alice"), stranger, signed(said, "alice", "dave")):
        with pytest.raises(UnauthorizedError):
            put(world, signatures)
    with pytest.raises(FormatError, match="a key counts once"):
        put(world, twice)
    with pytest.raises(RollbackError, match="of the same epoch"):
        world.client.anchor(world.name, "out").advance(OLD, NEW)
    with pytest.raises(RollbackError):
        world.client.anchor(world.name, "out").advance(OLD, Root(13, b"f" * 32, 1))  # forward, in a new epoch
    assert holds(world, OLD)


@pytest.mark.parametrize(
    "changes",
    [
        {"vault": "data"},
        {"policy": "acme/other"},
        {"old": OTHER},
        {"new": OTHER},
        {"reason": "another"},
        {"cas_root": "sha256:" + "0" * 64},
        {"entry": 1},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_signatures_are_of_one_restore_only(world, changes):
    with pytest.raises(VerificationError, match="does not match"):
        put(world, signed(statement(world, **changes), "alice", "bob"))
    assert holds(world, OLD)


def test_signatures_serve_once_though_the_anchor_comes_to_the_same_root_again(world):
    first = signed(statement(world), "alice", "bob")
    put(world, first)
    put(world, first)  # the answer was lost: nothing moves
    assert world.events().count("restored") == 1
    put(world, signed(statement(world, old=NEW, new=OLD), "bob", "carol"), old=NEW, new=OLD)
    assert holds(world, OLD)
    with pytest.raises(VerificationError, match="the anchor has moved since"):
        put(world, first)
    assert holds(world, OLD)


def test_signatures_are_of_the_owners_of_now(world):
    said = signed(statement(world), "alice", "bob")
    own(world, table(1, ["carol"]), "alice", "bob", "carol")
    with pytest.raises(UnauthorizedError, match="of no owner"):
        put(world, said)
    put(world, signed(statement(world), "carol"))
    assert holds(world, NEW)


def test_a_signature_of_something_else_is_none(world):
    """Of a version of the policy, say: labels keep them apart."""
    said = statement(world)
    raw = said.signed_bytes()
    bare = raw[raw.index(b"\0") + 1 :]
    wrong = tuple(OwnerSignature(KEYS[n].public.fingerprint, KEYS[n].sign(bare)) for n in ("alice", "bob"))
    with pytest.raises(VerificationError):
        put(world, wrong)


def test_an_enclave_lets_nothing_go_back_though_the_owners_signed(world):
    signatures = [one.to_wire() for one in signed(statement(world), "alice", "bob")]
    with world.session() as session:
        for restore in (None, {"reason": "disk failed", "signatures": signatures}):
            body = {"old": str(OLD), "new": str(NEW)} | ({"restore": restore} if restore else {})
            answer = session.request(
                "PUT",
                f"/v1/policies/{world.name}/anchors/out",
                body=json.dumps(body).encode(),
                headers={"content-type": "application/json"},
            )
            with pytest.raises((RollbackError, UnauthorizedError)):
                answer.expect_ok()
    assert holds(world, OLD)


def test_without_owners_nobody_signs(cas):
    with world_in(cas) as world:
        world.client.anchor(world.name, "out").advance(None, OLD)
        with pytest.raises(UnauthorizedError, match="no owners"):
            put(world, signed(statement(world), "alice"))
        with cas.owner() as stranger, pytest.raises(UnauthorizedError):
            stranger.restore_anchor(world.name, "out", OLD, NEW, reason="mine")
        with pytest.raises(ConflictError):
            put(world, (), old=OTHER)
        assert holds(world, OLD)


def test_a_statement_s_file_is_read_strictly(world):
    file = RestoreFile(statement(world)).signed_by(KEYS["alice"])
    assert RestoreFile.parse(file.to_text()) == file
    assert file.signed_by(KEYS["alice"]) == file
    wire = json.loads(file.to_text())
    for path, wrong in (("entry", 0), ("entry", True), ("old", "12"), ("reason", "a\nb"), ("format", "x"), ("more", 1)):
        with pytest.raises(StrongroomError):
            RestoreFile.parse(json.dumps(wire | {"restore": wire["restore"] | {path: wrong}}))
    with pytest.raises(FormatError):
        RestoreFile.parse('{"restore": 1, "restore": 1, "signatures": []}')
