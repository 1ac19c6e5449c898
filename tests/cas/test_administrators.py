"""Administrators besides a policy's owner: what each may do, with what, and what the log says of it."""

from __future__ import annotations

import json

import pytest

from strongroom.cas.state.database import Sqlite
from strongroom.crypto import SigningKey
from strongroom.errors import UnauthorizedError
from strongroom.sealed import Root
from tests.cas.world import PROGRAM, VAULT_KEY, World, world_in

ONE, TWO = Root(1, b"\1" * 32), Root(2, b"\2" * 32)


def administrator(name: str, key: SigningKey, may: list[str], resources: list[str] | None = None) -> str:
    lines = ["[[administrators]]", f'name = "{name}"', f'key = "{key.public.fingerprint}"', f"may = {json.dumps(may)}"]
    return "\n".join([*lines, *([f"resources = {json.dumps(resources)}"] if resources is not None else []), ""])


def named(world: World, *administrators: str) -> None:
    world.renew(more=PROGRAM + "".join(administrators))


def by(world: World, event: str) -> list[str | None]:
    """Who did what is in the log."""
    return [json.loads(e["detail"]).get("by") for e in world.client.log() if e["event"] == event]


def test_each_does_what_the_policy_lets_it_do_and_the_log_names_it(world):
    writer, keeper, reader = (SigningKey.generate() for _ in range(3))
    named(
        world,
        administrator("writer", writer, ["secrets"], ["secret:token"]),
        administrator("keeper", keeper, ["secrets", "anchors"], ["vault:out"]),
        administrator("reader", reader, ["log"]),
    )
    with world.cas.owner(writer) as one, world.cas.owner(keeper) as two, world.cas.owner(reader) as three:
        one.put_secret(world.name, "token", b"another")
        two.put_vault_key(world.name, "out", VAULT_KEY)
        two.anchor(world.name, "out").advance(None, ONE)
        entries = three.log()
        assert three.audit().entries and [e["policy"] for e in entries] == [world.name] * len(entries)
        assert one.log() == two.log() == []
        for denied in (
            lambda: one.put_vault_key(world.name, "out", VAULT_KEY),
            lambda: one.anchor(world.name, "out").read(),
            lambda: two.put_secret(world.name, "token", b"x"),
            lambda: two.anchor(world.name, "data").read(),
            lambda: three.put_secret(world.name, "token", b"x"),
        ):
            with pytest.raises(UnauthorizedError, match=r"the caller is sha256:[0-9a-f]{64}, and has not the right"):
                denied()
    assert by(world, "secret")[-2:] == [writer.public.fingerprint, keeper.public.fingerprint]
    assert by(world, "anchor") == [keeper.public.fingerprint]


def test_an_administrator_applies_a_version_and_is_named_in_the_log(world):
    key = SigningKey.generate()
    named(world, administrator("operator", key, ["apply"]))
    current = world.policy
    with world.cas.owner(key) as client:
        text = world.text(version=3, previous=current.digest, more=current.text[current.text.index("\n[program]") :])
        assert client.apply(text).version == 3
    assert world.policy.version == 3
    assert json.loads([e for e in world.client.log() if e["event"] == "policy"][-1]["detail"])["by"] == (
        key.public.fingerprint
    )


def test_who_is_removed_may_no_more(world):
    key = SigningKey.generate()
    named(world, administrator("writer", key, ["secrets"]))
    with world.cas.owner(key) as client:
        client.put_secret(world.name, "token", b"x")
        world.renew()
        with pytest.raises(UnauthorizedError, match="has not the right 'secrets' over secret:token"):
            client.put_secret(world.name, "token", b"y")


def test_the_caller_s_policies_are_listed_with_what_it_may(world):
    key = SigningKey.generate()
    named(world, administrator("reader", key, ["log", "revoke"]))
    with world.cas.owner(key) as client, world.cas.owner() as stranger:
        (mine,) = client.policies()
        assert (mine["policy"], mine["version"], mine["rights"]) == (world.name, 2, ["log", "revoke"])
        assert mine["changed"] == int(world.cas.clock.now) and mine["owners"] is None
        assert stranger.policies() == []
    assert [each["policy"] for each in world.client.policies()] == [world.name]


def test_a_list_takes_one_look_at_the_database_however_long_it_is(world, monkeypatch):
    begin, begun = Sqlite.begin, []

    def counted(self, *, write):
        begun.append(write)
        begin(self, write=write)

    with world_in(world.cas), world_in(world.cas), world_in(world.cas), world.cas.owner() as stranger:
        monkeypatch.setattr(Sqlite, "begin", counted)
        for path in ("/v1/policies", "/v1/log"):
            begun.clear()
            stranger._http.get(path)
            assert len(begun) <= 1, path


def test_policies_come_in_pages_whosever_lie_between(world, monkeypatch):
    monkeypatch.setattr("strongroom.cas.api.status._SCANNED", 1)
    with world_in(world.cas) as other:
        assert [each["policy"] for each in world.client.policies()] == [world.name]
        assert [each["policy"] for each in other.client.policies()] == [other.name]
