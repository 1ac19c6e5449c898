"""What an administrator, a former owner, a thief of old keys, the CAS's host or a co-owner may try with a policy that
several people own."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator

import pytest

from strongroom.cas import OwnerClient
from strongroom.cas.policy.owners import sign_version
from strongroom.cas.policy.version import Policy, parse_policy, sign_policy
from strongroom.cas.state.store import Store
from strongroom.crypto import SigningKey
from strongroom.errors import (
    ConflictError,
    FormatError,
    PolicyError,
    RollbackError,
    StrongroomError,
    UnauthorizedError,
    VerificationError,
)
from tests.cas.owners import ADMIN, KEYS, signed_by, table, version
from tests.cas.world import PROGRAM, Cas, World, cas_in, world_in

TWO_OF_THREE = table(2, ["alice", "bob", "carol"])


@pytest.fixture(scope="module")
def cas(tmp_path_factory) -> Iterator[Cas]:
    with cas_in(tmp_path_factory.mktemp("cas")) as running:
        yield running


@pytest.fixture
def world(cas) -> Iterator[World]:
    """A policy whose version 2 belongs to two of alice, bob and carol."""
    with world_in(cas) as made:
        put(made, TWO_OF_THREE, "alice", "bob")
        yield made


def following(world: World, owners: str = TWO_OF_THREE, **changes: object) -> Policy:
    """The next version, parsed and not applied."""
    current = world.policy
    changes = {"version": current.version + 1, "previous": current.digest, "more": owners + PROGRAM} | changes
    return parse_policy(world.text(**changes))


def put(world: World, owners: str, *names: str, **changes: object) -> Policy:
    new = following(world, owners, **changes)
    return world.client.apply(new.text, signed_by(new, *names))


def test_what_enough_owners_sign_is_applied_kept_and_logged(world):
    first, second = world.client.policy_history(world.name)
    third = put(world, table(1, ["dave"]), "alice", "carol", "dave")
    fourth = put(world, table(1, ["dave"]), "dave", role="service", more=table(1, ["dave"]))
    with world.cas.owner() as anybody:
        assert anybody.policy_history(world.name) == (first, second, third, fourth)
        assert anybody.policy_history(world.name, pinned=third.digest) == (third, fourth)
        assert anybody.policy(world.name) == fourth
    logged = [json.loads(e["detail"]) for e in world.client.log() if e["event"] == "policy"]
    fingerprints = {name: key.public.fingerprint for name, key in KEYS.items()}
    assert [entry["digest"] for entry in logged] == [p.digest for p in (first, second, third, fourth)]
    assert [entry.get("signed") for entry in logged] == [
        None,
        [fingerprints["alice"], fingerprints["bob"]],
        [fingerprints["alice"], fingerprints["carol"], fingerprints["dave"]],
        [fingerprints["dave"]],
    ]


# The administrator


def test_an_administrator_below_the_threshold_changes_nothing(world):
    before = world.policy
    for owners in (TWO_OF_THREE, "", table(1, ["alice"]), table(1, ["carol"])):
        for who in ((), ("alice",), ("carol",)):
            with pytest.raises(UnauthorizedError, match=r"of the \d that the owners of \S+ in version \d must give"):
                put(world, owners, *who)
    assert world.policy == before
    assert world.client.policy_history(world.name)[-1] == before


def test_an_administrator_is_no_owner_by_being_one(world):
    new = following(world)
    own = world.owner.public.fingerprint
    mine = sign_version(world.owner, name=new.name, version=new.version, digest=new.digest)
    with pytest.raises(UnauthorizedError, match=f"{own} is the key of no owner"):
        world.client.apply(new.text, [*signed_by(new, "alice"), mine])


def test_an_administrator_that_the_owners_dismissed_has_no_more_say(world):
    successor = SigningKey.generate()
    new = following(world, owner=successor.public.fingerprint)
    with world.cas.owner(successor) as client:
        client.apply(new.text, signed_by(new, "alice", "bob"))
        with pytest.raises(UnauthorizedError):
            world.client.put_secret(world.name, "token", b"mine again")
        with pytest.raises(UnauthorizedError, match="the key that signed it is"):
            put(world, TWO_OF_THREE, "alice", "bob", owner=successor.public.fingerprint)
        client.put_secret(world.name, "token", b"fresh")
    assert world.client.log() == []


# Former owners and old keys


def test_a_stolen_key_of_before_the_rotation_signs_nothing(world):
    """Bob's key was stolen: bob and alice rotate it; then the thief has bob's old key, and alice is careless."""
    fresh = SigningKey.generate()
    rotated = table(2, ["alice", "carol"], bob=fresh)
    put(world, rotated, "alice", "bob", "carol")
    before = world.policy
    for owners in (rotated, TWO_OF_THREE):
        with pytest.raises(UnauthorizedError, match=r"is the key of no owner|1 of the 2 that the owners of \S+ in ver"):
            put(world, owners, "alice", "bob")
    assert world.policy == before


def test_an_owner_who_was_removed_signs_no_more(world):
    put(world, table(2, ["alice", "carol"]), "alice", "bob", "carol")
    with pytest.raises(UnauthorizedError, match="is the key of no owner"):
        put(world, table(2, ["alice", "carol"]), "alice", "bob")
    with pytest.raises(UnauthorizedError, match=r"1 of the 2 that the owners of \S+ in version 3"):
        put(world, table(1, ["bob"]), "alice", "bob")


def test_signatures_of_an_unapplied_document_serve_no_other(world):
    """The owners signed a version that was never applied; somebody else's became version 3."""
    agreed = following(world)
    signatures = signed_by(agreed, "alice", "bob")
    other = following(world, role="service", more=TWO_OF_THREE)
    with pytest.raises(VerificationError, match=r"alice's does not match"):
        world.client.apply(other.text, signatures)
    world.client.apply(other.text, signed_by(other, "bob", "carol"))
    with pytest.raises(ConflictError, match="another document is version 3"):
        world.client.apply(agreed.text, signatures)
    later = following(world)
    with pytest.raises(VerificationError, match=r"alice's does not match"):
        world.client.apply(later.text, signatures)


def test_one_owner_is_not_two(world):
    new = following(world)
    with pytest.raises(FormatError, match="two of"):
        world.client.apply(new.text, signed_by(new, "alice", "alice"))
    with pytest.raises(PolicyError, match="is the key of alice too"):
        put(world, table(2, ["alice"], second=KEYS["alice"]), "alice")


# The host of the CAS


def test_an_old_version_with_valid_signatures_is_not_applied_again(world):
    old, signatures = world.policy, signed_by(world.policy, "alice", "bob")
    put(world, TWO_OF_THREE, "bob", "carol")
    with pytest.raises(RollbackError, match=r"policy\.version: got 2, and 3 is the newest"):
        world.client.apply(old.text, signatures)


class Host:
    """A CAS's answers, as its host would like them."""

    def __init__(self, client: OwnerClient, monkeypatch, change) -> None:
        genuine = client._http.get

        def get(path: str):
            answer = genuine(path)
            if "versions" in answer:
                answer["versions"] = change(answer["versions"])
            return answer

        monkeypatch.setattr(client._http, "get", get)


def lowered(versions):
    versions[2]["text"] = versions[2]["text"].replace("threshold = 2", "threshold = 1")
    return versions


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (lambda v: v[:2], RollbackError, "is not among them, and they end with version 2"),
        (lambda v: [], RollbackError, "they end with version 0"),
        (lambda v: [v[0], v[2]], None, None),  # what precedes the pinned version does not matter
        (lambda v: [*v, v[1]], RollbackError, "policy.version: got 2, and 3 is the newest"),
        (lambda v: [*v, v[2]], ConflictError, "policy.version: got 3"),
        (lowered, RollbackError, "is not among them"),
        (lambda v: [1], FormatError, "version: wanted an object"),
        (lambda v: "x", StrongroomError, "versions are missing"),
    ],
)
def test_a_host_that_shows_an_older_or_another_history_is_found_out(world, monkeypatch, change, error, says):
    third = put(world, TWO_OF_THREE, "bob", "carol")
    with world.cas.owner() as anybody:
        Host(anybody, monkeypatch, change)
        if error is None:
            assert anybody.policy_history(world.name, pinned=third.digest) == (third,)
            return
        with pytest.raises(error, match=says):
            anybody.policy_history(world.name, pinned=third.digest)


def test_a_history_without_end_is_not_read_for_ever(world, monkeypatch):
    with world.cas.owner() as anybody:
        page = anybody._http.get(f"/v1/policies/{world.name}/versions")
        monkeypatch.setattr(anybody._http, "get", lambda path: page | {"next": int(path.partition("=")[2]) + 1})
        monkeypatch.setattr("strongroom.cas.client.owner.MAX_HISTORY", 10_000)
        with pytest.raises(StrongroomError, match="longer than 10000 characters together"):
            anybody.policy_history(world.name)
        monkeypatch.setattr(anybody._http, "get", lambda path: page | {"next": 1})
        with pytest.raises(StrongroomError, match="versions are missing"):
            anybody.policy_history(world.name, pinned="sha256:" + "00" * 32)


def test_a_history_before_the_pinned_version_may_be_of_any_length(world, monkeypatch):
    third = put(world, TWO_OF_THREE, "alice", "carol")
    monkeypatch.setattr("strongroom.cas.client.owner.MAX_HISTORY", len(third.text) + 100)
    with world.cas.owner() as anybody:
        assert anybody.policy_history(world.name, pinned=third.digest) == (third,)
        with pytest.raises(StrongroomError, match="characters together"):
            anybody.policy_history(world.name)


def test_a_host_cannot_strip_the_signatures_of_the_newest_version(world, monkeypatch):
    with world.cas.owner() as anybody:
        genuine = anybody._http.get
        for kept in (0, 1):
            stripped = genuine(f"/v1/policies/{world.name}")
            stripped["signatures"] = stripped["signatures"][:kept]
            monkeypatch.setattr(anybody._http, "get", lambda path, answer=stripped: answer)
            with pytest.raises(UnauthorizedError, match=f"{kept} of the 2 that the owners"):
                anybody.policy(world.name)


# Two owners at once


def test_of_two_versions_at_once_one_is_applied_and_the_other_hears_of_it(world):
    """Alice and Bob, Bob and Carol agree on different versions 3 and apply them at the same moment, again and again."""
    successors = [following(world), following(world, role="service", more=TWO_OF_THREE)]
    pairs = [("alice", "bob"), ("bob", "carol")]
    start = threading.Barrier(2)
    outcomes: list[object] = [None, None]

    def apply(which: int) -> None:
        with world.cas.owner(world.owner) as client:
            client.policy(world.name)
            start.wait(30)
            try:
                outcomes[which] = client.apply(successors[which].text, signed_by(successors[which], *pairs[which]))
            except ConflictError as error:
                outcomes[which] = error

    threads = [threading.Thread(target=apply, args=(which,)) for which in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    winner = next(which for which in (0, 1) if isinstance(outcomes[which], Policy))
    loser = outcomes[1 - winner]
    assert isinstance(loser, ConflictError)
    assert "somebody else was first" in str(loser.hint)
    assert world.policy == successors[winner]
    assert len(world.client.policy_history(world.name)) == 3


def test_two_processes_on_one_database_apply_one_of_two_versions(tmp_path):
    first = version(owners=TWO_OF_THREE)
    successors = [version(first, TWO_OF_THREE), version(first, table(1, ["alice"]))]
    stores = [Store(tmp_path), Store(tmp_path)]

    def put_in(store: Store, policy: Policy) -> None:
        store.put_policy(
            policy,
            sign_policy(policy.text, ADMIN),
            ADMIN.public,
            signatures=signed_by(policy, "alice", "bob"),
            now=1,
        )

    put_in(stores[0], first)
    put_in(stores[1], successors[1])
    with pytest.raises(ConflictError, match="another document is version 2"):
        put_in(stores[0], successors[0])
    assert [store.policy(first.name) for store in stores] == [successors[1]] * 2
    for store in stores:
        store.close()


# Paging


def test_a_long_history_comes_in_pages(world):
    for _ in range(9):
        put(world, TWO_OF_THREE, "alice", "carol")
    versions = world.client.policy_history(world.name)
    assert [policy.version for policy in versions] == list(range(1, 12))
