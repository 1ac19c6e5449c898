"""A host that puts the CAS's database back, forks it, or mixes an older one in: who has seen more finds out."""

from __future__ import annotations

import shutil
import sqlite3

import pytest

from strongroom.cas import OwnerClient
from strongroom.cas.log_head import FileHead
from strongroom.cas.store import Store
from strongroom.cas.witness import Witness
from strongroom.cli.cas_witness import cosign_head
from strongroom.errors import IntegrityError, RollbackError
from tests.cas.world import cas_in, world_in


def at_two_states(directory):
    """Copies of a CAS's database: as it was, and as it went on."""
    with cas_in(directory) as cas, world_in(cas) as world:
        world.client.put_secret(world.name, "token", b"old")
        old = world.client._heads.read()
    shutil.copy(directory / "cas" / "cas.sqlite", directory / "old.sqlite")
    with cas_in(directory) as cas, cas.owner(world.owner) as client:
        client._heads.advance(old)
        client.put_secret(world.name, "token", b"new")
        world.cas, world.client = cas, client
        with world.session() as session:
            assert session.attest().environment["TOKEN"] == "new"
        new = client._heads.read()
    return world, old, new


def test_an_owner_sees_a_database_that_was_rolled_back(tmp_path):
    world, _, new = at_two_states(tmp_path)
    shutil.copy(tmp_path / "old.sqlite", tmp_path / "cas" / "cas.sqlite")
    memory = FileHead(tmp_path / "head")
    memory.advance(new)
    with cas_in(tmp_path) as cas:
        address = cas.address
        with OwnerClient(address.url, cas_root=address.cas_root, owner=world.owner, heads=memory) as client:
            for ask in (client.describe, client.log, lambda: client.policy(world.name), client.audit):
                with pytest.raises(RollbackError, match="the CAS's database was rolled back") as caught:
                    ask()
                assert str(memory.path) in caught.value.hint
    assert memory.read() == new


def test_an_owner_sees_a_database_that_was_forked(tmp_path):
    world, old, new = at_two_states(tmp_path)
    shutil.copy(tmp_path / "old.sqlite", tmp_path / "cas" / "cas.sqlite")
    with cas_in(tmp_path) as cas:
        with cas.owner(world.owner) as client:
            for _ in range(new.size - old.size + 2):  # the fork is the longer one
                client.put_secret(world.name, "token", b"other")
            assert client._heads.read().size > new.size
        with cas.owner(world.owner) as client:
            client._heads.advance(new)
            with pytest.raises(RollbackError, match="the CAS's database was forked"):
                client.log()
            assert client._heads.read() == new
        with cas.owner(world.owner) as client:
            client._heads.advance(old)  # who has seen what is common to both sees nothing wrong
            client.log()


def test_an_enclave_sees_a_database_that_was_rolled_back_under_it(tmp_path):
    with cas_in(tmp_path) as cas, world_in(cas) as world:
        world.cas = cas
    shutil.copy(tmp_path / "cas" / "cas.sqlite", tmp_path / "old.sqlite")
    address = []
    with cas_in(tmp_path) as cas:
        world.cas = cas
        with world.session(dial=lambda: address[-1].dial()) as session:
            address.append(cas)
            session.attest()
            session.close()
            running = session
    shutil.copy(tmp_path / "old.sqlite", tmp_path / "cas" / "cas.sqlite")
    with cas_in(tmp_path) as cas:
        address.append(cas)
        with pytest.raises(RollbackError, match="rolled back"):
            running.attest()
        running.close()


def test_one_row_of_an_older_database_does_not_fit_in(tmp_path):
    """The host keeps the log as it is, and puts back the old box of one secret, or that of a fork."""
    at_two_states(tmp_path)
    with sqlite3.connect(tmp_path / "old.sqlite") as db:
        rows = db.execute("SELECT entry, box, name FROM secrets WHERE name = 'token'").fetchall()
    db.close()
    with sqlite3.connect(tmp_path / "cas" / "cas.sqlite") as db:
        db.executemany("UPDATE secrets SET entry = ?, box = ? WHERE name = ?", rows)
    db.close()
    with pytest.raises(IntegrityError, match="its rows are not those that its head stands for"):
        Store(tmp_path / "cas")


def test_an_old_head_does_not_fit_a_longer_log(tmp_path):
    at_two_states(tmp_path)
    with sqlite3.connect(tmp_path / "old.sqlite") as db:
        (box,) = db.execute("SELECT box FROM head").fetchone()
    db.close()
    with sqlite3.connect(tmp_path / "cas" / "cas.sqlite") as db:
        db.execute("UPDATE head SET box = ?", (box,))
    db.close()
    with pytest.raises(IntegrityError, match="log: ends with entry"):
        Store(tmp_path / "cas")


def test_a_box_of_a_fork_under_the_same_number_does_not_fit_in(tmp_path):
    """Both boxes are sealed under the same key, row and entry number; only one of them is this log's."""
    world, old, _ = at_two_states(tmp_path)
    fork = tmp_path / "fork"
    shutil.copytree(tmp_path / "cas", fork)
    for path in fork.glob("cas.sqlite*"):
        path.unlink()
    shutil.copy(tmp_path / "old.sqlite", fork / "cas.sqlite")
    store = Store(fork)
    store.put_secret(world.name, "token", b"fork", now=1)
    assert store.head().size == old.size + 1
    store.close()
    with sqlite3.connect(fork / "cas.sqlite") as db:
        ((entry, box),) = db.execute("SELECT entry, box FROM secrets WHERE name = 'token'").fetchall()
    db.close()
    with sqlite3.connect(tmp_path / "cas" / "cas.sqlite") as db:
        (own,) = db.execute("SELECT entry FROM secrets WHERE name = 'token'").fetchone()
        assert own == entry
        db.execute("UPDATE secrets SET box = ? WHERE name = 'token'", (box,))
    db.close()
    with pytest.raises(IntegrityError, match="its rows are not those that its head stands for"):
        Store(tmp_path / "cas")


def test_a_witness_sees_what_an_owner_who_has_seen_nothing_cannot(tmp_path):
    witness = Witness(tmp_path / "w", name="w.example/1")
    with cas_in(tmp_path) as cas, world_in(cas) as world:
        world.client.put_secret(world.name, "token", b"old")
    shutil.copy(tmp_path / "cas" / "cas.sqlite", tmp_path / "old.sqlite")
    with cas_in(tmp_path) as cas, cas.owner(world.owner) as client:
        client.put_secret(world.name, "token", b"new")
        cosign_head(witness, client, cas.address.cas_root, now=1)
    shutil.copy(tmp_path / "old.sqlite", tmp_path / "cas" / "cas.sqlite")
    with cas_in(tmp_path) as cas:
        root = cas.address.cas_root
        with cas.owner(world.owner) as client:
            client.put_secret(world.name, "token", b"other")  # the fork is as long
            client.put_secret(world.name, "token", b"and longer")
        with cas.owner(world.owner) as client, pytest.raises(RollbackError, match="does not begin with"):
            cosign_head(witness, client, root, now=2)
