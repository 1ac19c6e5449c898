"""Every single bit of a small sealed file, flipped one at a time.

What happens is always one of four: the file is refused; a twin slot stands in, and that is said; without an anchor the
version before is served, and that is said; or the bit lies where no version that counts reaches.
"""

import functools
import logging
import os
import random

import pytest

from strongroom.errors import RollbackError, TamperedError
from strongroom.sealed import NO_FRESHNESS, MemoryAnchor, open_sealed
from strongroom.sealed import layout as fmt
from strongroom.sealed.slots import check_fresh, read_slots
from strongroom.storage import MemoryStorage

KEY = bytes(range(32))
BLOCK = SLOT = 4096
BITS = 8 * BLOCK
CONTENTS = [os.urandom(2 * BLOCK) for _ in range(6)]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """The same keys are derived and the same slots opened for every bit: do each once. What fails is not kept."""
    for name in ("commitment", "block_cipher", "open_slot"):
        monkeypatch.setattr(fmt, name, functools.lru_cache(maxsize=64)(getattr(fmt, name)))
    monkeypatch.setattr(logging.getLogger("strongroom.sealed"), "disabled", True)


def written(*, clean: bool) -> tuple[bytes, MemoryAnchor]:
    """A file of six commits; its newest slot has a twin if it was closed."""
    storage, anchor = MemoryStorage(), MemoryAnchor()
    file = open_sealed(storage, "x", key=KEY, anchor=anchor, block_size=BLOCK)
    for content in CONTENTS:
        file.write_at(0, content)
        file.commit()
    if clean:
        file.close()
    else:
        file.discard()
    return bytes(storage.data), anchor


def read(storage: MemoryStorage, anchor) -> tuple[bytes, list[str]]:
    with open_sealed(storage, key=KEY, anchor=anchor) as file:
        return file.read(), file.notes


def newest(storage: MemoryStorage, anchor) -> tuple[int, list[str]]:
    """The first half of opening, which sees nothing but the slots: the number of the version that is served."""
    found, commit = read_slots(storage, KEY, "f")
    check_fresh(commit.root(found.header), commit.previous, anchor, "f")
    return commit.sequence, found.notes


def newest_slots(data: bytes) -> set[int]:
    """The slots that hold the newest commit."""
    cipher = fmt.block_cipher(KEY, data[16:32])
    found = [fmt.open_slot(cipher, data[at : at + SLOT]).sequence for at in range(0, 4 * SLOT, SLOT)]
    return {slot for slot, sequence in enumerate(found) if sequence == max(found)}


@pytest.mark.parametrize("slot", range(4))
def test_every_bit_of_a_slot_that_has_a_twin(slot):
    data, anchor = written(clean=True)
    assert len(newest_slots(data)) == 2
    storage = MemoryStorage(data)
    for bit in range(slot * BITS, (slot + 1) * BITS):
        storage.data[bit // 8] ^= 1 << bit % 8
        version, notes = newest(storage, anchor)
        if bit % 101 == 0:
            assert read(storage, anchor) == (CONTENTS[-1], notes)
        storage.data[bit // 8] ^= 1 << bit % 8
        assert version == len(CONTENTS)
        assert [note[:6] for note in notes] == [f"slot {slot}"]
    assert storage.data == data


def test_every_bit_of_the_only_newest_slot():
    data, anchor = written(clean=False)
    (slot,) = newest_slots(data)
    storage = MemoryStorage(data)
    for bit in range(slot * BITS, (slot + 1) * BITS):
        storage.data[bit // 8] ^= 1 << bit % 8
        found, commit = read_slots(storage, KEY, "f")
        version, notes = commit.sequence, found.notes
        with pytest.raises(RollbackError):
            check_fresh(commit.root(found.header), commit.previous, anchor, "f")
        if bit % 101 == 0:
            assert read(storage, NO_FRESHNESS) == (CONTENTS[-2], notes)
        storage.data[bit // 8] ^= 1 << bit % 8
        assert version == len(CONTENTS) - 1
        assert [note[:6] for note in notes] == [f"slot {slot}"]
    assert read(storage, anchor) == (CONTENTS[-1], [])


def some_bits() -> list[int]:
    rng = random.Random(6)  # noqa: S311
    return [0, 7, BITS - 1, *rng.sample(range(BITS), 200)]


@pytest.mark.parametrize(
    "bits", [pytest.param(some_bits(), id="some"), pytest.param(range(BITS), id="all", marks=pytest.mark.slow)]
)
def test_bits_of_blocks(bits):
    data, anchor = written(clean=True)
    outcomes = set()
    for place in range(4, len(data) // BLOCK):
        storage = MemoryStorage(data)
        kind = outcome(storage, anchor, place, 0)
        outcomes.add(kind)
        for bit in bits:
            at = place * BLOCK + bit // 8
            storage.data[at] ^= 1 << bit % 8
            if kind == "refused":
                with pytest.raises(TamperedError):
                    read(storage, anchor)
            else:
                assert read(storage, anchor) == (CONTENTS[-1], [])
            storage.data[at] ^= 1 << bit % 8
    assert outcomes == {"refused", "version before", "unreachable"}


def outcome(storage: MemoryStorage, anchor, place: int, bit: int) -> str:
    """What a flipped bit of a place does; of the rest of the place it is the same."""
    changed = MemoryStorage(storage.data)
    changed.data[place * BLOCK + bit // 8] ^= 1 << bit % 8
    with open_sealed(changed, "r+", key=KEY, anchor=anchor) as file:
        found = file.scrub()
        whole = MemoryStorage(storage.data)
        with open_sealed(whole, "r+", key=KEY, anchor=anchor) as other:
            before = other.scrub()
            assert before.problems == []
        if not found.problems:
            assert found.unreachable_places == before.unreachable_places > 0
            return "unreachable"
        assert [problem.place for problem in found.problems] == [place]
        try:
            file.verify()
        except TamperedError:
            return "refused"
        return "version before"
