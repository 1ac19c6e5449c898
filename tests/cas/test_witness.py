"""A witness cosigns what extends the last head that it cosigned, whatever happens to it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from strongroom.cas import OwnerClient
from strongroom.cas.log.entry import LogEntry
from strongroom.cas.log.head import NO_ENTRIES, Head
from strongroom.cas.log.note import Checkpoint, sign_checkpoint
from strongroom.cas.log.tree import Frontier, consistency_proof
from strongroom.cas.log.witness import Witness
from strongroom.cli.cas.witness import cosign_head
from strongroom.crypto import SigningKey
from strongroom.errors import (
    ConflictError,
    FormatError,
    IntegrityError,
    RollbackError,
    UnauthorizedError,
    VerificationError,
)
from tests.cas.world import cas_in, world_in

KEY = SigningKey.generate()
CAS_ROOT = KEY.public.fingerprint


class Log:
    """A CAS's log, without the CAS."""

    def __init__(self, size, *, fork=0):
        self.nodes, self.frontier, self.roots = {}, Frontier(), [Frontier().root()]
        for number in range(1, size + 1):
            detail = "fork" if fork and number >= fork else "{}"
            leaf = LogEntry(number, 0, "secret", "a/b", detail, number - 1, bytes(16)).leaf
            self.frontier, new = self.frontier.append(leaf)
            self.nodes |= {(level, index): value for level, index, value in new}
            self.roots.append(self.frontier.root())

    def head(self, size):
        return Head(size, self.roots[size])

    def note(self, size, key=KEY):
        return sign_checkpoint(size, self.roots[size], key)

    def proof(self, old, new):
        return consistency_proof(lambda level, index: self.nodes[level, index], old, new)


LOG, FORK, EARLY_FORK = Log(20), Log(20, fork=6), Log(20, fork=3)


def cosign(witness, old, new, *, log=LOG, last=None, now=1):
    last = (LOG.head(old) if old else NO_ENTRIES) if last is None else last
    return witness.cosign(log.note(new), CAS_ROOT, KEY.public, last=last, proof=log.proof(old, new), now=now)


@pytest.fixture
def witness(tmp_path):
    return Witness(tmp_path / "w", name="w.example/1")


def test_heads_that_extend_each_other_are_cosigned(witness, tmp_path):
    for old, new in ((0, 3), (3, 3), (3, 4), (4, 20)):
        note = cosign(witness, old, new, now=new)
        assert witness.key.verify(note) == new
        assert Witness(tmp_path / "w").last(CAS_ROOT) == LOG.head(new)
    assert Witness(tmp_path / "w").key == witness.key
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "w").iterdir()} == {0o600}
    assert stat.S_IMODE((tmp_path / "w").stat().st_mode) == 0o700


def test_a_fork_a_rollback_and_another_root_of_the_same_size_are_refused(witness):
    cosign(witness, 0, 8)
    for call in (
        lambda: cosign(witness, 8, 20, log=FORK),
        lambda: cosign(witness, 8, 8, log=FORK),
        lambda: witness.cosign(LOG.note(5), CAS_ROOT, KEY.public, last=LOG.head(8), proof=[], now=1),
        lambda: witness.cosign(LOG.note(0), CAS_ROOT, KEY.public, last=LOG.head(8), proof=[], now=1),
    ):
        with pytest.raises(RollbackError):
            call()
        assert witness.last(CAS_ROOT) == LOG.head(8)
    with pytest.raises(FormatError, match="consistency proof"):
        witness.cosign(LOG.note(20), CAS_ROOT, KEY.public, last=LOG.head(8), proof=[], now=1)


def test_what_the_cas_did_not_sign_is_refused(witness):
    other = SigningKey.generate()
    with pytest.raises(VerificationError):
        witness.cosign(LOG.note(3, other), CAS_ROOT, KEY.public, last=NO_ENTRIES, proof=[], now=1)
    with pytest.raises(VerificationError):
        witness.cosign(LOG.note(3, other), CAS_ROOT, other.public, last=NO_ENTRIES, proof=[], now=1)
    assert witness.last(CAS_ROOT) == NO_ENTRIES


def test_of_two_processes_the_second_asks_again(witness, tmp_path):
    cosign(Witness(tmp_path / "w"), 0, 5)
    with pytest.raises(ConflictError, match="has cosigned another head meanwhile"):
        cosign(witness, 0, 7, log=FORK, last=NO_ENTRIES)
    cosign(witness, 5, 7)


def test_logs_of_two_cases_are_kept_apart(witness):
    cosign(witness, 0, 5)
    other = SigningKey.generate()
    root = other.public.fingerprint
    witness.cosign(FORK.note(9, other), root, other.public, last=NO_ENTRIES, proof=[], now=1)
    assert (witness.last(CAS_ROOT), witness.last(root)) == (LOG.head(5), FORK.head(9))


@pytest.mark.parametrize("bend", [lambda t: "", lambda t: t[:-9], lambda t: t.replace("\n5\n", "\n4\n"), lambda t: "x"])
def test_a_state_that_it_did_not_write_stops_it(witness, tmp_path, bend):
    cosign(witness, 0, 5)
    (path,) = (tmp_path / "w").glob("*.note")
    path.write_text(bend(path.read_text()))
    with pytest.raises(IntegrityError, match="is not what this witness cosigned last"):
        cosign(witness, 5, 6)


def test_a_name_stays(tmp_path, witness):
    with pytest.raises(ConflictError, match="is the state of w"):
        Witness(tmp_path / "w", name="w.example/2")
    with pytest.raises(FormatError, match="does not exist"):
        Witness(tmp_path / "new")
    for name in ("", "a b", "a+b", "a\nb"):
        with pytest.raises(FormatError, match="witness name"):
            Witness(tmp_path / "new", name=name)


class Crash(BaseException):
    pass


class Counted:
    """Lets the first `budget` writes, syncs and renames happen."""

    def __init__(self, budget):
        self.budget, self.count = budget, 0

    def __call__(self, real):
        def call(*args, **options):
            self.count += 1
            if self.count > self.budget:
                raise Crash
            return real(*args, **options)

        return call


def test_killed_at_any_write_it_remembers_the_old_head_or_the_new(tmp_path, monkeypatch):
    for budget in range(100):
        witness = Witness(tmp_path / str(budget), name="w.example/1")
        cosign(witness, 0, 5)
        counted = Counted(budget)
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", counted(os.fsync))
            patched.setattr(os, "fdopen", counted(os.fdopen))
            patched.setattr(Path, "replace", counted(Path.replace))
            try:
                given = cosign(witness, 5, 8)
            except Crash:
                given = None
        again = Witness(tmp_path / str(budget))
        last = again.last(CAS_ROOT)
        assert last in (LOG.head(5), LOG.head(8))
        if given is not None:  # nothing is given out that is not remembered
            assert last == LOG.head(8)
        with pytest.raises(RollbackError):
            cosign(again, last.size, 20, log=EARLY_FORK, last=last)
        cosign(again, last.size, 20)
        if given is not None:
            break
    assert budget >= 3


def test_a_cas_keeps_cosignatures_of_witnesses_that_it_was_told_of(tmp_path):
    known, stranger = (Witness(tmp_path / name, name=name) for name in ("known", "stranger"))
    with cas_in(tmp_path, witnesses=[known.key]) as cas, world_in(cas) as world:
        client = world.client
        with OwnerClient(cas.address.url, cas_root=cas.address.cas_root) as anybody:
            first = cosign_head(known, anybody, cas.address.cas_root, now=1)
            assert anybody.put_cosigned(first) == ["known"]
            client.put_secret(world.name, "token", b"more")
            second = cosign_head(known, anybody, cas.address.cas_root, now=2)
            assert anybody.put_cosigned(second) == ["known"]
            anybody.put_cosigned(first)  # an older one comes late
            shown = anybody.log_head()[2]
            assert [known.key.verify(note) for note in shown] == [2]
            with pytest.raises(UnauthorizedError, match="no cosignature of a witness"):
                anybody.put_cosigned(cosign_head(stranger, anybody, cas.address.cas_root, now=3))
            bent = type(second)(second.text.replace("\n5\n", "\n4\n"), second.signatures)
            with pytest.raises(VerificationError):
                anybody.put_cosigned(bent)
            assert Checkpoint.parse(shown[0].text).size == len(client.log())
    with cas_in(tmp_path, witnesses=[known.key]) as cas, cas.owner(world.owner) as client:
        assert client.log_head()[2] == shown
