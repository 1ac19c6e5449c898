"""A disk that is full breaks nothing: what there was is whole, and once there is room again one goes on."""

import errno
import os

import pytest

from strongroom.errors import ConflictError, StrongroomError
from strongroom.sealed import MemoryAnchor
from strongroom.testing.storage import FaultyDirectory
from strongroom.vault.journal import COMMIT_BYTE
from strongroom.vault.vault import Vault

KEY = bytes(range(32))
OLD = os.urandom(300_000)


def world(log: bool):
    disk, anchor = FaultyDirectory(), MemoryAnchor()
    opened = Vault(disk, "x", KEY, anchor, what="vault", log=log)
    opened.write_bytes("big", OLD)
    opened.write_bytes("small", OLD[:5000])
    opened.commit()
    return disk, anchor, opened


def fill(disk: FaultyDirectory) -> None:
    disk.faults.full_from = disk.writes


def make_room(disk: FaultyDirectory) -> None:
    disk.faults.full_from = None


def contents(disk, anchor) -> dict[str, bytes]:
    with Vault(disk, "r", KEY, MemoryAnchor(anchor.read()), what="vault") as opened:
        opened.verify()
        return {path: opened.read_bytes(path) for path in opened.files()}


@pytest.mark.parametrize("log", [False, True])
def test_a_write_that_finds_the_disk_full_can_be_done_again(log):
    disk, anchor, opened = world(log)
    with opened.open("big", "r+b") as file:
        fill(disk)
        file.seek(290_000)
        with pytest.raises(OSError, match="No space") as caught:
            file.write(b"n" * 8_000_000)
        assert caught.value.errno == errno.ENOSPC
        assert file.length == len(OLD)
        make_room(disk)
        file.seek(290_000)
        file.write(b"n" * 20_000)
        file.truncate(305_000)
        file.truncate(306_000)
    opened.close()
    assert contents(disk, anchor)["big"] == OLD[:290_000] + b"n" * 15_000 + bytes(1000)


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("after", range(12))
def test_a_commit_that_finds_the_disk_full_can_be_done_again(log, after):
    """Full from the first write of the commit, the second, and so on."""
    disk, anchor, opened = world(log)
    opened.write_bytes("new", OLD[::-1])
    opened.write_bytes("small", b"s" * 6000)
    with opened.open("big", "r+b") as file:
        file.write(b"changed")
    disk.faults.full_from = disk.writes + after
    try:
        opened.fsync(opened.stat("big").inode) if log else opened.commit()
    except OSError as error:
        assert error.errno == errno.ENOSPC
        try:
            assert opened.read_bytes("small") == b"s" * 6000
            opened.write_bytes("more", b"m")
        except OSError as again:
            assert again.errno == errno.ENOSPC
        except StrongroomError:  # it was a slot that was half written: which commit is the newest, an opening finds out
            opened.discard()
            make_room(disk)
            assert contents(disk, anchor) == {"big": OLD, "small": OLD[:5000]}
            return
    make_room(disk)
    opened.write_bytes("more", b"m" * 3000)
    opened.close()
    assert contents(disk, anchor) == {
        "big": b"changed" + OLD[7:],
        "new": OLD[::-1],
        "small": b"s" * 6000,
        "more": b"m" * 3000,
    }


def test_removing_what_filled_the_disk_makes_room():
    disk, anchor, opened = world(log=False)
    file = opened.open("new", "xb")
    names = set(disk.list())
    with pytest.raises(OSError, match="No space"):
        file.write(OLD)
        fill(disk)
        file.write(OLD * 20)
    assert len(set(disk.list()) - names) == 1
    file.close()
    opened.remove("new")
    assert set(disk.list()) == names
    make_room(disk)
    opened.close()
    assert sorted(contents(disk, anchor)) == ["big", "small"]


def test_a_commit_done_again_is_on_top_of_the_newest_or_not_at_all():
    """Full within `meta`, then another process commits: nothing of it is lost when the first one tries again."""
    disk, anchor, opened = world(log=False)
    opened.write_bytes("mine", b"m")
    prepare = opened._meta._content.prepare

    def full():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    opened._meta._content.prepare = full
    with pytest.raises(OSError, match="No space"):
        opened.commit()
    opened._meta._content.prepare = prepare
    with Vault(disk, "r+", KEY, anchor, what="vault") as other:
        other.write_bytes("theirs", b"t")
    held = []
    finish = opened._finish
    locks = disk.open("meta", "r", shared=True).locks
    opened._finish = lambda: (held.extend(locks.holders(COMMIT_BYTE, COMMIT_BYTE)), finish())[1]
    with pytest.raises(ConflictError):
        opened.write_bytes("more", b"")
    assert held == [COMMIT_BYTE]
    with pytest.raises(StrongroomError, match="commits no more"):
        opened.commit()
    opened.discard()
    assert sorted(contents(disk, anchor)) == ["big", "small", "theirs"]
