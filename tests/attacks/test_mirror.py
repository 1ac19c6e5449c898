"""What whoever holds a mirror's file can try: each attempt is refused."""

from __future__ import annotations

import random

import numpy as np
import pytest

from strongroom import mirror
from strongroom.errors import FormatError, IntegrityError, RollbackError, TamperedError, TruncatedError, WrongKeyError
from strongroom.sealed import NO_FRESHNESS, MemoryAnchor
from strongroom.storage import MemoryDirectory, MemoryStorage

KEY = bytes(range(32))
BLOCK = 4096


def opened(directory, anchor=NO_FRESHNESS, key=KEY, **options) -> mirror.Mirror:
    return mirror.open(directory, key=key, anchor=anchor, block_size=BLOCK, **options)


def state(step: int, run: int = 0) -> dict[str, object]:
    return {"w": np.random.default_rng((step, run)).integers(0, 255, 5 * BLOCK + 9, np.uint8), "step": step}


def a_run(anchor, *, steps: int, run: int = 0, snapshots: list[bytes] | None = None) -> MemoryDirectory:
    directory = MemoryDirectory()
    with opened(directory, anchor) as made:
        for step in range(1, steps + 1):
            made.commit(step, state(step, run))
            if snapshots is not None:
                snapshots.append(bytes(directory.files["mirror"].data))
    if snapshots is not None:
        snapshots.append(bytes(directory.files["mirror"].data))
    return directory


def of(data: bytes, name: str = "mirror") -> MemoryDirectory:
    directory = MemoryDirectory()
    directory.files[name] = MemoryStorage(data)
    return directory


def load(directory: MemoryDirectory, anchor, step: int | None = None) -> dict[str, object]:
    with opened(directory, anchor) as found:
        restored = found.restore(step)
        assert restored is not None
        with restored:
            return dict(restored)


def same(found: dict[str, object], wanted: dict[str, object]) -> bool:
    return all(np.array_equal(found[name], value) for name, value in wanted.items())  # type: ignore[arg-type]


def test_an_older_copy_of_the_mirror_is_refused():
    anchor, snapshots = MemoryAnchor(), []
    a_run(anchor, steps=6, snapshots=snapshots)
    assert same(load(of(snapshots[-1]), MemoryAnchor(anchor.read())), state(6))
    for old in snapshots[:-2]:
        with pytest.raises(RollbackError):
            load(of(old), MemoryAnchor(anchor.read()))
    # Without an anchor nothing tells it from the newest: this is documented.
    assert same(load(of(snapshots[0]), NO_FRESHNESS), state(1))


def test_another_runs_mirror_in_its_place_is_refused():
    mine, other = MemoryAnchor(), MemoryAnchor()
    a_run(mine, steps=3)
    theirs = a_run(other, steps=3, run=1)
    with pytest.raises(RollbackError):
        load(theirs, mine)
    assert same(load(theirs, other), state(3, 1))


def test_a_step_that_was_given_up_does_not_come_back():
    anchor, directory = MemoryAnchor(), MemoryDirectory()
    with opened(directory, anchor, keep=4) as made:
        for step in range(1, 5):
            made.commit(step, state(step))
        before = bytes(directory.files["mirror"].data)
        restored = made.restore(step=2)
        assert restored is not None
        restored.close()
        made.commit(3, state(3, 9))
    assert same(load(directory, MemoryAnchor(anchor.read())), state(3, 9))
    with pytest.raises(RollbackError):
        load(of(before), MemoryAnchor(anchor.read()))


def test_blocks_of_two_commits_do_not_mix():
    anchor, snapshots = MemoryAnchor(), []
    a_run(anchor, steps=5, snapshots=snapshots)
    newest, rng = snapshots[-1], random.Random(1)  # noqa: S311
    refused = 0
    for old in snapshots[:-1]:
        for place in range(4, min(len(old), len(newest)) // BLOCK):
            at = place * BLOCK
            if old[at : at + BLOCK] == newest[at : at + BLOCK] or rng.random() < 0.5:
                continue
            mixed = newest[:at] + old[at : at + BLOCK] + newest[at + BLOCK :]
            try:
                assert same(load(of(mixed), MemoryAnchor(anchor.read())), state(5))
            except TamperedError:
                refused += 1
    assert refused


def test_every_sampled_bit():
    anchor = MemoryAnchor()
    data = bytes(a_run(anchor, steps=3).files["mirror"].data)
    rng = random.Random(2)  # noqa: S311
    refused = 0
    for _ in range(400):
        bit = rng.randrange(len(data) * 8)
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        try:
            found = load(of(bytes(changed)), MemoryAnchor(anchor.read()))
        except IntegrityError:
            refused += 1
        else:
            assert same(found, state(3))
    assert refused > 100


def test_cut_and_other_keys():
    anchor = MemoryAnchor()
    data = bytes(a_run(anchor, steps=3).files["mirror"].data)
    for length in (len(data) - 1, len(data) // 2, 5 * BLOCK):
        with pytest.raises((TruncatedError, TamperedError)):
            load(of(data[:length]), MemoryAnchor(anchor.read()))
    with pytest.raises(WrongKeyError):
        opened(of(data), anchor, key=bytes(32))


def test_nothing_of_the_state_lies_in_clear():
    marker = b"a patient's name, or a weight"
    directory = MemoryDirectory()
    with opened(directory) as made:
        made.commit(1, {marker.decode(): np.frombuffer(marker * 300, np.uint8), "text": marker.decode(), "raw": marker})
    assert marker not in bytes(directory.files["mirror"].data)


def test_a_mirror_that_is_gone_is_no_new_one():
    anchor = MemoryAnchor()
    directory = a_run(anchor, steps=3)
    with pytest.raises(RollbackError, match="is missing, and its anchor holds a commit"):
        opened(MemoryDirectory(), MemoryAnchor(anchor.read()))
    for data in (b"", bytes(4 * BLOCK), b"x" * 9 * BLOCK):
        for name in ("mirror", "mirror.new"):
            with pytest.raises((FormatError, IntegrityError)):
                opened(of(data, name), MemoryAnchor(anchor.read()))
    assert same(load(directory, anchor), state(3))


@pytest.mark.parametrize("anchor", [MemoryAnchor, lambda: NO_FRESHNESS])
def test_a_crash_before_the_first_commit_leaves_room_for_another(anchor):
    for data in (b"", bytes(4 * BLOCK), b"torn" * 5 * BLOCK):
        directory, held = of(data, "mirror.new"), anchor()
        with opened(directory, held) as made:
            assert made.restore() is None
            made.commit(1, state(1))
        assert directory.list() == ["mirror"]
        assert same(load(directory, held), state(1))


def test_what_is_no_mirror_is_not_overwritten():
    for data in (b"", b"a file of the user's", b"x" * 9 * BLOCK):
        directory = of(data)
        with pytest.raises((FormatError, IntegrityError)):
            opened(directory, MemoryAnchor())
        assert bytes(directory.files["mirror"].data) == data
