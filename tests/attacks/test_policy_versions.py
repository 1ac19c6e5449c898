"""What somebody may try with a policy's versions who may apply them and no more, or who has seen them signed."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from strongroom.cas import OwnerClient
from strongroom.cas.policy.version import Policy, parse_policy, sign_policy
from strongroom.cas.wire import b64
from strongroom.crypto import SigningKey
from strongroom.errors import RollbackError, StrongroomError, UnauthorizedError, VerificationError
from tests.cas.owners import signed_by, table
from tests.cas.world import PROGRAM, Cas, World, cas_in, world_in

CAROL, DAVE = SigningKey.generate(), SigningKey.generate()


def people(**rights: tuple[SigningKey, list[str]]) -> str:
    return "".join(
        f'[[administrators]]\nname = "{name}"\nkey = "{key.public.fingerprint}"\nmay = {json.dumps(may)}\n'
        for name, (key, may) in rights.items()
    )


PEOPLE = people(carol=(CAROL, ["apply"]), dave=(DAVE, ["secrets", "anchors", "log", "revoke", "grants"]))


@pytest.fixture(scope="module")
def cas(tmp_path_factory) -> Iterator[Cas]:
    with cas_in(tmp_path_factory.mktemp("cas")) as running:
        yield running


@pytest.fixture
def world(cas) -> Iterator[World]:
    """A policy whose administrator Carol may apply versions, and Dave everything else."""
    with world_in(cas, more=PEOPLE + PROGRAM) as made:
        yield made


@pytest.fixture
def carol(world) -> Iterator[OwnerClient]:
    with world.cas.owner(CAROL) as client:
        yield client


def following(world: World, more: str = PEOPLE + PROGRAM, **changes: object) -> Policy:
    current = world.policy
    return parse_policy(
        world.text(**{"version": current.version + 1, "previous": current.digest, "more": more} | changes)
    )


def test_an_administrator_who_may_applies_versions_and_everybody_can_check_it(world, carol):
    second = carol.apply(following(world, PEOPLE + PROGRAM.replace("train.py", "train2.py")).text)
    assert carol.apply(second.text) == second
    third = world.client.apply(following(world).text)
    fourth = carol.apply(following(world, role="service", more=PEOPLE).text)
    with world.cas.owner() as anybody:
        assert anybody.policy(world.name) == fourth
        assert anybody.policy_history(world.name)[1:] == (second, third, fourth)
        assert anybody.policy_history(world.name, pinned=third.digest) == (third, fourth)
    logged = [json.loads(e["detail"]) for e in world.client.log() if e["event"] == "policy"]
    assert [entry.get("by") for entry in logged] == [None, CAROL.public.fingerprint, None, CAROL.public.fingerprint]


@pytest.mark.parametrize(
    ("more", "changes", "says"),
    [
        (people(carol=(CAROL, ["apply", "secrets"])) + PROGRAM, {}, "administrators: are other ones than in version 1"),
        (people(carol=(CAROL, ["apply"])) + PROGRAM, {}, "administrators: are other ones"),
        (table(1, ["alice"]) + PEOPLE + PROGRAM, {}, "owners: are other ones"),
        (PEOPLE + PROGRAM, {"owner": SigningKey.generate().public.fingerprint}, r"policy\.owner: got"),
        (PROGRAM, {"owner": CAROL.public.fingerprint}, r"policy\.owner: got"),
    ],
)
def test_whoever_may_apply_gives_nobody_a_right(world, carol, more, changes, says):
    with pytest.raises(UnauthorizedError, match=says):
        carol.apply(following(world, more, **changes).text)
    assert world.policy.version == 1


def test_every_other_right_together_applies_nothing(world):
    with world.cas.owner(DAVE) as dave, pytest.raises(UnauthorizedError, match="the key that signed it is"):
        dave.apply(following(world).text)


def test_who_names_himself_in_the_new_version_alone_applies_nothing(world):
    eve = SigningKey.generate()
    more = PEOPLE + people(eve=(eve, ["apply"])) + PROGRAM
    with world.cas.owner(eve) as client, pytest.raises(UnauthorizedError, match="the key that signed it is"):
        client.apply(following(world, more).text)


def test_an_administrator_takes_no_new_name_for_somebody_else(world, carol):
    with pytest.raises(UnauthorizedError, match="the key that signed it is"):
        carol.apply(world.text(name=world.name + "-new", more=PEOPLE + PROGRAM))


def test_an_administrator_who_was_dismissed_applies_nothing(world, carol):
    ready = following(world)
    world.client.apply(following(world, PROGRAM).text)
    for text in (ready.text, following(world).text):
        with pytest.raises(StrongroomError, match=r"the key that signed it is|somebody else was first"):
            carol.apply(text)
    assert world.policy.administrators == ()


def test_with_owners_an_administrator_delivers_what_they_sign(world, carol):
    owners = table(2, ["alice", "bob"])
    second = following(world, owners + PEOPLE + PROGRAM)
    world.client.apply(second.text, signed_by(second, "alice", "bob"))
    third = following(world, owners + people(carol=(CAROL, ["apply", "log"])) + PROGRAM)
    with pytest.raises(UnauthorizedError, match="1 of the 2 that the owners"):
        carol.apply(third.text, signed_by(third, "alice"))
    carol.apply(third.text, signed_by(third, "alice", "bob"))
    assert world.policy == third


def test_a_host_that_makes_up_an_administrator_is_found_out(world, monkeypatch):
    """The CAS's host writes a document that names the owner, and beside him itself, and signs it."""
    host = SigningKey.generate()
    made_up = world.text(more=people(host=(host, ["apply"])) + PROGRAM.replace("train.py", "evil.py"))
    lie = {
        "text": made_up,
        "signature": b64(sign_policy(made_up, host)),
        "owner": b64(host.public.spki),
        "signatures": [],
    }
    with world.cas.owner() as anybody:
        genuine = anybody._http.get(f"/v1/policies/{world.name}/versions?after=0")
        for versions in ([lie], [*genuine["versions"], lie]):
            shown = lie | {"versions": versions, "next": None}
            monkeypatch.setattr(anybody._http, "get", lambda path, shown=shown: shown)
            with pytest.raises(StrongroomError, match=r"the key that signed it is|policy.version: got 1"):
                anybody.policy(world.name)


# What has been signed once


def put(client: OwnerClient, name: str, text: str, signature: bytes) -> None:
    client._put(f"/v1/policies/{name}", {"text": text, "signature": b64(signature), "signatures": []})


def test_an_older_version_is_not_put_again(world):
    first = world.policy
    world.client.apply(following(world).text)
    with pytest.raises(RollbackError, match=r"policy\.version: got 1, and 2 is the newest"):
        put(world.client, world.name, first.text, sign_policy(first.text, world.owner))


def test_an_older_version_is_no_next_one(world):
    """The old content under the next number is another document, which nobody has signed."""
    first = world.policy
    world.client.apply(following(world).text)
    again = following(world).text
    with pytest.raises(VerificationError, match="policy: signature: does not match"):
        put(world.client, world.name, again, sign_policy(first.text, world.owner))


def test_a_signature_that_was_seen_serves_nobody_else(world):
    """Anybody reads a policy with its signatures; they are of no use but to whom they are of."""
    shown = world.client._http.get(f"/v1/policies/{world.name}")
    with world.cas.owner() as stranger:
        for changes in ({}, {"text": world.text(name=world.name + "-copy")}):
            body = {"text": shown["text"], "signature": shown["signature"], "signatures": []} | changes
            name = parse_policy(str(body["text"])).name
            with pytest.raises(VerificationError, match="policy: signature: does not match"):
                stranger._put(f"/v1/policies/{name}", body)
        # With a signature of his own it is the owner's document in another's name.
        with pytest.raises(UnauthorizedError, match="the key that signed it is"):
            put(stranger, world.name, str(shown["text"]), sign_policy(str(shown["text"]), stranger._require_owner()))


def test_an_owner_of_two_policies_signs_each_by_itself(world):
    """One key owns both; what it signed for the one is nothing for the other."""
    other = world.name + "-other"
    world.client.apply(world.text(name=other))
    for text in (following(world).text, following(world, name=other).text):
        with pytest.raises(VerificationError, match="policy: signature: does not match"):
            put(world.client, parse_policy(text).name, text, sign_policy(world.text(name=other), world.owner))
