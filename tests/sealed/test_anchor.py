"""Roots and anchors: their text form, their order, restores and grouping."""

import threading

import pytest

from strongroom.errors import ConflictError, FormatError, LockedError, RollbackError, UsageError
from strongroom.sealed import FileAnchor, Grouped, MemoryAnchor, PinnedAnchor, Root
from strongroom.storage import OPEN_BYTE, LocalDirectory

DIGEST = bytes(range(32))
TAG = bytes(range(16))


def root(sequence: int, *, epoch: int = 0, lsn: int = 0) -> Root:
    return Root(sequence, DIGEST, epoch, lsn, TAG if lsn else b"")


@pytest.mark.parametrize(
    "text",
    [
        f"7:{DIGEST.hex()}",
        f"7:{DIGEST.hex()}+1:{TAG.hex()}",
        f"7:{DIGEST.hex()}@3",
        f"9223372036854775807:{DIGEST.hex()}+9223372036854775807:{bytes(16).hex()}@9223372036854775807",
    ],
)
def test_text_form(text):
    assert str(Root.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        f"07:{DIGEST.hex()}",
        f"0:{DIGEST.hex()}",
        f"7:{DIGEST.hex().upper()}",
        f"7:{DIGEST.hex()}+0:{bytes(16).hex()}",
        f"7:{DIGEST.hex()}+01:{TAG.hex()}",
        f"7:{DIGEST.hex()}+1:{TAG.hex()}0",
        f"7:{DIGEST.hex()}+1:",
        f"7:{DIGEST.hex()}+1",
        f"7:{DIGEST.hex()}@0",
        f"7:{DIGEST.hex()}@01",
        f"7:{DIGEST.hex()}@",
        f"7:{DIGEST.hex()}@1+1:{TAG.hex()}",
        f"7:{DIGEST.hex()}@9223372036854775808",
        f"7:{DIGEST.hex()}\n",
        f"٧:{DIGEST.hex()}",
    ],
)
def test_no_other_spelling(text):
    with pytest.raises(FormatError, match="root: "):
        Root.parse(text)


@pytest.mark.parametrize(
    "fields",
    [
        {"epoch": -1},
        {"epoch": 1 << 63},
        {"lsn": 1 << 63, "tag": TAG},
        {"lsn": 1},
        {"tag": TAG},
        {"lsn": 1, "tag": b"x"},
    ],
)
def test_impossible_roots(fields):
    with pytest.raises(FormatError):
        Root(1, DIGEST, **fields)


def test_order_is_by_epoch_then_sequence_then_log():
    rising = [
        None,
        root(1),
        root(1, lsn=1),
        root(1, lsn=2),
        root(2),
        root(2, lsn=1),
        root(1, epoch=1),
        root(3, epoch=1),
    ]
    for i, old in enumerate(rising):
        for j, new in enumerate(rising[1:], 1):
            assert new.comes_after(old) == (j > i or old is None)


# Restores.


def test_restore_raises_the_epoch_and_is_logged(tmp_path):
    anchor = FileAnchor(tmp_path / "anchor")
    with pytest.raises(UsageError, match="holds no root"):
        anchor.restore(root(1), reason="none")
    anchor.advance(None, root(3))
    restored = anchor.restore(root(1, lsn=5), reason="a bad\nday", now=1_700_000_000)
    assert restored == anchor.read() == root(1, epoch=1, lsn=5)
    again = anchor.restore(root(1), reason="worse", now=1_700_000_001)
    assert again == anchor.read() == root(1, epoch=2)
    assert (tmp_path / "anchor.history").read_text().splitlines() == [
        f"1700000000 {root(3)} {restored} a bad day",
        f"1700000001 {restored} {again} worse",
    ]
    with pytest.raises(ConflictError):
        anchor.advance(root(3), root(4))


def test_changes_of_an_anchor_wait_for_each_other(tmp_path):
    anchor = FileAnchor(tmp_path / "anchor")
    anchor.advance(None, root(1))
    locks = LocalDirectory(tmp_path).locks("anchor.lock")
    if locks is None:
        pytest.skip("this file system has no byte locks")
    assert locks.acquire(OPEN_BYTE, exclusive=True)
    thread = threading.Thread(target=anchor.restore, args=(root(1),), kwargs={"reason": "test"})
    thread.start()
    assert anchor.read() == root(1)
    locks.close()
    thread.join()
    assert anchor.read() == root(1, epoch=1)


def test_without_byte_locks_the_second_change_of_an_anchor_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(LocalDirectory, "locks", lambda self, name: None)
    anchor = FileAnchor(tmp_path / "anchor")
    anchor.advance(None, root(1))
    lock = LocalDirectory(tmp_path).open("anchor.lock", "r+")
    with pytest.raises(LockedError):
        anchor.restore(root(1), reason="no")
    with pytest.raises(LockedError):
        anchor.advance(root(1), root(2))
    lock.close()
    assert anchor.read() == root(1)
    assert not (tmp_path / "anchor.history").exists()


def test_memory_anchor_restores():
    anchor = MemoryAnchor(root(4))
    assert anchor.restore(root(2), reason="why") == anchor.read() == root(2, epoch=1)
    assert anchor.history == [(root(4), root(2, epoch=1), "why")]
    with pytest.raises(UsageError, match="holds no root"):
        MemoryAnchor().restore(root(1), reason="why")


def test_pinned_anchor_restores_nothing():
    anchor = PinnedAnchor(root(4))
    with pytest.raises(UsageError, match="pinned"):
        anchor.restore(root(2), reason="why")
    with pytest.raises(RollbackError):
        anchor.advance(root(4), root(5))
    anchor.advance(None, root(4))


# Grouping.


def test_grouped_lets_commits_and_seconds_pass():
    now = 0.0
    inner = MemoryAnchor()
    anchor = Grouped(inner, every_commits=3, every_seconds=10, clock=lambda: now)
    assert [anchor.may_wait(n) for n in (1, 2, 3)] == [True, True, False]
    now = 9.9
    assert anchor.may_wait(1)
    now = 10.0
    assert not anchor.may_wait(1)
    anchor.advance(None, root(1))
    assert anchor.read() == inner.read() == root(1)
    assert anchor.may_wait(1)


@pytest.mark.parametrize("commits", [0, 65])
def test_grouped_within_what_a_slot_can_list(commits):
    with pytest.raises(UsageError, match="wanted 1 to 64"):
        Grouped(MemoryAnchor(), every_commits=commits, every_seconds=1, clock=lambda: 0.0)
