"""Versions that stay: pinned by readers while a writer goes on, retained, or opened by several processes in turn."""

import errno
import os
from pathlib import Path

import pytest

from strongroom.errors import (
    CasUnreachableError,
    ConflictError,
    LockedError,
    RollbackError,
    StrongroomError,
    TamperedError,
    UsageError,
)
from strongroom.sealed import NO_FRESHNESS, Grouped, MemoryAnchor, Root, SealedFile, open_sealed
from strongroom.sealed.opening import open_in
from strongroom.storage import LOCKS_AT, LocalDirectory, MemoryDirectory, MemoryStorage

KEY = bytes(range(32))
BLOCK = 4096
SIZE = 6 * BLOCK


@pytest.fixture(params=["memory", "disk"])
def directory(request, tmp_path):
    return MemoryDirectory() if request.param == "memory" else LocalDirectory(tmp_path)


@pytest.fixture
def anchor():
    return MemoryAnchor()


def opened(directory, mode, anchor=NO_FRESHNESS, key=KEY, **more) -> SealedFile:
    return open_in(directory, "f", mode, key, anchor, BLOCK, what="f", **more)


def fill(file: SealedFile, number: int) -> Root:
    """Commit another content, all of whose blocks differ."""
    file.seek(0)
    file.write(bytes([number]) * SIZE)
    return file.commit()


def number_of(file: SealedFile) -> int:
    """Which content it is, read whole from the disk."""
    file.verify()
    buffer = bytearray(SIZE)
    assert file.read_at(0, buffer) == SIZE
    assert len(set(buffer)) == 1
    return buffer[0]


# Readers beside a writer.


def test_a_reader_keeps_its_version_while_a_writer_goes_on(directory, anchor):
    writer = opened(directory, "x", anchor)
    fill(writer, 1)
    readers = {}
    for n in range(2, 30):
        if n % 5 == 0:
            readers[n - 1] = opened(directory, "r", anchor)
        fill(writer, n)
        for number, reader in readers.items():
            assert number_of(reader) == number
            assert reader.root.sequence == number
    assert set(readers) < set(writer.live_sequences())
    assert writer.retained == []  # kept for readers, not retained
    for reader in readers.values():
        reader.close()
    fill(writer, 30)
    assert writer.live_sequences() == [29, 30]
    writer.close()


def test_a_reader_moves_on(directory, anchor):
    with opened(directory, "x", anchor) as writer:
        fill(writer, 1)
        with opened(directory, "r", anchor) as reader:
            fill(writer, 2)
            assert reader.moved()
            assert number_of(reader) == 1
            assert reader.refresh() == writer.root == reader.root
            assert not reader.moved()
            assert number_of(reader) == 2
            fill(writer, 3)
            fill(writer, 4)
            assert writer.live_sequences() == [2, 3, 4]


def test_pins_outlive_the_writer(directory, anchor):
    with opened(directory, "x", anchor) as writer:
        fill(writer, 1)
        reader = opened(directory, "r", anchor)
        fill(writer, 2)
        fill(writer, 3)
    for n in range(4, 12):
        with opened(directory, "r+", anchor) as writer:
            fill(writer, n)
        assert number_of(reader) == 1
    reader.close()


def test_the_17th_pinned_version_fails_before_anything_is_written(directory, anchor):
    writer = opened(directory, "x", anchor)
    readers = []
    with pytest.raises(UsageError, match="17 versions to keep, wanted at most 16"):
        for n in range(1, 40):
            fill(writer, n)
            readers.append(opened(directory, "r", anchor))
    root = writer.root
    assert anchor.read() == root
    for n, reader in enumerate(readers, 1):
        assert number_of(reader) == n
    readers.pop(0).close()
    assert writer.commit().sequence == root.sequence + 1
    assert number_of(readers[0]) == 2
    for reader in readers:
        reader.close()
    writer.close()


def test_a_reader_meets_commits_while_it_opens(anchor):
    """Each time the reader has taken its lock, the writer commits; and after the reader has read the slots, too."""
    directory = MemoryDirectory()
    writer = opened(directory, "x", anchor)
    fill(writer, 1)
    left = [2, 3, 4]
    storage = directory.open("f", "r", shared=True)
    acquire, read = storage.locks.acquire, anchor.read

    def acquire_late(byte, *, exclusive, wait=False):
        if left:
            fill(writer, left.pop(0))
        return acquire(byte, exclusive=exclusive, wait=wait)

    def read_late():
        if left:
            fill(writer, left.pop(0))
        return read()

    storage.locks.acquire = acquire_late
    anchor.read = read_late
    with open_sealed(storage, key=KEY, anchor=anchor) as reader:
        assert number_of(reader) == 4
        for n in range(5, 10):
            fill(writer, n)
        assert number_of(reader) == 4
    writer.close()


def test_the_file_shrinks_while_a_reader_opens(anchor):
    """Between reading the slots and asking for the size: what the slots said is no longer so."""
    directory = MemoryDirectory()
    writer = opened(directory, "x", anchor)
    fill(writer, 1)
    writer.truncate(100 * BLOCK)
    for n in range(6, 100):
        writer.write_at(n * BLOCK, b"x")
    writer.commit()
    storage = directory.open("f", "r", shared=True)
    size, left = storage.size, [1]

    def size_late():
        if left and left.pop():
            before = size()
            writer.truncate(SIZE)
            for n in range(2, 12):
                fill(writer, n)
            assert size() < before // 2
        return size()

    storage.size = size_late
    with open_sealed(storage, key=KEY, anchor=anchor) as reader:
        assert number_of(reader) == 11
    writer.close()


def test_a_rollback_is_no_race(anchor):
    directory = MemoryDirectory()
    with opened(directory, "x", anchor) as writer:
        fill(writer, 1)
    old = bytes(directory.files["f"].data)
    with opened(directory, "r+", anchor) as writer:
        fill(writer, 2)
        fill(writer, 3)
    with opened(directory, "r", anchor) as reader:
        directory.files["f"].data[:] = old
        with pytest.raises(RollbackError, match="version 1, wanted at least 3"):
            reader.moved()
        with pytest.raises(RollbackError):
            reader.refresh()
        # What the reader had pinned it holds on to.
        assert directory.open("f", "r", shared=True).locks.holders(LOCKS_AT + 1, LOCKS_AT + 10) == [LOCKS_AT + 3]
    with pytest.raises(RollbackError):
        opened(directory, "r", anchor)


def test_a_file_that_never_stands_still():
    directory = MemoryDirectory()
    writer = opened(directory, "x")
    fill(writer, 1)
    storage = directory.open("f", "r", shared=True)
    acquire = storage.locks.acquire

    def acquire_late(byte, *, exclusive, wait=False):
        writer.truncate(writer.length + 1)
        writer.commit()
        return acquire(byte, exclusive=exclusive, wait=wait)

    storage.locks.acquire = acquire_late
    with pytest.raises(LockedError, match="changes faster than it can be read"):
        open_sealed(storage, key=KEY, anchor=NO_FRESHNESS)
    writer.close()


# Retained versions.


def test_retained_versions_open_until_they_are_released(directory, anchor):
    with opened(directory, "x", anchor) as writer:
        fill(writer, 1)
        first = writer.retain()
        assert first == anchor.read() == writer.retain()
        fill(writer, 2)
        writer.seek(0)
        writer.write(bytes([3]) * SIZE)
        third = writer.commit(retain=True)
        for n in range(4, 12):
            fill(writer, n)
        assert [root.version for root in writer.retained] == [first.version, third.version]
        for at in (first, first.sequence, third, third.sequence):
            with opened(directory, "r", anchor, at=at) as reader:
                assert number_of(reader) == (1 if at in (first, first.sequence) else 3)
                assert reader.root.sequence == (at if isinstance(at, int) else at.sequence)
    with opened(directory, "r+", anchor) as writer:
        assert [root.version for root in writer.retained] == [first.version, third.version]
        writer.release(first)
        with pytest.raises(UsageError, match="not retained"):
            writer.release(first)
        assert [root.version for root in writer.retained] == [third.version]
    with pytest.raises(UsageError, match=r"version \d+ is not kept, wanted one of "):
        opened(directory, "r", anchor, at=first)
    with opened(directory, "r", anchor, at=third) as reader:
        assert number_of(reader) == 3


def test_a_released_version_stays_for_its_reader(directory, anchor):
    with opened(directory, "x", anchor) as writer:
        fill(writer, 1)
        first = writer.retain()
        for n in range(2, 8):
            fill(writer, n)
        with opened(directory, "r", anchor, at=first) as reader:
            writer.release(first)
            for n in range(8, 15):
                fill(writer, n)
            assert number_of(reader) == 1
            assert writer.retained == []
            # And for another one that comes while the first is there.
            with opened(directory, "r", anchor, at=first.sequence) as other:
                assert number_of(other) == 1
        fill(writer, 15)
        assert len(writer.live_sequences()) == 2


def test_the_17th_retained_version_is_refused(directory, anchor):
    with opened(directory, "x", anchor) as writer:
        for n in range(1, 17):
            writer.seek(0)
            writer.write(bytes([n]) * SIZE)
            writer.commit(retain=True)
        writer.truncate(10)
        before = writer.root
        with pytest.raises(UsageError, match="17 versions to keep"):
            writer.commit(retain=True)
        assert anchor.read() == before
        assert writer.commit().sequence == before.sequence + 1
        writer.release(3)
        writer.commit()
        writer.retain()
        assert len(writer.retained) == 16
    for n in [1, 2, *range(4, 17)]:
        with opened(directory, "r", anchor, at=n) as reader:
            assert number_of(reader) == n


def test_older_versions_are_for_reading_and_by_their_own_digest(directory, anchor):
    with opened(directory, "x", anchor) as writer:
        first = fill(writer, 1)
        second = fill(writer, 2)
    with opened(directory, "r", anchor, at=first) as reader:  # the one before the newest
        assert number_of(reader) == 1
    with opened(directory, "r", anchor, at=second) as reader:
        assert number_of(reader) == 2
    with pytest.raises(RollbackError, match="has another digest"):
        opened(directory, "r", anchor, at=Root(1, second.digest))
    with pytest.raises(UsageError, match="can only be read"):
        open_sealed(MemoryStorage(), "r+", key=KEY, anchor=anchor, at=1)


# Several processes that write in turn.


def test_shared_writers_take_turns(directory, anchor):
    one = opened(directory, "x", anchor, shared=True)
    fill(one, 1)
    two = opened(directory, "r+", anchor, shared=True)
    assert not two.moved()
    fill(one, 2)
    assert two.moved()
    with pytest.raises(ConflictError, match="another process has committed"):
        fill(two, 9)
    assert two.moved()
    two.reload()
    assert not two.moved()
    assert number_of(two) == 2
    fill(two, 3)
    with opened(directory, "r", anchor) as reader:
        one.reload()
        for n in range(4, 10):
            fill(one, n)
            two.reload()
        assert number_of(reader) == 3
        assert reader.root.sequence in two.live_sequences()
    assert number_of(two) == 9
    one.discard()
    two.discard()


def test_a_shared_writer_that_closes_leaves_the_slots_of_another_alone(directory, anchor):
    one = opened(directory, "x", anchor, shared=True)
    fill(one, 1)
    two = opened(directory, "r+", anchor, shared=True)
    for n in range(2, 6):  # all four slots are others than those that the first process knows
        fill(two, n)
    one.close()
    with opened(directory, "r", anchor) as reader:
        assert number_of(reader) == 5
        assert reader.notes == []
    two.close()


def test_a_shared_writer_can_read_its_version_until_it_looks_again(directory, anchor):
    one = opened(directory, "x", anchor, shared=True)
    fill(one, 1)
    two = opened(directory, "r+", anchor, shared=True)
    for n in range(2, 12):
        fill(two, n)
        assert number_of(one) == 1
    one.reload()
    assert number_of(one) == 11
    one.discard()
    two.discard()


def test_shared_writers_see_a_rollback(anchor):
    directory = MemoryDirectory()
    one = opened(directory, "x", anchor, shared=True)
    fill(one, 1)
    old = bytes(directory.files["f"].data)
    fill(one, 2)
    new = bytes(directory.files["f"].data)
    directory.files["f"].data[:] = old
    with pytest.raises(RollbackError):
        one.moved()
    fork = MemoryDirectory({"f": old})
    with opened(fork, "r+", shared=True) as other:
        fill(other, 2)
        other.commit()
    directory.files["f"].data[:] = fork.files["f"].data
    with pytest.raises(TamperedError, match="another version 2"):
        one.moved()
    directory.files["f"].data[:] = new
    assert not one.moved()
    one.discard()


TAGS = [bytes([n]) * 16 for n in range(20)]


def test_the_log_position_goes_to_the_anchor_first(directory, anchor):
    with opened(directory, "x", anchor, shared=True) as file:
        fill(file, 1)
        assert file.log_position == (0, b"")
        file.note_log(1, TAGS[1])
        file.note_log(2, TAGS[2])
        assert anchor.read() == Root(*file.root.version, 0, 2, TAGS[2])
        file.truncate(5)
        root = file.commit(log=(3, TAGS[3]))
        assert root == anchor.read() == Root(*root.version, 0, 3, TAGS[3])
        assert file.log_position == (3, TAGS[3])
        assert file.wanted_log is None
        assert file.commit(log=(3, TAGS[3])) == root
        file.note_log(4, TAGS[4])
    with opened(directory, "r", anchor, shared=True) as file:
        assert file.wanted_log == (4, TAGS[4])
        assert file.log_position == (3, TAGS[3])
    with pytest.raises(RollbackError, match="log number 3, wanted 4"):
        opened(directory, "r", anchor)  # nobody looks into the log


def test_a_commit_that_lost_the_race_against_the_log_is_refused(anchor):
    """One enclave's slot is on a forked disk; meanwhile another has moved the anchor along the log."""
    directory = MemoryDirectory()
    one = opened(directory, "x", anchor, shared=True)
    fill(one, 1)
    lost = MemoryAnchor(anchor.read())
    fork = MemoryDirectory({"f": bytes(directory.files["f"].data)})
    with opened(fork, "r+", lost, shared=True) as two:
        fill(two, 2)
    one.note_log(1, TAGS[1])
    with pytest.raises(RollbackError):
        opened(fork, "r", anchor, shared=True)
    one.discard()


# Restore.


def test_after_a_restore_the_branch_that_was_left_is_refused(anchor):
    directory = MemoryDirectory()
    with opened(directory, "x", anchor) as file:
        first = fill(file, 1)
    versions = [bytes(directory.files["f"].data)]
    for n in (2, 3):
        with opened(directory, "r+", anchor) as file:
            fill(file, n)
        versions.append(bytes(directory.files["f"].data))
    with pytest.raises(RollbackError):
        opened(MemoryDirectory({"f": versions[0]}), "r", anchor)
    restored = anchor.restore(first, reason="version 2 is bad")
    assert restored.epoch == 1
    for left in versions[1:]:
        with pytest.raises(RollbackError):
            opened(MemoryDirectory({"f": left}), "r", anchor)
    directory = MemoryDirectory({"f": versions[0]})
    with opened(directory, "r+", anchor) as file:
        assert (file.commit_epoch, number_of(file)) == (0, 1)
        assert file.commit() == first  # nothing was changed
        onward = fill(file, 4)
        assert (onward.sequence, onward.epoch, file.commit_epoch) == (2, 1, 1)
        assert anchor.read() == onward
    with opened(directory, "r+", anchor) as file:
        assert fill(file, 5).epoch == 1
    for old in versions:
        with pytest.raises(RollbackError):
            opened(MemoryDirectory({"f": old}), "r", anchor)


# Grouped anchoring.


class Counted(MemoryAnchor):
    advances = 0
    out_of_reach = False

    def advance(self, old, new):
        if self.out_of_reach:
            raise CasUnreachableError("no answer")
        self.advances += 1
        super().advance(old, new)


def test_grouped_commits_are_anchored_in_time(directory):
    inner, now = Counted(), [0.0]
    anchor = Grouped(inner, every_commits=64, every_seconds=10, clock=lambda: now[0])
    with opened(directory, "x", anchor) as file:
        first = fill(file, 1)
        assert inner.read() == first  # there was no root to list
        for n in range(2, 65):
            fill(file, n)
            # Whatever the anchor holds, a reader that finds it in the slot's list moves it on.
            probe = MemoryAnchor(first)
            with opened(directory, "r", probe) as reader:
                assert number_of(reader) == n
            assert probe.read() == file.root
        assert inner.read() == first
        assert fill(file, 65) == inner.read()
        fill(file, 66)
        assert inner.advances == 2
        now[0] = 10.0
        assert file.commit() == inner.read()  # nothing was changed, but it was time
        fill(file, 67)
        file.settle()
        assert inner.read() == file.root
        fill(file, 68)
    assert inner.read().sequence == 68
    with opened(directory, "r", inner) as file:
        assert number_of(file) == 68


def test_a_grouped_rollback_behind_the_window_is_seen():
    directory, inner = MemoryDirectory(), MemoryAnchor()
    anchor = Grouped(inner, every_commits=3, every_seconds=1, clock=lambda: 0.0)
    with opened(directory, "x", anchor) as file:
        fill(file, 1)
        old = bytes(directory.files["f"].data)
        for n in range(2, 6):
            fill(file, n)
    with pytest.raises(RollbackError):
        opened(MemoryDirectory({"f": old}), "r", inner)


def test_a_reader_may_advance_a_grouped_anchor_meanwhile(directory):
    inner = Counted()
    anchor = Grouped(inner, every_seconds=1, clock=lambda: 0.0)
    with opened(directory, "x", anchor) as file:
        for n in range(1, 5):
            fill(file, n)
        opened(directory, "r", inner).close()
        assert inner.read().sequence == 4
        for n in range(5, 8):
            fill(file, n)
    assert inner.read().sequence == 7


def test_no_65th_commit_without_the_anchor(directory):
    inner = Counted()
    anchor = Grouped(inner, every_seconds=1, clock=lambda: 0.0)
    file = opened(directory, "x", anchor)
    fill(file, 1)
    inner.out_of_reach = True
    for n in range(2, 65):
        fill(file, n)
    for n in (65, 66, 67):
        with pytest.raises(CasUnreachableError):
            fill(file, n)
    assert file.root.sequence == 65
    inner.out_of_reach = False
    assert file.commit().sequence == 66
    assert inner.read().sequence == 65
    inner.out_of_reach = True
    fill(file, 68)
    with pytest.raises(CasUnreachableError):
        file.close()
    with opened(directory, "r", MemoryAnchor(inner.read())) as reader:
        assert number_of(reader) == 68


def test_another_writer_of_a_grouped_anchor_conflicts():
    inner = MemoryAnchor()
    anchor = Grouped(inner, every_seconds=1, clock=lambda: 0.0)
    file = opened(MemoryDirectory(), "x", anchor)
    fill(file, 1)
    fill(file, 2)
    inner.restore(inner.read(), reason="test")
    with pytest.raises(ConflictError):
        file.settle()
    with pytest.raises(StrongroomError, match="commits no more"):
        fill(file, 3)
    file.discard()


# Damage and failing disks.


def test_damage_that_was_passed_over_is_reported(caplog):
    directory = MemoryDirectory()
    with opened(directory, "x") as file:
        fill(file, 1)
        assert file.notes == []
    directory.files["f"].data[2000] ^= 1
    with opened(directory, "r") as file:
        assert number_of(file) == 1
        assert file.notes == [
            "slot 0 is damaged, by a crash or by a change of the file; version 1 is served, from 1 slot"
        ]
    assert caplog.messages == [f"f: {file.notes[0]}"]
    assert caplog.records[0].name == "strongroom.sealed"
    with opened(directory, "r+") as file:
        fill(file, 2)
    with opened(directory, "r") as file:
        assert file.notes == []  # the next commit took the damaged slot


class FailingStorage(MemoryStorage):
    """Fails at the nth write or sync from now."""

    left = -1
    error = errno.ENOSPC

    def step(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise OSError(self.error, os.strerror(self.error))

    def write_at(self, offset, data):
        self.step()
        super().write_at(offset, data)

    def sync(self):
        self.step()


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_is_full_or_failing_leaves_the_last_commit(error):
    for step in range(1, 20):
        storage, anchor = FailingStorage(), MemoryAnchor()
        file = open_sealed(storage, "x", key=KEY, anchor=anchor, block_size=BLOCK)
        fill(file, 1)
        storage.left, storage.error = step, error
        try:
            fill(file, 2)
        except OSError:
            if file.poisoned:
                with pytest.raises(StrongroomError, match="commits no more"):
                    file.commit()
                with pytest.raises(StrongroomError, match="commits no more"):
                    file.close()
            else:  # it was full for this one write only
                assert error == errno.ENOSPC
                fill(file, 2)
                file.close()
        else:
            file.discard()
            break
        with open_sealed(MemoryStorage(storage.data), "r+", key=KEY, anchor=anchor) as after:
            assert number_of(after) in (1, 2)
            fill(after, 3)
    else:
        pytest.fail("the commit never came to its end")
    assert step > 4


class CountedSyncs(MemoryStorage):
    syncs = 0
    atomic_sync = False

    def sync(self):
        self.syncs += 1


@pytest.mark.parametrize(("atomic", "syncs"), [(False, 2), (True, 1)])
def test_one_sync_where_one_orders_everything(atomic, syncs):
    storage = CountedSyncs()
    storage.atomic_sync = atomic
    file = open_sealed(storage, "x", key=KEY, anchor=NO_FRESHNESS, block_size=BLOCK)
    fill(file, 1)
    assert storage.syncs == syncs
    file.close()


# Upkeep.


def test_holes_and_write_at():
    storage = MemoryStorage()
    with open_sealed(storage, "x", key=KEY, anchor=NO_FRESHNESS, block_size=BLOCK) as file:
        fill(file, 1)
        file.write_at(10, b"abc")
        file.punch(BLOCK, 2 * BLOCK)
        file.seek(9)
        assert file.read(5) == b"\x01abc\x01"
        file.seek(BLOCK - 1)
        assert file.read(2 * BLOCK + 2) == b"\x01" + bytes(2 * BLOCK) + b"\x01"
        file.commit()
        assert file.verify() == 4
        assert file.file_id in storage.data


def test_the_cache_is_as_large_as_said(tmp_path: Path):
    with open_sealed(tmp_path / "f", "x", key=KEY, anchor=NO_FRESHNESS, block_size=BLOCK, cache=0) as file:
        for n in range(50):
            file.write_at(n * BLOCK, bytes([n]) * 10)
        assert file._content.dirty < 10 * BLOCK
        for n in range(50):
            buffer = bytearray(10)
            file.read_at(n * BLOCK, buffer)
            assert buffer == bytes([n]) * 10
