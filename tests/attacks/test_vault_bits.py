"""Every bit of a vault, turned over one at a time: refused, repaired from a twin and said, or of no meaning."""

import contextlib
import random
from collections import Counter

import pytest

from strongroom.errors import StrongroomError, TamperedError
from strongroom.sealed import NO_FRESHNESS, MemoryAnchor
from strongroom.sealed.layout import SLOT_SIZE, SLOTS, SLOTS_SIZE, block_cipher, open_slot, parse_header
from strongroom.storage import MemoryDirectory, MemoryStorage
from strongroom.vault.log import Log, log_cipher
from tests.attacks.vaults import BLOCK, KEY, Disk, copied, data_file, flipped, open_disk, outcome

CONTENTS = {"a": b"inline", "b": b"packed" * 500}
HEADER_AND_NONCE = 88 * 8


@pytest.fixture(scope="module")
def vault():
    """(disk, anchor) of a vault whose four slots are in use, the newest commit in two of them."""
    directory, anchor = MemoryDirectory(), MemoryAnchor()
    with open_disk(directory, "x", anchor) as opened:
        for number in range(6):
            opened.write_bytes("a", b"%d" % number)
            opened.commit()
        for path, content in CONTENTS.items():
            opened.write_bytes(path, content)
    return copied(directory), anchor


@pytest.fixture(scope="module")
def logged():
    """(disk, anchor, contents after each of three fsyncs) of a vault whose process died."""
    directory, anchor = MemoryDirectory(), MemoryAnchor()
    with open_disk(directory, "x", anchor) as opened:
        for path, content in CONTENTS.items():
            opened.write_bytes(path, content)
    opened = open_disk(directory, "r+", anchor, log=True)
    states = [CONTENTS]
    for content in (b"one", b"two", b"six"):
        with opened.open("a", "r+b") as file:
            file.write(content)
        opened.fsync(opened.stat("a").inode)
        states.append(CONTENTS | {"a": content + b"ine"})
    return copied(directory), anchor, states


def newest_slots(meta: bytes) -> list[int]:
    header = parse_header(meta[:SLOT_SIZE])
    assert header is not None
    cipher = block_cipher(KEY, header.file_id)
    numbers = [open_slot(cipher, meta[at : at + SLOT_SIZE]).sequence for at in range(0, SLOTS_SIZE, SLOT_SIZE)]
    return [at for at, number in enumerate(numbers) if number == max(numbers)]


def test_every_bit_of_the_body_of_every_slot(vault):
    meta = vault[0]["meta"]
    header = parse_header(meta[:SLOT_SIZE])
    cipher = block_cipher(KEY, header.file_id)
    for slot in range(SLOTS):
        raw = bytearray(meta[slot * SLOT_SIZE : (slot + 1) * SLOT_SIZE])
        open_slot(cipher, bytes(raw))
        for bit in range(64 * 8, SLOT_SIZE * 8):
            raw[bit // 8] ^= 1 << bit % 8
            try:
                open_slot(cipher, bytes(raw))
            except TamperedError:
                raw[bit // 8] ^= 1 << bit % 8
            else:
                pytest.fail(f"bit {bit} of slot {slot} was not noticed")


def test_bits_of_slots(vault):
    """Each is repaired from the twin and said; of a slot that holds an older commit too."""
    disk, anchor = vault
    rng = random.Random(1)  # noqa: S311
    assert len(newest_slots(disk["meta"])) == 2
    for slot in range(SLOTS):
        start = slot * SLOT_SIZE * 8
        bits = [*range(0, HEADER_AND_NONCE, 5), *rng.sample(range(HEADER_AND_NONCE, SLOT_SIZE * 8), 60)]
        for bit in bits:
            changed = disk | {"meta": flipped(disk["meta"], start + bit)}
            assert outcome(changed, CONTENTS, anchor) in ("noted", "refused"), (slot, bit)


def test_every_bit_of_the_header_of_the_only_newest_slot(vault):
    disk, anchor = vault
    one, two = newest_slots(disk["meta"])
    meta = bytearray(disk["meta"])
    meta[two * SLOT_SIZE : (two + 1) * SLOT_SIZE] = bytes(SLOT_SIZE)
    assert outcome(disk | {"meta": bytes(meta)}, CONTENTS, anchor) == "same"
    for bit in range(HEADER_AND_NONCE):
        changed = disk | {"meta": flipped(bytes(meta), one * SLOT_SIZE * 8 + bit)}
        assert outcome(changed, CONTENTS, anchor) == "refused", bit


def test_every_bit_of_the_log(logged):
    """A changed record ends the log; none before it is lost, and none after it counts."""
    disk, _, states = logged
    with open_disk({name: data for name, data in disk.items() if name != "log"}) as opened:
        vault_id = opened._meta.file_id
    data = disk["log"].rstrip(b"\0")
    storage, cipher = MemoryStorage(data), log_cipher(KEY, vault_id)

    def records() -> list[bytes]:
        return [*Log(storage, cipher, vault_id, 0, bytes(16)).records()]

    whole = records()
    assert len(whole) == len(states) - 1
    lost: Counter[int] = Counter()
    for bit in range(len(data) * 8):
        storage.data[bit // 8] ^= 1 << bit % 8
        found = records()
        storage.data[bit // 8] ^= 1 << bit % 8
        assert found == whole[: len(found)], bit
        lost[len(whole) - len(found)] += 1
    assert lost.keys() == {1, 2, 3}


def test_bits_of_the_log(logged):
    """With an anchor that is told of fsyncs each is refused; without, the fsyncs before it are there."""
    disk, anchor, states = logged
    rng = random.Random(2)  # noqa: S311
    length = len(disk["log"].rstrip(b"\0"))
    for bit in rng.sample(range(length * 8), 150):
        changed = disk | {"log": flipped(disk["log"], bit)}
        assert outcome(changed, {}, anchor) == "refused"
        with open_disk(changed, "r") as opened:
            assert {path: opened.read_bytes(path) for path in opened.files()} in states


def test_bits_anywhere(vault):
    disk, anchor = vault
    rng = random.Random(3)  # noqa: S311
    for name, data in disk.items():
        for bit in rng.sample(range(len(data) * 8), 250):
            outcome(disk | {name: flipped(data, bit)}, CONTENTS, anchor)


@pytest.mark.slow
def test_every_bit(vault, logged):
    found: Counter[str] = Counter()
    for disk, anchor in (vault, (logged[0] | {"log": logged[0]["log"].rstrip(b"\0")}, logged[1])):
        expected = CONTENTS if disk is vault[0] else logged[2][-1]
        for name, data in disk.items():
            for bit in range(len(data) * 8):
                found[outcome(disk | {name: flipped(data, bit)}, expected, anchor)] += 1
    print(f"bits: {dict(found)}")
    assert found["refused"] and found["noted"] and found["same"]


@pytest.mark.slow
def test_every_bit_of_a_data_file():
    directory = MemoryDirectory()
    with open_disk(directory, "x") as opened, opened.open("a", "xb", block_size=BLOCK) as file:
        file.write(b"a" * 66_000)
    disk: Disk = copied(directory)
    name, refused = data_file(disk, "a"), 0
    live = MemoryDirectory(disk)
    data = live.files[name].data
    with open_disk(live, "r", NO_FRESHNESS) as opened:
        for bit in range(len(data) * 8):
            data[bit // 8] ^= 1 << bit % 8
            with opened.open("a") as file, contextlib.suppress(StrongroomError):
                assert file.read() == b"a" * 66_000
                refused -= 1
            refused += 1
            data[bit // 8] ^= 1 << bit % 8
    assert refused == 8 * BLOCK * 18  # 17 blocks and the one above them: there is no bit that nobody reads
