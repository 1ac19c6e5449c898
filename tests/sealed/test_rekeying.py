"""Another key, and files whose blocks lie in clear."""

import os

import pytest

from strongroom.errors import FormatError, RollbackError, TamperedError, UsageError, WrongKeyError
from strongroom.sealed import NO_FRESHNESS, MemoryAnchor, Root, SealedFile, open_sealed
from strongroom.sealed.opening import open_in
from strongroom.storage import MemoryDirectory, MemoryStorage

OLD, NEW, THIRD = (bytes([n]) * 32 for n in (1, 2, 3))
BLOCK = 4096
CONTENT = os.urandom(200 * BLOCK + 5)  # a tree of three levels


def opened(storage, mode, key, anchor=NO_FRESHNESS, **more) -> SealedFile:
    return open_sealed(storage, mode, key=key, anchor=anchor, block_size=BLOCK, **more)


@pytest.fixture
def storage():
    made = MemoryStorage()
    with opened(made, "x", OLD) as file:
        file.write(CONTENT)
    return made


def content_of(storage: MemoryStorage, key: bytes) -> bytes:
    with opened(MemoryStorage(storage.data), "r", key) as file:
        file.verify()
        return file.read()


def slots_of(storage: MemoryStorage) -> bytes:
    return bytes(storage.data[: 4 * 4096])


# Another key.


def test_the_old_key_opens_nothing_after_the_commit(storage):
    with opened(storage, "r+", OLD) as file:
        file.rekey(NEW)
        assert content_of(storage, OLD) == CONTENT  # not committed yet
        file.commit()
        with pytest.raises(WrongKeyError):
            opened(MemoryStorage(storage.data), "r", OLD)
        assert content_of(storage, NEW) == CONTENT
        assert file.rekeying
    with pytest.raises(WrongKeyError):
        opened(storage, "r+", OLD)


def test_all_blocks_are_sealed_anew_and_the_old_key_is_dropped(storage):
    with opened(storage, "r+", OLD) as file:
        file.rekey(NEW)
        steps = 0
        while file.rekey_step(30):
            file.commit()
            steps += 1
            assert content_of(storage, NEW) == CONTENT
        assert file.rekeying
        file.commit()
        assert not file.rekeying
        assert steps > 5
    before = bytes(storage.data)
    assert content_of(storage, NEW) == CONTENT
    # A second change of the key: generations go on.
    with opened(storage, "r+", NEW) as file:
        file.rekey(THIRD)
        file.rekey_step(1000)
        file.commit()
        assert not file.rekeying
    assert content_of(storage, THIRD) == CONTENT
    assert slots_of(storage) != before[: 4 * 4096]


def test_it_goes_on_after_a_crash_with_the_new_key_alone(storage):
    file = opened(storage, "r+", OLD)
    file.rekey(NEW)
    assert file.rekey_step(50)
    file.commit()
    after = MemoryStorage(storage.data)
    file.discard()
    with opened(after, "r+", NEW) as file:
        assert file.rekeying
        file.write_at(0, b"new")
        with pytest.raises(UsageError, match="cannot be changed before"):
            file.rekey(THIRD)
        file.rekey_step(1000)
        file.commit()
        assert not file.rekeying
        file.rekey(THIRD)
    assert content_of(after, THIRD) == b"new" + CONTENT[3:]


class StopsAtSlot(MemoryStorage):
    """Loses everything from the nth write into the slots on."""

    left = 1 << 30

    def write_at(self, offset, data):
        if offset < 4 * 4096:
            self.left -= 1
        if self.left >= 0:
            super().write_at(offset, data)


@pytest.mark.parametrize("slots", [0, 1, 2, 3, 4])
def test_a_crash_between_the_slots(slots, storage):
    stops, anchor = StopsAtSlot(storage.data), MemoryAnchor()
    with opened(storage, "r", OLD) as file:
        anchor.advance(None, file.root)
    file = opened(stops, "r+", OLD, anchor)
    file.truncate(100)
    file.rekey(NEW)  # commits what is changed
    stops.left = slots
    file.write_at(0, b"new")
    file.commit()
    root = file.root
    file.discard()
    after = MemoryStorage(stops.data)
    if slots == 0:
        assert content_of(after, OLD) == CONTENT[:100]
        return
    with opened(after, "r+", NEW, anchor) as file:
        assert file.root == root == anchor.read()
        assert file.read() == b"new" + CONTENT[3:100]
        assert bool(file.notes) == (slots < 4)
        file.commit()  # nothing was changed, but slots of the old key are left
        with pytest.raises(WrongKeyError):
            opened(MemoryStorage(after.data), "r", OLD)


def test_a_crash_between_the_slots_is_a_rollback_for_the_old_key(storage):
    stops, anchor = StopsAtSlot(storage.data), MemoryAnchor()
    with opened(storage, "r", OLD) as file:
        anchor.advance(None, file.root)
    file = opened(stops, "r+", OLD, anchor)
    file.rekey(NEW)
    stops.left = 1
    file.commit()
    file.discard()
    with pytest.raises(RollbackError):
        opened(MemoryStorage(stops.data), "r", OLD, anchor)


def test_readers_and_retained_versions_keep_the_old_key_alive():
    directory, anchor = MemoryDirectory(), MemoryAnchor()

    def open_it(mode, key, **more):
        return open_in(directory, "f", mode, key, anchor, BLOCK, what="f", **more)

    with open_it("x", OLD) as file:
        file.write(CONTENT)
        first = file.retain()
        file.write_at(0, b"second")
        file.commit()
        reader = open_it("r", OLD)
        file.write_at(0, b"third!")
        file.rekey(NEW)
        file.rekey_step(1000)
        for _ in range(8):
            file.commit()
            file.truncate(file.length + 1)
        assert file.rekeying
        assert reader.read(6) == b"second"
        reader.verify()
        with pytest.raises(WrongKeyError):
            reader.refresh()
        with open_it("r", NEW, at=first) as retained:
            assert retained.read() == CONTENT
        reader.close()
        file.release(first)
        file.commit()
        file.truncate(10)
        file.commit()
        assert not file.rekeying
    with open_it("r", NEW) as file:
        assert file.read() == b"third!" + CONTENT[6:10]


def test_keys_that_make_no_sense():
    with opened(MemoryStorage(), "x", OLD) as file:
        with pytest.raises(UsageError, match="31 bytes"):
            file.rekey(NEW[:31])
        with pytest.raises(UsageError, match="that key already"):
            file.rekey(OLD)


def test_generations_wrap_around():
    storage = MemoryStorage()
    keys = [n.to_bytes(2, "big") * 16 for n in range(259)]
    with opened(storage, "x", keys[0]) as file:
        file.write(CONTENT[: 3 * BLOCK])
        for key in keys[1:]:
            file.rekey(key)
            file.rekey_step(100)
            file.commit()
            assert not file.rekeying
    assert content_of(storage, keys[-1]) == CONTENT[: 3 * BLOCK]


# Compaction and scrubbing.


def test_a_file_shrinks_by_compaction(storage):
    with opened(storage, "r+", OLD) as file:
        file.punch(0, 150 * BLOCK)
        file.commit()
        large = storage.size()
        saved = file.compact(20)
        assert saved == large - storage.size() > large // 2
        assert file.compact() == 0
    assert content_of(storage, OLD) == bytes(150 * BLOCK) + CONTENT[150 * BLOCK :]


def test_scrub_reads_every_live_version(storage):
    with opened(storage, "r+", OLD) as file:
        assert file.scrub().problems == []
        file.retain()
        file.truncate(BLOCK)
        file.write_at(0, b"new")
        file.commit()
        file.write_at(0, b"newer")
        file.commit()
        whole = file.scrub()
        assert whole.problems == []
        assert whole.blocks > 200
        storage.data[10 * BLOCK] ^= 1
        assert len(file.scrub().problems) == 1


# Authenticated only.


@pytest.fixture
def clear():
    made = MemoryStorage()
    with opened(made, "x", OLD, encrypted=False) as file:
        assert not file.encrypted
        file.write(CONTENT)
    return made


def test_blocks_lie_in_clear(clear, storage):
    assert CONTENT[:BLOCK] in clear.data
    assert CONTENT[:BLOCK] not in storage.data
    with opened(clear, "r", OLD) as file:
        assert not file.encrypted
        assert file.read() == CONTENT
        assert file.verify() == 201


def test_every_changed_bit_is_seen(clear):
    for place in range(4, len(clear.data) // BLOCK):
        changed = MemoryStorage(clear.data)
        changed.data[place * BLOCK + place * 7 % BLOCK] ^= 1 << place % 8
        with opened(changed, "r", OLD) as file, pytest.raises(TamperedError):
            file.verify()


def test_who_wants_one_kind_gets_no_other(clear, storage):
    for kind, file in ((False, clear), (True, storage)):
        opened(file, "r", OLD, encrypted=kind).close()
        opened(file, "r", OLD).close()
        with pytest.raises(FormatError, match=r"is (authenticated only|encrypted), wanted (encrypted|authenticated)"):
            opened(file, "r", OLD, encrypted=not kind)
    # A writer that says nothing wants encryption: nobody shall slip it a file that takes its secrets in clear.
    for mode in ("r+", "w"):
        with pytest.raises(FormatError, match="is authenticated only, wanted encrypted"):
            opened(clear, mode, OLD)
    with opened(clear, "w", OLD, encrypted=False) as file:
        file.write(b"public")
    assert b"public" in clear.data


def test_the_flag_cannot_be_changed(clear, storage):
    for file, bit in ((clear, 0), (storage, 1)):
        for slot in range(4):
            if any(file.data[slot * 4096 : slot * 4096 + 4096]):
                file.data[slot * 4096 + 10] = bit
        with pytest.raises(TamperedError, match="none of its 4 slots authenticates"):
            opened(file, "r", OLD)


def test_another_key_for_a_file_in_clear(clear):
    with opened(clear, "r+", OLD, encrypted=False) as file:
        file.rekey(NEW)
        file.rekey_step(1000)
    assert content_of(clear, NEW) == CONTENT
    assert isinstance(file.root, Root)
