"""What whoever holds the disk can try: each attempt is refused, or changes nothing."""

import os
import random

import pytest

from strongroom.errors import (
    FormatError,
    IntegrityError,
    LockedError,
    RollbackError,
    TamperedError,
    TruncatedError,
    WrongKeyError,
)
from strongroom.sealed import NO_FRESHNESS, MemoryAnchor, open_sealed
from strongroom.sealed.layout import SLOTS_SIZE
from strongroom.storage import MemoryStorage

KEY = bytes(range(32))
BLOCK = 4096
CONTENT = os.urandom(100 * BLOCK + 50)  # a tree of three levels


def sealed(storage, mode="r", anchor=NO_FRESHNESS, key=KEY):
    return open_sealed(storage, mode, key=key, anchor=anchor, block_size=BLOCK)


def read(data: bytes, anchor) -> bytes:
    with sealed(MemoryStorage(data), "r", anchor) as file:
        content = file.read()
        file.verify()
        return content


@pytest.fixture(scope="module")
def target():
    storage, anchor = MemoryStorage(), MemoryAnchor()
    with sealed(storage, "x", anchor) as file:
        file.write(CONTENT)
    return bytes(storage.data), anchor


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_flip_a_bit_of_any_block(target):
    data, anchor = target
    rng = random.Random(1)  # noqa: S311
    for place in range(SLOTS_SIZE // BLOCK, len(data) // BLOCK):
        at = place * BLOCK * 8
        for bit in (at, at + BLOCK * 8 - 1, at + rng.randrange(BLOCK * 8)):
            with pytest.raises(TamperedError, match="authentication failed"):
                read(flipped(data, bit), anchor)


def test_bits_that_nothing_reaches_change_nothing(target):
    data, anchor = target
    for bit in (8192 * 8, SLOTS_SIZE * 8 - 1):
        assert read(flipped(data, bit), anchor) == CONTENT


def test_truncate_at_many_lengths(target):
    data, anchor = target
    rng = random.Random(3)  # noqa: S311
    for length in [8, 63, 64, 100, 4095, 4096, 8192, SLOTS_SIZE, len(data) - 1, *rng.sample(range(64, len(data)), 100)]:
        with pytest.raises(TruncatedError, match=f"{length} bytes, wanted at least|{min(length, 4096)} bytes, wanted"):
            read(data[:length], anchor)
    for length in range(8):
        with pytest.raises(FormatError, match="not a sealed file"):
            read(data[:length], anchor)


def test_truncate_while_open(target):
    storage = MemoryStorage(target[0])
    with sealed(storage, "r") as file:
        storage.resize(SLOTS_SIZE)
        with pytest.raises(TruncatedError):
            file.read()


def test_swap_any_two_blocks(target):
    data, anchor = target
    places = range(SLOTS_SIZE // BLOCK, len(data) // BLOCK)
    rng = random.Random(4)  # noqa: S311
    for _ in range(100):
        one, two = rng.sample(places, 2)
        changed = bytearray(data)
        changed[one * BLOCK : (one + 1) * BLOCK] = data[two * BLOCK : (two + 1) * BLOCK]
        changed[two * BLOCK : (two + 1) * BLOCK] = data[one * BLOCK : (one + 1) * BLOCK]
        with pytest.raises(TamperedError):
            read(bytes(changed), anchor)


def test_put_an_old_block_back(target):
    storage, anchor = MemoryStorage(target[0]), MemoryAnchor(target[1].read())
    with sealed(storage, "r+", anchor) as file:
        file.write(b"x" * BLOCK)
    old, new = target[0], bytes(storage.data)
    refused = 0
    for place in range(SLOTS_SIZE // BLOCK, len(old) // BLOCK):
        part = slice(place * BLOCK, (place + 1) * BLOCK)
        if old[part] != new[part]:
            with pytest.raises(IntegrityError):
                read(new[: part.start] + old[part] + new[part.stop :], anchor)
            refused += 1
    with pytest.raises(RollbackError):
        read(old[:SLOTS_SIZE] + new[SLOTS_SIZE:], anchor)
    assert refused == 0  # the commit overwrote no block that the version before it reaches


def test_block_of_another_file_under_the_same_key(target):
    data, anchor = target
    other = MemoryStorage()
    with sealed(other, "x") as file:
        file.write(CONTENT)
    with pytest.raises(TamperedError):
        read(data[:SLOTS_SIZE] + bytes(other.data[SLOTS_SIZE:]), anchor)
    # Its slots beside ours:
    with pytest.raises(TamperedError, match="different files"):
        read(data[:4096] + bytes(other.data[:4096]) + data[8192:], NO_FRESHNESS)
    with pytest.raises(RollbackError):
        read(bytes(other.data), anchor)


def test_two_histories_in_one_file(target):
    forks = []
    for content in (b"one", b"two"):
        fork = MemoryStorage(target[0])
        with sealed(fork, "w") as file:
            file.write(content)
        forks.append(bytes(fork.data))
    mixed = forks[0][: 3 * 4096] + forks[1][3 * 4096 : 4 * 4096] + forks[0][4 * 4096 :]
    with pytest.raises(TamperedError, match="two different commits have sequence 2"):
        read(mixed, NO_FRESHNESS)


def test_key_of_the_attackers(target):
    forged = MemoryStorage()
    with sealed(forged, "x", key=bytes(32)) as file:
        file.write(b"forged")
    with pytest.raises(WrongKeyError):
        read(bytes(forged.data), target[1])


def test_change_under_an_open_reader(target):
    storage = MemoryStorage(target[0])
    with sealed(storage, "r", target[1]) as file:
        storage.data[20 * BLOCK] ^= 1
        buffer = bytearray(b"\xaa" * len(CONTENT))
        with pytest.raises(TamperedError):
            file.readinto(buffer)
        # Nothing that failed to authenticate is left in the caller's memory, and nothing else half done.
        assert buffer == bytes(len(CONTENT))


def test_show_an_older_version_while_a_reader_opens(target):
    """The host may change the file between the two times that the slots are read: no version is served twice over."""
    storage, anchor = MemoryStorage(target[0]), MemoryAnchor(target[1].read())
    with sealed(storage, "r+", anchor) as file:
        file.write(b"new")

    class Shifting(MemoryStorage):
        def read_into(self, offset, buffer):
            if offset == 0:
                self.data[:] = target[0] if bytes(self.data) != target[0] else storage.data
            return super().read_into(offset, buffer)

    for data in (target[0], storage.data):
        try:
            with sealed(Shifting(data), "r", anchor) as file:
                assert file.root == anchor.read()
        except (RollbackError, TamperedError, LockedError):
            continue
