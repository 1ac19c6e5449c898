"""Backups made while others write, what is found in a damaged vault, and restores that the anchor logs."""

import os
import shutil

import pytest

from strongroom import vault
from strongroom.errors import (
    IntegrityError,
    LockedError,
    RollbackError,
    TamperedError,
    TruncatedError,
    UsageError,
)
from strongroom.sealed import NO_FRESHNESS, FileAnchor, MemoryAnchor
from strongroom.vault import backup as backups
from strongroom.vault.backup import backup, restore, verify_copy
from strongroom.vault.check import describe, find_problems

KEY = bytes(range(32))


@pytest.fixture
def place(tmp_path):
    return tmp_path / "v"


@pytest.fixture
def anchor(tmp_path):
    return FileAnchor(tmp_path / "anchor")


@pytest.fixture
def filled(place, anchor):
    with vault.open(place, "x", key=KEY, anchor=anchor) as opened:
        opened.write_bytes("big", os.urandom(400_000))
        for number in range(5):
            opened.write_bytes(f"small/{number}", bytes([number]) * 5000)
        opened.write_bytes("tiny", b"1")
        opened.symlink("tiny", "link")
    return contents(place, anchor)


def contents(path, anchor=NO_FRESHNESS):
    with vault.open(path, key=KEY, anchor=anchor) as opened:
        return {name: opened.read_bytes(name) for name in opened.files()}


def change(path, anchor, number):
    with vault.open(path, "r+", key=KEY, anchor=anchor) as opened:
        with opened.open("big", "r+b") as file:
            file.seek(number * 70_000 % 300_000)
            file.write(os.urandom(100_000))
        opened.write_bytes(f"small/{number % 5}", os.urandom(9000))
        opened.write_bytes("tiny", bytes([number]))


def test_a_backup_is_the_vault_at_one_commit(place, anchor, filled, tmp_path):
    root = backup(place, tmp_path / "copy", key=KEY, anchor=anchor)
    assert verify_copy(tmp_path / "copy", KEY, root) == root == anchor.read()
    assert contents(tmp_path / "copy") == filled
    with pytest.raises(FileExistsError):
        backup(place, tmp_path / "copy", key=KEY, anchor=anchor)


def test_a_backup_while_another_writes(place, anchor, filled, tmp_path, monkeypatch):
    """Many commits come between the slots and `meta`, and before every data file."""
    copied = []
    real = backups._copy

    def slow(source, target, name, limit, progress, **options):
        for number in range(6):
            change(place, anchor, len(copied) * 6 + number)
        copied.append(name)
        real(source, target, name, limit, progress, **options)

    monkeypatch.setattr(backups, "_copy", slow)
    root = backup(place, tmp_path / "copy", key=KEY, anchor=anchor)
    assert root.sequence == 1
    assert anchor.read().sequence > 10
    verify_copy(tmp_path / "copy", KEY, root)
    assert contents(tmp_path / "copy") == filled
    change(tmp_path / "copy", MemoryAnchor(root), 1)  # and it can be written to
    assert contents(tmp_path / "copy") != filled


def test_a_backup_that_cannot_catch_its_slot(place, anchor, filled, tmp_path, monkeypatch):
    calls = iter([None, None, "real"])
    real = backups._own_slots
    monkeypatch.setattr(backups, "_own_slots", lambda *a: real(*a) if next(calls) else None)
    assert backup(place, tmp_path / "copy", key=KEY, anchor=anchor) == anchor.read()
    monkeypatch.setattr(backups, "_own_slots", lambda *a: None)
    with pytest.raises(LockedError, match="commits come too fast"):
        backup(place, tmp_path / "copy-2", key=KEY, anchor=anchor)


def test_files_made_huge_are_copied_as_far_as_the_commit_reaches(place, anchor, filled, tmp_path):
    """Whoever holds the disk can make a file of a TiB at no cost."""
    shutil.copytree(place, tmp_path / "moved")
    for path in [*place.iterdir(), *(tmp_path / "moved").iterdir()]:
        os.truncate(path, 1 << 40)
    copied = []
    root = backup(place, tmp_path / "copy", key=KEY, anchor=anchor, progress=lambda name, size: copied.append(size))
    assert contents(tmp_path / "copy") == filled
    assert sum(copied) < 2 << 20
    change(place, anchor, 0)
    copied.clear()
    progress = lambda name, size: copied.append(size)  # noqa: E731
    restored, _ = restore(tmp_path / "moved", place, key=KEY, anchor=anchor, reason="test", progress=progress)
    assert restored.version == root.version
    assert contents(place, anchor) == filled
    assert sum(copied) < 256 << 20


def test_verify_copy_sees_damage_and_another_version(place, anchor, filled, tmp_path):
    root = backup(place, tmp_path / "copy", key=KEY, anchor=anchor)
    change(place, anchor, 1)
    later = backup(place, tmp_path / "later", key=KEY, anchor=anchor)
    with pytest.raises(UsageError, match="is version 2, wanted 1"):
        verify_copy(tmp_path / "later", KEY, root)
    assert later.sequence == 2
    damage(tmp_path / "copy")
    with pytest.raises(TamperedError, match=r"copy: big: .*block"):
        verify_copy(tmp_path / "copy", KEY, root)


def damage(path, *, cut=False):
    largest = max((p for p in path.iterdir() if len(p.name) == 32), key=lambda p: p.stat().st_size)
    with largest.open("r+b") as file:
        if cut:
            file.truncate(100_000)
        else:
            file.seek(80_000)
            byte = file.read(1)
            file.seek(80_000)
            file.write(bytes([byte[0] ^ 1]))


# Looking a vault over.


def test_all_problems_are_found(place, anchor, filled):
    with vault.open(place, key=KEY, anchor=anchor) as opened:
        seen = []
        assert find_problems(opened, progress=lambda path, size: seen.append((path, size))) == []
    assert ("big", 400_000) in seen
    assert len(seen) == 8
    packs = [p for p in place.iterdir() if len(p.name) == 32 and p.stat().st_size < 100_000]
    for pack in packs:
        pack.write_bytes(bytes(pack.stat().st_size))
    damage(place, cut=True)
    with vault.open(place, key=KEY, anchor=anchor) as opened:
        problems = find_problems(opened)
        assert opened.read_bytes("tiny") == b"1"
    assert [problem.path for problem in problems] == ["big", *(f"small/{n}" for n in range(5))]
    assert isinstance(problems[0].error, TruncatedError)
    assert all(isinstance(problem.error, TamperedError) for problem in problems[1:])


def test_a_description(place, anchor, filled):
    with vault.open(place, key=KEY, anchor=anchor) as opened:
        found = describe(opened)
    assert (found.files, found.directories, found.links, found.others) == (7, 1, 1, 0)
    assert found.size == 400_000 + 5 * 5000 + 1
    assert (found.inline, found.packed, found.large, found.block_sizes) == (1, 5, 1, {65536: 1})
    assert (found.packs, found.pack_bytes, found.pack_live) == (1, 25_000, 25_000)
    assert found.stored > found.size
    assert found.slots is None


# Restoring.


def test_a_restore_is_accepted_and_logged_and_what_came_later_is_refused(place, anchor, filled, tmp_path):
    backup(place, tmp_path / "copy", key=KEY, anchor=anchor)
    for number in range(3):
        change(place, anchor, number)
    newest = anchor.read()
    root, replaced = restore(tmp_path / "copy", place, key=KEY, anchor=anchor, reason="a test")
    assert contents(place, anchor) == filled
    assert root == anchor.read()
    assert (root.sequence, root.epoch) == (1, 1)
    assert anchor.path.with_name("anchor.history").read_text().endswith(f" {newest} {root} a test\n")
    with pytest.raises(RollbackError):
        contents(replaced, anchor)
    assert contents(tmp_path / "copy") == filled  # still there
    change(place, anchor, 4)
    assert contents(place, anchor) != filled
    restore(tmp_path / "copy", place, key=KEY, anchor=anchor, reason="again")
    assert contents(place, anchor) == filled
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith("v")) == [
        "v",
        "v.replaced-1",
        "v.replaced-2",
    ]


def test_a_restore_of_what_was_lost(place, anchor, filled, tmp_path):
    backup(place, tmp_path / "copy", key=KEY, anchor=anchor)
    change(place, anchor, 0)
    shutil.rmtree(place)
    _, replaced = restore(tmp_path / "copy", place, key=KEY, anchor=anchor, reason="disk failed")
    assert replaced is None
    assert contents(place, anchor) == filled


def test_a_plain_copy_of_a_closed_vault_is_a_backup_too(place, anchor, filled, tmp_path):
    shutil.copytree(place, tmp_path / "copy")
    change(place, anchor, 0)
    restore(tmp_path / "copy", place, key=KEY, anchor=anchor, reason="test")
    assert contents(place, anchor) == filled


def test_a_damaged_backup_changes_nothing(place, anchor, filled, tmp_path):
    backup(place, tmp_path / "copy", key=KEY, anchor=anchor)
    damage(tmp_path / "copy")
    change(place, anchor, 0)
    before, now = anchor.read(), contents(place, anchor)
    with pytest.raises(IntegrityError, match="big: "):
        restore(tmp_path / "copy", place, key=KEY, anchor=anchor, reason="test")
    assert anchor.read() == before
    assert contents(place, anchor) == now
    assert not list(tmp_path.glob("v.*"))


def test_a_vault_that_somebody_has_open_is_not_replaced(place, anchor, filled, tmp_path):
    backup(place, tmp_path / "copy", key=KEY, anchor=anchor)
    change(place, anchor, 0)
    for mode in ("r", "r+"):
        with vault.open(place, mode, key=KEY, anchor=anchor) as opened:
            if opened._locks is None:
                pytest.skip("needs byte locks")
            with pytest.raises(LockedError, match="somebody has it open"):
                restore(tmp_path / "copy", place, key=KEY, anchor=anchor, reason="test")
    assert not list(tmp_path.glob("v.*"))


def test_an_anchor_that_refuses_leaves_the_vault(place, anchor, filled, tmp_path):
    backup(place, tmp_path / "copy", key=KEY, anchor=anchor)
    change(place, anchor, 0)
    now = contents(place, anchor)

    class Refuses:
        read = anchor.read

        def restore(self, root, *, reason):
            raise LockedError("anchor: locked")

    with pytest.raises(LockedError, match="anchor: locked"):
        restore(tmp_path / "copy", place, key=KEY, anchor=Refuses(), reason="test")
    assert contents(place, anchor) == now
    assert not list(tmp_path.glob("v.*"))


def test_a_crash_before_the_anchor_is_mended_by_the_same_call(place, anchor, filled, tmp_path):
    backup(place, tmp_path / "copy", key=KEY, anchor=anchor)
    for number in range(2):
        change(place, anchor, number)

    class DiesError(Exception):
        pass

    class Crashes:
        read = anchor.read

        def restore(self, root, *, reason):
            raise DiesError

    with pytest.raises(DiesError):
        restore(tmp_path / "copy", place, key=KEY, anchor=Crashes(), reason="test")
    with pytest.raises(RollbackError):
        contents(place, anchor)
    restore(tmp_path / "copy", place, key=KEY, anchor=anchor, reason="test")
    assert contents(place, anchor) == filled


@pytest.mark.parametrize(
    ("source", "reason", "message"),
    [
        ("copy", " ", "reason: is empty"),
        ("nowhere", "test", "is not a directory"),
        ("v", "test", "is the vault itself"),
    ],
)
def test_restores_that_make_no_sense(source, reason, message, place, anchor, filled, tmp_path):
    backup(place, tmp_path / "copy", key=KEY, anchor=anchor)
    with pytest.raises(UsageError, match=message):
        restore(tmp_path / source, place, key=KEY, anchor=anchor, reason=reason)
    with pytest.raises(UsageError, match="holds no root"):
        restore(tmp_path / "copy", place, key=KEY, anchor=MemoryAnchor(), reason="test")
