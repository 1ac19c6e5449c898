"""Attested write: a secret that enclaves deposit, and nobody else."""

from __future__ import annotations

import json

import pytest

from strongroom.cas.client.anchor import policy_path
from strongroom.cas.wire import MAX_DEPOSIT
from strongroom.errors import FormatError, GrantError, PolicyError, UnauthorizedError
from tests.cas.exports import Hospital, importer_in
from tests.cas.world import world_in

MORE = """
[program]
command = ["a"]
[[secrets]]
name = "found"
environment = "FOUND"
deposited = true
[[secrets]]
name = "blob"
deposited = true
[[secrets]]
name = "other"
generate = 16
"""


@pytest.fixture
def world(cas):
    with world_in(cas, more=MORE) as made:
        yield made


def test_one_enclave_deposits_what_the_others_receive(world):
    with world.session() as one, world.session() as two:
        first = one.attest()
        assert (first.environment, first.deposits) == ({}, ("found", "blob"))
        one.deposit("found", b"gold")
        one.deposit("blob", b"\0\xff")
        got = two.attest()
        assert got.environment == {"FOUND": "gold"}
        assert got.secrets["blob"] == b"\0\xff"
        two.deposit("found", b"more gold")
        assert one.attest().environment == {"FOUND": "more gold"}
    said = [json.loads(e["detail"]) for e in world.client.log() if e["event"] == "deposited"]
    assert [one["name"] for one in said] == ["found", "blob", "found"]
    assert {one["measurement"] for one in said} == set(world.policy.reference.measurements)


def test_administrators_neither_write_nor_read_it(world):
    for name in ("found", "deposited:found"):
        with pytest.raises(PolicyError, match="to be stored"):
            world.client.put_secret(world.name, name, b"fake")
    with world.session() as session:
        session.attest()
        session.deposit("found", b"gold")
    path = policy_path(world.name, "deposits", "found")
    assert world.client._http.request("GET", path).status == 405
    assert b"gold" not in json.dumps(world.client.log()).encode()
    body = json.dumps({"value": "Z29sZA=="}).encode()
    answer = world.client._http.request("PUT", path, body=body, headers={"content-type": "application/json"})
    assert answer.status == 401  # no enclave has attested there


def test_only_a_deposited_secret_is_deposited(world):
    with world.session() as session:
        session.attest()
        for name in ("other", "nothing", "vault:data"):
            with pytest.raises(PolicyError, match="that an enclave deposits"):
                session.deposit(name, b"x")
        with pytest.raises(FormatError, match="zero byte"):
            session.deposit("found", b"a\0b")
        with pytest.raises(FormatError, match=f"at most {MAX_DEPOSIT}"):
            session.deposit("blob", bytes(MAX_DEPOSIT + 1))


def test_an_enclave_deposits_in_its_own_policy_only(cas, world):
    with world_in(cas, more=MORE) as other, other.session() as session:
        session.attest()
        path = policy_path(world.name, "deposits", "found")
        headers = {"content-type": "application/json"}
        answer = session.request("PUT", path, body=b'{"value":""}', headers=headers)
        with pytest.raises(UnauthorizedError, match="wanted the one it deposits in"):
            answer.expect_ok()


def test_what_was_deposited_is_imported_on_a_grant(cas, world):
    exporter = Hospital(world.name, world.owner, world.client)
    more = f'[[secrets]]\nname = "found"\nenvironment = "FOUND"\nfrom = "{world.name}"\n'
    with importer_in(cas, exporter, more=more) as importer, importer.session() as session, world.session() as source:
        with pytest.raises(GrantError):
            session.attest()
        world.client.put_grant(exporter.signed(importer))
        assert session.attest().environment == {}
        source.attest()
        source.deposit("found", b"gold")
        assert session.attest().environment == {"FOUND": "gold"}
        with pytest.raises(PolicyError, match="that an enclave deposits"):
            session.deposit("found", b"fake")
