"""A host that puts the CAS's database back, forks it, or mixes an older one in: who has seen more finds out."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sqlite3

import pytest

from strongroom.cas import OwnerClient
from strongroom.cas.api import log as log_api
from strongroom.cas.log.audit import verify_audit
from strongroom.cas.log.head import FileHead
from strongroom.cas.log.witness import Witness
from strongroom.cas.state.database import Table
from strongroom.cas.state.store import Store
from strongroom.cli.cas.witness import cosign_head
from strongroom.cli.main import main
from strongroom.cli.workspace import Home
from strongroom.errors import AttestationError, FormatError, IntegrityError, RollbackError, TamperedError, WrongKeyError
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


def test_a_row_of_the_log_changed_on_the_disk_hides_no_entry(tmp_path):
    """The host, without a key, has the next entry of a policy be appended while the one before is another policy's."""
    with cas_in(tmp_path) as cas, world_in(cas) as world:
        world.client.put_secret(world.name, "token", b"evil")
        hidden = world.client.log()[-1]["number"]

        def rename(policy):
            with sqlite3.connect(cas.directory / "cas.sqlite") as db:
                db.execute("UPDATE log SET policy = ? WHERE number = ?", (policy, hidden))
            db.close()

        rename("zzz/zzz")
        world.client.put_secret(world.name, "token", b"harmless again")
        rename(world.name)
        audit = world.client.audit()
        root = cas.address.cas_root
        verify_audit(audit, cas_root=root)
        assert audit.entries[-1][0].previous == hidden
        rest = tuple(each for each in audit.entries if each[0].number != hidden)
        with pytest.raises(TamperedError, match="entries are missing"):
            verify_audit(dataclasses.replace(audit, entries=rest), cas_root=root)


@pytest.fixture
def lying(tmp_path, monkeypatch):
    """A longer fork of a CAS that has its keys, and does not say that it is one; and the head seen of the other one."""
    world, _, new = at_two_states(tmp_path)
    shutil.copy(tmp_path / "old.sqlite", tmp_path / "cas" / "cas.sqlite")
    with cas_in(tmp_path) as cas, cas.owner(world.owner) as client:
        for _ in range(4):
            client.put_secret(world.name, "token", b"fork")
    monkeypatch.setattr(Store, "check_head", lambda self, seen: self.head())
    with cas_in(tmp_path) as cas:
        world.cas = cas
        yield world, new


def test_a_cas_that_hides_its_fork_is_caught_each_time_it_is_asked(lying, tmp_path):
    world, new = lying
    memory = FileHead(tmp_path / "head")
    memory.advance(new)
    address = world.cas.address
    for _ in range(2):
        with OwnerClient(address.url, cas_root=address.cas_root, owner=world.owner, heads=memory) as client:
            for ask in (client.describe, client.log, client.audit):
                with pytest.raises(RollbackError, match="does not begin with") as caught:
                    ask()
                assert str(memory.path) in caught.value.hint
        assert memory.read() == new


def test_an_enclave_asks_for_the_proof_too(lying):
    world, new = lying
    with world.session() as session:
        session._http._heads.advance(new)
        for _ in range(2):
            with pytest.raises(RollbackError, match="does not begin with"):
                session.attest()
        assert session._http._heads.read() == new


def test_what_an_attestation_says_of_the_log_is_proved_with_it(tmp_path):
    with cas_in(tmp_path) as cas, world_in(cas) as world, world.session() as session:
        session.attest()
        seen = session._http._heads.read()
        world.client.describe()
        assert seen == world.client._heads.read()


@pytest.mark.parametrize("brings", [True, False])
def test_a_proof_that_comes_along_or_is_asked_for_holds_a_cas_alike(tmp_path, monkeypatch, brings):
    """An older CAS brings none: then it is asked for."""
    with cas_in(tmp_path) as cas, world_in(cas) as world, world.session() as session:
        session.attest()
        before = session._http._heads.read()
        if not brings:
            monkeypatch.setattr(log_api, "PROOF_HEADER", "strongroom-other")
        session.attest()
        assert session._http._heads.read().size > before.size
        before, wrong = session._http._heads.read(), [bytes(32)] * 3
        monkeypatch.setattr(Store, "consistency", lambda *args: wrong)
        with pytest.raises((FormatError, RollbackError)):
            session.attest()
        assert session._http._heads.read() == before


def test_no_proof_is_no_extension(tmp_path, monkeypatch):
    with cas_in(tmp_path) as cas, world_in(cas) as world:
        before = world.client._heads.read()
        monkeypatch.setattr(Store, "consistency", lambda *args: [])
        with pytest.raises(FormatError, match="consistency proof: has fewer hashes"):
            world.client.put_secret(world.name, "token", b"x")
        assert world.client._heads.read() == before


def test_a_running_cas_refuses_an_older_state_put_under_it(tmp_path):
    with cas_in(tmp_path) as cas, world_in(cas) as world:
        live, old = sqlite3.connect(cas.directory / "cas.sqlite"), sqlite3.connect(tmp_path / "old.sqlite")
        live.backup(old)
        world.client.put_secret(world.name, "token", b"new")
        old.backup(live)
        for _ in range(2):
            with world.session() as session, pytest.raises(RollbackError, match="rolled back"):
                session.attest()
            with cas.owner() as stranger, pytest.raises(RollbackError, match="rolled back"):
                stranger.describe()
        live.close()
        old.close()


def test_a_stranger_s_look_at_the_log_reads_no_policy(tmp_path, monkeypatch):
    with cas_in(tmp_path) as cas, world_in(cas) as world, cas.owner() as stranger:
        assert len(world.client.log()) == 4
        monkeypatch.setattr(Store, "_version", lambda *args: 1 / 0)
        assert stranger.log() == []
        assert len(world.client.log()) == 4


def test_refusals_that_anybody_can_cause_do_not_fill_an_owner_s_log(tmp_path, monkeypatch):
    monkeypatch.setattr("strongroom.cas.enclaves.refusals.BURST", 2)
    with cas_in(tmp_path) as cas, world_in(cas) as world, world.enclave() as enclave:
        claims = enclave.claims()
        evidence = enclave.evidence(bytes(32), claims)

        def refused():
            enclave.nonce()
            with pytest.raises(AttestationError):
                enclave.show(evidence, claims)

        for _ in range(9):
            refused()
        assert len(world.refusals()) == 2
        cas.clock.now += 1200
        refused()
        refused()
        details = [json.loads(e["detail"]) for e in world.client.log() if e["event"] == "refused"]
        assert [detail.get("omitted") for detail in details] == [None, None, 7]


def test_an_exported_audit_is_held_to_what_this_machine_has_seen(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("STRONGROOM_HOME", str(tmp_path / "home"))
    world, old, new = at_two_states(tmp_path)
    root, file = world.cas.address.cas_root, tmp_path / "audit.json"
    command = ["cas", "audit", "verify", str(file), "--cas-root", root]
    shutil.copy(tmp_path / "old.sqlite", tmp_path / "cas" / "cas.sqlite")
    with cas_in(tmp_path) as cas, cas.owner(world.owner) as client:
        client._heads.advance(old)
        file.write_bytes(client.audit().to_bytes())
        assert main(command) == 0
        assert "by the file's own account" in capsys.readouterr().out
        Home.open().heads(root).advance(new)
        assert main(command) == 24  # this machine has seen more
        while client._heads.read().size < new.size:
            client.put_secret(world.name, "token", b"fork")
        file.write_bytes(client.audit().to_bytes())
        assert main(command) == 24  # and others
        assert "forked" in capsys.readouterr().err


@pytest.mark.parametrize("how", ["removed", "emptied"])
def test_a_cas_that_lost_its_database_does_not_start_as_a_new_one(tmp_path, how):
    with cas_in(tmp_path) as cas, world_in(cas):
        directory = cas.directory
    for path in directory.glob("cas.sqlite*"):
        if how == "removed" or path.name != "cas.sqlite":
            path.unlink()
        else:
            path.write_bytes(b"")
    for _ in range(2):
        with pytest.raises(IntegrityError, match="is missing or empty, and this CAS had one"):
            Store(directory)
    if how == "removed":
        (directory / "cas.sqlite").unlink()
        (directory / "master.key").unlink()
        with pytest.raises(WrongKeyError, match=r"master\.key: is missing"), cas_in(tmp_path):
            pass


def test_a_cas_that_was_killed_at_its_first_start_starts_the_next_time(tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr("strongroom.cas.state.store.tables", lambda: [Table("no name", {"a": "TEXT"}, ("a",))])
        with pytest.raises(IntegrityError):
            Store(tmp_path)
    assert (tmp_path / "master.key").exists()
    Store(tmp_path).close()
    assert {path.name for path in tmp_path.iterdir()} == {"cas.sqlite", "master.key", "unseal.json"}


def test_a_witness_that_lost_a_note_does_not_start_anew(tmp_path):
    witness = Witness(tmp_path / "w", name="w.example/1")
    with cas_in(tmp_path) as cas, world_in(cas) as world:
        cosign_head(witness, world.client, cas.address.cas_root, now=1)
        for path in (tmp_path / "w").glob("*.note"):
            path.unlink()
        with pytest.raises(IntegrityError, match="is missing, or is not what this witness cosigned last"):
            cosign_head(Witness(tmp_path / "w"), world.client, cas.address.cas_root, now=2)


def test_junk_among_the_cosigned_heads_spoils_no_audit(tmp_path):
    with cas_in(tmp_path) as cas, world_in(cas) as world:
        with sqlite3.connect(cas.directory / "cas.sqlite") as db:
            for name, note in (("x", "junk"), ("y", "text\n\n\u2014 y AAAAAAAA\n")):
                db.execute("INSERT INTO cosignatures VALUES (?, 9, 9, ?)", (name, note))
        db.close()
        assert verify_audit(world.client.audit(), cas_root=cas.address.cas_root).head.size > 0
