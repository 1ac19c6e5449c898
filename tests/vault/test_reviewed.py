"""What a review broke: undecided commits, sweeping, forks, directories, failed syncs, cut logs, a rekey cut short."""

import errno
import os
import stat

import pytest

from strongroom import vault
from strongroom.crypto import random_key
from strongroom.errors import CasUnreachableError, ConflictError, RollbackError, StrongroomError, UsageError
from strongroom.sealed import NO_FRESHNESS, FileAnchor, MemoryAnchor
from strongroom.storage import MemoryDirectory
from strongroom.testing.storage import FaultyDirectory
from strongroom.vault.rows import ROOT_INODE
from strongroom.vault.vault import Vault

KEY = bytes(range(32))
BIG = os.urandom(300_000)


class Silent(MemoryAnchor):
    reached = True

    def advance(self, old, new):
        if not self.reached:
            raise CasUnreachableError("cas: no answer")
        super().advance(old, new)


def made(directory, anchor, files=None):
    with Vault(directory, "x", KEY, anchor, what="vault") as opened:
        for path, content in (files or {"big": BIG, "small": BIG[:5000]}).items():
            opened.write_bytes(path, content)


def contents(directory, anchor, key=KEY):
    with Vault(directory, "r", key, anchor, what="vault") as opened:
        opened.verify()
        return {path: opened.read_bytes(path) for path in opened.files()}


def test_an_undecided_commit_that_is_given_up_keeps_its_data_files():
    directory, anchor = MemoryDirectory(), Silent()
    made(directory, anchor)
    opened = Vault(directory, "r+", KEY, anchor, what="vault")
    opened.write_bytes("big", BIG[::-1])
    anchor.reached = False
    with pytest.raises(CasUnreachableError):
        opened.close()
    anchor.reached = True
    assert contents(directory, anchor)["big"] == BIG[::-1]


def test_a_commit_whose_last_sync_failed_keeps_its_data_files():
    for number in range(1, 12):
        disk, anchor = FaultyDirectory(), MemoryAnchor()
        made(disk, anchor)
        opened = Vault(disk, "r+", KEY, anchor, what="vault")
        opened.write_bytes("big", BIG[::-1])
        disk.faults.fail_sync = disk.syncs + number
        try:
            opened.close()
        except OSError:
            opened.discard()
        disk.faults.fail_sync = None
        assert contents(disk, MemoryAnchor(anchor.read()))["big"] in (BIG, BIG[::-1])


def test_an_opening_sweeps_on_top_of_the_newest_commit(monkeypatch):
    directory, anchor = MemoryDirectory(), MemoryAnchor()
    made(directory, anchor)
    check = Vault._check_log

    def other_commits_now(self):
        count = check(self)
        monkeypatch.setattr(Vault, "_check_log", check)
        with Vault(directory, "r+", KEY, anchor, what="vault") as other:
            other.write_bytes("late", BIG)
        return count

    monkeypatch.setattr(Vault, "_check_log", other_commits_now)
    with Vault(directory, "r+", KEY, anchor, what="vault") as opened:
        opened.write_bytes("own", b"o")
    assert contents(directory, anchor)["late"] == BIG


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_reads_and_changes_nothing(tmp_path):
    anchor = FileAnchor(tmp_path / "anchor")
    with vault.open(tmp_path / "v", "x", key=KEY, anchor=anchor) as opened:
        opened.write_bytes("big", BIG)
        opened.commit()
        opened.write_bytes("new", BIG[::-1])
        child = os.fork()
        if child == 0:
            status = 1
            try:
                assert opened.read_bytes("big") == BIG
                with pytest.raises(UsageError, match="forked"):
                    opened.write_bytes("x", b"")
                opened.close()
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
    with vault.open(tmp_path / "v", key=KEY, anchor=anchor) as reader:
        assert reader.read_bytes("new") == BIG[::-1]


def test_a_directory_that_two_processes_rename():
    directory, anchor = MemoryDirectory(), MemoryAnchor()
    made(directory, anchor, {"d/file": b"f"})
    one, two = (Vault(directory, "r+", KEY, anchor, what="vault") for _ in range(2))
    one.rename("d", "one")
    two.rename("d", "two")
    one.commit()
    with pytest.raises(ConflictError):
        two.commit()
    two.discard()
    one.close()
    assert list(contents(directory, anchor)) == ["one/file"]


def test_attributes_of_a_directory_that_another_process_uses():
    directory, anchor = MemoryDirectory(), MemoryAnchor()
    made(directory, anchor)
    one, two = (Vault(directory, "r+", KEY, anchor, what="vault") for _ in range(2))
    one.change(ROOT_INODE, mode=0o700, uid=1234)
    two.write_bytes("new", b"n")
    one.commit()
    two.commit()
    top = two.inode(ROOT_INODE)
    assert (stat.S_IMODE(top.mode), top.uid) == (0o700, 1234)
    two.change(ROOT_INODE, mode=0o711)
    one.change(ROOT_INODE, mode=0o755)
    two.commit()
    with pytest.raises(ConflictError, match="attributes"):
        one.commit()
    one.discard()
    two.close()


def test_a_failed_sync_between_commits_ends_the_opening():
    disk, anchor = FaultyDirectory(), MemoryAnchor()
    made(disk, anchor)
    opened = Vault(disk, "r+", KEY, anchor, what="vault")
    opened.write_bytes("new", BIG[::-1])
    disk.faults.fail_sync = disk.syncs + 1
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        opened._files._limit_trees() or opened._files.settle() or opened._files.sync()
    disk.faults.fail_sync = None
    with pytest.raises(StrongroomError, match="commits no more"):
        opened.commit()
    opened.discard()


def test_a_log_that_is_hidden_from_another_writer():
    directory, anchor = MemoryDirectory(), MemoryAnchor()
    made(directory, anchor)
    owner = Vault(directory, "r+", KEY, anchor, what="vault", log=True)
    other = Vault(directory, "r+", KEY, anchor, what="vault")
    reader = Vault(directory, "r", KEY, anchor, what="vault")
    owner.write_bytes("acknowledged", b"a")
    owner.fsync()
    hidden = directory.files.pop("log")
    other.write_bytes("other", b"o")
    with pytest.raises((RollbackError, ConflictError)):
        other.commit()
    other.discard()
    directory.files["log"] = hidden
    reader.discard()
    owner.discard()
    with pytest.raises(RollbackError):  # a slot was written on top of what the disk hid: never taken for the newest
        contents(directory, anchor)


def test_a_log_that_is_cut_between_two_looks(monkeypatch):
    directory, anchor = MemoryDirectory(), MemoryAnchor()
    made(directory, anchor)
    owner = Vault(directory, "r+", KEY, anchor, what="vault", log=True)
    for number in range(3):
        owner.write_bytes(f"f{number}", b"x")
        owner.fsync()
    owner.discard()
    check = Vault._check_log

    def then_cut(self):
        count = check(self)
        del directory.files["log"].data[400:]
        return count

    monkeypatch.setattr(Vault, "_check_log", then_cut)
    before = anchor.read()
    with pytest.raises(RollbackError, match="the log ends before"):
        Vault(directory, "r+", KEY, anchor, what="vault")
    assert anchor.read() == before


def test_a_change_of_the_key_that_was_cut_short_is_finished(monkeypatch):
    directory, anchor, new = MemoryDirectory(), MemoryAnchor(), random_key()
    made(directory, anchor)
    opened = Vault(directory, "r+", KEY, anchor, what="vault")
    calls = []

    def cut(limit):
        calls.append(limit)
        raise KeyboardInterrupt

    monkeypatch.setattr(opened._meta, "rekey_step", cut)
    with pytest.raises(KeyboardInterrupt):
        opened.rekey(new)
    opened.discard()
    assert calls
    with Vault(directory, "r+", new, anchor, what="vault") as again:
        assert again.rekeying
        with pytest.raises(UsageError, match="is not finished"):
            again.rekey(random_key())
    with Vault(directory, "r+", new, anchor, what="vault") as again:
        again.rekey(new)
        assert not again.rekeying
    assert contents(directory, anchor, new) == {"big": BIG, "small": BIG[:5000]}
    with pytest.raises(StrongroomError):
        Vault(directory, "r", KEY, NO_FRESHNESS, what="vault")


def test_an_open_file_without_a_name_outlives_other_openings():
    directory, anchor = MemoryDirectory(), MemoryAnchor()
    made(directory, anchor)
    one = Vault(directory, "r+", KEY, anchor, what="vault")
    file = one.open("big", "r+b")
    one.remove("big")
    one.commit()
    with Vault(directory, "r+", KEY, anchor, what="vault") as two:
        two.write_bytes("other", b"o")
    one.refresh()
    file.write(b"still here")
    file.seek(0)
    assert file.read(20) == b"still here" + BIG[10:20]
    one.commit()
    file.close()
    one.close()
    with Vault(directory, "r+", KEY, anchor, what="vault") as after:
        assert after._state.orphans() == []
    assert sorted(contents(directory, anchor)) == ["other", "small"]


def test_an_fsync_of_more_rows_than_a_record_holds_is_a_commit():
    directory, anchor = MemoryDirectory(), MemoryAnchor()
    made(directory, anchor)
    with Vault(directory, "r+", KEY, anchor, what="vault", log=True) as opened:
        for number in range(1200):
            opened.symlink("t" * 4090, f"links/{number}")
        opened.fsync()
        opened.write_bytes("after", b"a")
    with Vault(directory, "r", KEY, anchor, what="vault") as reader:
        assert reader.read_bytes("after") == b"a"
        assert len(reader.listdir("links")) == 1200


def test_times_beyond_what_a_row_holds_are_the_nearest():
    directory, anchor = MemoryDirectory(), MemoryAnchor()
    made(directory, anchor)
    with Vault(directory, "r+", KEY, anchor, what="vault") as opened:
        number = opened.stat("small").inode
        opened.change(number, mtime=10**20, atime=-(10**20))
        opened.commit()
        assert opened.inode(number).mtime == 2**63 - 1
