"""Digests of files are remembered by what the kernel says of them, and never longer than that says something."""

import hashlib
import os
from pathlib import Path

import pytest

from strongroom.enclave.digests import Digests, walk
from strongroom.errors import EnclaveError

KEY, BOOT = b"k" * 32, b"b" * 16
LATER = 1 << 62


@pytest.fixture
def files(tmp_path):
    names = []
    for index in range(150):
        path = tmp_path / f"f{index:03}"
        path.write_bytes(bytes([index]) * (index * 37))
        names.append(str(path))
    return names


def expected(names):
    return [hashlib.sha256(Path(name).read_bytes()).digest() for name in names]


def test_digests_come_in_the_order_of_the_files(files):
    files = files[::2] + files[1::2]
    known = Digests(clock=lambda: LATER)
    for _ in range(2):  # read, then remembered
        got = known.of(files)
        assert [each.sha256 for each in got] == expected(files)
        assert [each.size for each in got] == [Path(name).stat().st_size for name in files]


def test_what_was_written_is_not_read_again(files, monkeypatch):
    known = Digests(clock=lambda: LATER)
    before = known.of(files)
    again = Digests()
    again.load(known.to_bytes(KEY, BOOT), KEY, BOOT)
    monkeypatch.setattr("builtins.open", None)
    assert again.of(files) == before
    assert not again.grown


def test_another_boot_of_the_machine_knows_nothing(files, monkeypatch):
    known = Digests(clock=lambda: LATER)
    known.of(files)
    again = Digests()
    again.load(known.to_bytes(KEY, BOOT), KEY, b"c" * 16)
    again.of(files)
    assert again.to_bytes(KEY, BOOT) == Digests().to_bytes(KEY, BOOT)  # and they are too young to be remembered


def test_a_file_younger_than_two_seconds_is_read_each_time(files):
    changed = Path(files[0]).stat().st_ctime_ns
    for age, kept in ((1_999_999_999, False), (2_000_000_000, True), (-5_000_000_000, False)):
        known = Digests(clock=lambda age=age: changed + age)
        known.of(files[:1])
        assert known.grown is kept


@pytest.mark.parametrize("mode", [0o644, 0o664, 0o646, 0o666])
def test_what_others_may_write_is_read_each_time(files, mode):
    Path(files[0]).chmod(mode)
    told = Path(files[0]).stat()
    for group, kept in ((told.st_uid, mode in (0o644, 0o664)), (told.st_uid + 1, mode == 0o644)):
        if os.geteuid() == 0:
            os.chown(files[0], -1, group)
        elif group != told.st_gid:
            continue
        known = Digests(clock=lambda: LATER)
        known.of(files[:1])
        assert known.grown is kept
        known = Digests(clock=lambda: LATER)
        known.stamp(files[:1])
        known.of(files[:1])
        assert known.grown is kept


@pytest.mark.skipif(os.geteuid() != 0, reason="not root: cannot give files away")
def test_what_is_another_user_s_is_read_each_time(files, monkeypatch):
    for owner, user, kept in ((1234, 0, False), (1234, 1234, True), (0, 1234, True), (1235, 1234, False)):
        os.chown(files[0], owner, owner)
        monkeypatch.setattr(os, "geteuid", lambda user=user: user)
        known = Digests(clock=lambda: LATER)
        known.of(files[:1])
        assert known.grown is kept


def test_a_time_that_was_set_back_makes_no_file_older(files):
    os.utime(files[0], (0, 0))
    known = Digests()  # by the clock, it was changed just now
    known.of(files[:1])
    assert not known.grown


def test_what_links_ask_for_is_remembered_with_the_content(tmp_path):
    known = Digests()
    assert known.linked("/bin/sh", b"d" * 32)
    again = Digests()
    again.load(known.to_bytes(KEY, BOOT), KEY, BOOT)
    assert again.linked("/nowhere", b"d" * 32) == known.linked("/bin/sh", None)


def test_a_file_that_is_not_there(files):
    with pytest.raises(EnclaveError, match="no such file"):
        Digests().of([*files, "/nowhere"])


def test_a_walk_names_each_file_once_and_by_its_own_name(tmp_path):
    for name in ("b/x.py", "b/__pycache__/x.pyc", "a/y.py", "skipped/z.py", "a/skipped/z.py", "out/o.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "a" / "to_b").symlink_to("../b")
    (tmp_path / "loop").symlink_to(".")
    found = walk(str(tmp_path), skip=("skipped",), leave_out=str(tmp_path / "out"))
    assert sorted(name for name, _ in found) == ["a/skipped/z.py", "a/to_b", "a/y.py", "b/x.py", "loop"]


def test_a_directory_that_cannot_be_read_is_not_passed_over(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(EnclaveError, match="permission denied"):
        walk(str(tmp_path))
