"""The vault: paths, files, commits, packing and unpacking."""

import os
import stat
from contextlib import closing

import pytest

from strongroom import vault
from strongroom.crypto import random_key
from strongroom.errors import CasUnreachableError, TamperedError, TruncatedError, UsageError, WrongKeyError
from strongroom.sealed import NO_FRESHNESS, MemoryAnchor
from strongroom.storage import LocalDirectory, MemoryDirectory
from strongroom.vault.rows import Inline, Packed, Tree

KEY = bytes(range(32))


def created(files: dict[str, bytes]) -> MemoryDirectory:
    directory = MemoryDirectory()
    with vault.open(directory, "x", key=KEY, anchor=NO_FRESHNESS) as opened:
        for path, content in files.items():
            opened.write_bytes(path, content)
    return directory


def copied(directory: MemoryDirectory) -> MemoryDirectory:
    return MemoryDirectory({name: bytes(file.data) for name, file in directory.files.items()})


def data_file(opened: vault.Vault, path: str) -> str:
    """The name of the data file that holds a path's content."""
    body = opened.inode(opened.stat(path).inode).body
    assert not isinstance(body, Inline)
    return (body.file if isinstance(body, Tree) else body.pack).hex()


def contents(directory: MemoryDirectory) -> dict[str, bytes]:
    with vault.open(directory, key=KEY, anchor=NO_FRESHNESS) as opened:
        return {path: opened.read_bytes(path) for path in opened.files()}


def test_keeps_files_and_their_shape():
    files = {"a": b"", "b/c/d": os.urandom(100_000), "b/e": b"e"}
    directory = created(files)
    with vault.open(directory, key=KEY, anchor=NO_FRESHNESS) as opened:
        assert opened.files() == ["a", "b/c/d", "b/e"]
        assert opened.listdir() == ["a", "b"]
        assert opened.listdir("b") == ["c", "e"]
        assert list(opened.walk()) == [("", ["b"], ["a"]), ("b", ["c"], ["e"]), ("b/c", [], ["d"])]
        assert opened.stat("b/c/d") == vault.Stat(100_000, 0o644, is_dir=False)
        assert opened.stat("b/c").is_dir
        assert "a" in opened
        assert opened.verify() == 3
    assert contents(directory) == files


def test_absent_paths():
    with vault.open(created({"a": b"", "b/c": b""}), key=KEY, anchor=NO_FRESHNESS) as opened:
        for path in ("x", "b/x", "a/x", "/a", "b/", "../a"):
            with pytest.raises(FileNotFoundError):
                opened.stat(path)
            with pytest.raises(FileNotFoundError):
                opened.open(path)
        with pytest.raises(IsADirectoryError):
            opened.open("b")
        with pytest.raises(NotADirectoryError):
            opened.listdir("a")


def test_large_file_is_read_at_random():
    content = os.urandom(300_000)
    with vault.open(created({"a": content}), key=KEY, anchor=NO_FRESHNESS) as opened, opened.open("a") as file:
        file.seek(200_000)
        assert file.read(1000) == content[200_000:201_000]


def test_change_remove_rename():
    directory = created({"a": b"1", "b/c": b"2", "d": b"3"})
    with vault.open(directory, "r+", key=KEY, anchor=NO_FRESHNESS) as opened:
        opened.write_bytes("a", b"new")
        opened.rename("b/c", "c")
        opened.remove("d")
        with pytest.raises(FileNotFoundError):
            opened.remove("d")
        with pytest.raises(FileNotFoundError):
            opened.rename("d", "e")
        assert opened.listdir() == ["a", "b", "c"]
        opened.remove_dir("b")
        assert opened.listdir() == ["a", "c"]
    assert contents(directory) == {"a": b"new", "c": b"2"}


def test_rename_replaces():
    directory = created({"a": b"1", "b": b"2"})
    with vault.open(directory, "r+", key=KEY, anchor=NO_FRESHNESS) as opened:
        opened.rename("a", "b")
        opened.rename("b", "b")
        with pytest.raises(UsageError, match="but 'b' is a file"):
            opened.rename("b", "b/c")
        assert opened.read_bytes("b") == b"1"
    assert contents(directory) == {"b": b"1"}


@pytest.mark.parametrize(
    "path", ["", "/a", "a/", "a//b", ".", "a/../b", "..", "a\0b", "\ud800", "x" * 256, "x/" * 2050 + "x"]
)
def test_paths_that_cannot_be(path):
    with vault.open(MemoryDirectory(), "x", key=KEY, anchor=NO_FRESHNESS) as opened:
        with pytest.raises(UsageError, match="path in vault"):
            opened.write_bytes(path, b"")
        assert opened.files() == []


def test_a_path_is_a_file_or_a_directory():
    with vault.open(created({"a/b": b""}), "r+", key=KEY, anchor=NO_FRESHNESS) as opened:
        with pytest.raises(UsageError, match="is a directory"):
            opened.write_bytes("a", b"")
        with pytest.raises(UsageError, match="but 'a/b' is a file"):
            opened.write_bytes("a/b/c/d", b"")


def test_what_is_not_committed_does_not_count():
    directory = created({"a": b"1"})
    opened = vault.open(directory, "r+", key=KEY, anchor=NO_FRESHNESS)
    opened.write_bytes("a", b"2")
    opened.write_bytes("b", b"2")
    assert opened.read_bytes("a") == b"2"
    opened.discard()
    assert contents(directory) == {"a": b"1"}
    with pytest.raises(ValueError, match="closed"):
        opened.read_bytes("a")


def test_exceptions_discard():
    directory = created({"a": b"1"})
    with pytest.raises(RuntimeError), vault.open(directory, "r+", key=KEY, anchor=NO_FRESHNESS) as opened:
        opened.write_bytes("a", b"2")
        raise RuntimeError
    assert contents(directory) == {"a": b"1"}
    with vault.open(directory, "r+", key=KEY, anchor=NO_FRESHNESS) as opened:
        with pytest.raises(RuntimeError), opened.open("a", "wb") as file:
            file.write(b"2")
            raise RuntimeError
        assert opened.read_bytes("a") == b"1"
    assert directory.list() == ["meta"]


def test_an_open_writer_is_not_part_of_a_commit():
    directory = created({})
    with vault.open(directory, "r+", key=KEY, anchor=NO_FRESHNESS) as opened:
        with opened.open("late", "wb") as file:
            file.write(b"1")
            opened.write_bytes("early", b"2")
            opened.commit()
            assert contents(copied(directory)) == {"early": b"2"}
        assert opened.files() == ["early", "late"]
    assert contents(directory) == {"early": b"2", "late": b"1"}


def test_commits_and_roots():
    directory, anchor = MemoryDirectory(), MemoryAnchor()
    with vault.open(directory, "x", key=KEY, anchor=anchor) as opened:
        assert opened.root is None
        first = opened.commit()
        assert opened.commit() == first
        opened.write_bytes("a", b"1")
    assert anchor.read().sequence == 2
    with vault.open(directory, key=KEY, anchor=anchor) as opened:
        assert opened.root == anchor.read()
        with pytest.raises(UsageError, match="open for reading only"):
            opened.write_bytes("a", b"")
        with pytest.raises(UsageError, match="open for reading only"):
            opened.commit()


def test_on_disk(tmp_path):
    path = tmp_path / "v"
    with pytest.raises(FileNotFoundError):
        vault.open(path, key=KEY, anchor=NO_FRESHNESS)
    with vault.open(path, "x", key=KEY, anchor=NO_FRESHNESS) as opened:
        opened.write_bytes("secret name", b"1" * 5000)
    with pytest.raises(FileExistsError):
        vault.open(path, "x", key=KEY, anchor=NO_FRESHNESS)
    with pytest.raises(WrongKeyError):
        vault.open(path, key=random_key(), anchor=NO_FRESHNESS)
    assert [len(p.name) for p in path.iterdir() if p.name != "meta"] == [32]
    if os.name == "posix":
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
        assert all(stat.S_IMODE(p.stat().st_mode) == 0o600 for p in path.iterdir())


def test_the_sweep_takes_only_data_files_that_nothing_names(tmp_path):
    path = tmp_path / "v"
    with vault.open(path, "x", key=KEY, anchor=NO_FRESHNESS) as opened:
        opened.write_bytes("a", b"1" * 5000)
    (path / "README").write_text("mine")
    (path / ("0" * 32)).write_text("left by a crash")
    with vault.open(path, "r+", key=KEY, anchor=NO_FRESHNESS) as opened:
        assert opened.verify() == 1
    assert sorted(len(p.name) for p in path.iterdir()) == [4, 6, 32]


def test_the_sweep_leaves_what_a_living_process_is_writing():
    directory = created({"a": b"1"})
    with vault.open(directory, "r+", key=KEY, anchor=NO_FRESHNESS) as writer:
        writer.write_bytes("b", b"2" * 200_000)
        with vault.open(directory, "r+", key=KEY, anchor=NO_FRESHNESS) as other:
            other.write_bytes("c", b"3" * 5000)
    assert contents(directory) == {"a": b"1", "b": b"2" * 200_000, "c": b"3" * 5000}


# Packing.


def plain_tree(top):
    (top / "a" / "b").mkdir(parents=True)
    (top / "a" / "b" / "data").write_bytes(b"x" * 200_000)
    (top / "run.sh").write_text("#!/bin/sh\n")
    (top / "run.sh").chmod(0o755)
    (top / "empty").write_bytes(b"")


def test_pack_then_unpack(tmp_path):
    plain_tree(tmp_path / "in")
    with vault.open(tmp_path / "v", "x", key=KEY, anchor=NO_FRESHNESS) as opened:
        assert vault.pack(tmp_path / "in", opened) == ["a/b/data", "empty", "run.sh"]
    with vault.open(tmp_path / "v", key=KEY, anchor=NO_FRESHNESS) as opened:
        assert vault.unpack(opened, tmp_path / "out") == ["a/b/data", "empty", "run.sh"]
        with pytest.raises(FileExistsError, match="is not empty"):
            vault.unpack(opened, tmp_path / "out")
    for path in ("a/b/data", "empty", "run.sh"):
        assert (tmp_path / "out" / path).read_bytes() == (tmp_path / "in" / path).read_bytes()
    if os.name == "posix":
        assert stat.S_IMODE((tmp_path / "out" / "run.sh").stat().st_mode) == 0o755
        assert (tmp_path / "out" / "a").stat().st_mode == (tmp_path / "in" / "a").stat().st_mode


def test_pack_one_file(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"onnx")
    directory = MemoryDirectory()
    with vault.open(directory, "x", key=KEY, anchor=NO_FRESHNESS) as opened:
        assert vault.pack(tmp_path / "model.onnx", opened) == ["model.onnx"]
    assert contents(directory) == {"model.onnx": b"onnx"}


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX file types")
def test_pack_refuses_what_is_no_regular_file(tmp_path):
    for name, make in (
        ("link", lambda p: p.symlink_to("/etc/passwd")),
        ("directory-link", lambda p: p.symlink_to("/etc")),
        ("pipe", os.mkfifo),
    ):
        top = tmp_path / f"with-{name}"
        top.mkdir()
        (top / "a").write_text("fine")
        make(top / name)
        with (
            pytest.raises(UsageError, match=f"{name}: is"),
            vault.open(MemoryDirectory(), "x", key=KEY, anchor=NO_FRESHNESS) as opened,
        ):
            vault.pack(top, opened)
    with (
        pytest.raises(UsageError, match="symbolic link"),
        vault.open(MemoryDirectory(), "x", key=KEY, anchor=NO_FRESHNESS) as opened,
    ):
        vault.pack(tmp_path / "with-link" / "link", opened)


def test_pack_refuses_to_pack_itself(tmp_path):
    opened = vault.open(tmp_path / "v", "x", key=KEY, anchor=NO_FRESHNESS)
    with pytest.raises(UsageError, match="holds the vault"):
        vault.pack(tmp_path, opened)
    opened.discard()


def test_unpack_keeps_nothing_of_a_file_that_fails(tmp_path):
    directory = created({"a": b"a" * 100_000, "b": b"b" * 100_000})
    with vault.open(directory, key=KEY, anchor=NO_FRESHNESS) as opened:
        name = data_file(opened, "b")
        directory.files[name].data[70_000] ^= 1
        with pytest.raises(TamperedError, match=r"b: .*block"):
            vault.unpack(opened, tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["a"]


def test_local_directory_keeps_to_itself(tmp_path):
    directory = LocalDirectory(tmp_path)
    for name in ("../x", "a/b", "", ".", ".."):
        with pytest.raises(UsageError, match="file name"):
            directory.open(name, "x")


CUTS = {
    "0": lambda size: 0,
    "1": lambda size: 1,
    "7": lambda size: 7,
    "1000": lambda size: 1000,
    "one slot": lambda size: 4096,
    "half": lambda size: size // 2,
    "minus one": lambda size: size - 1,
}


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("content", [bytes(range(250)) * 20, bytes(range(256)) * 2000], ids=["packed", "tree"])
def test_a_data_file_that_was_cut(content, cut):
    directory = created({"a": content, "b": b"whole"})
    with vault.open(directory, key=KEY, anchor=NO_FRESHNESS) as opened:
        with closing(directory.open(data_file(opened, "a"), "r+", shared=True)) as storage:
            storage.resize(CUTS[cut](storage.size()))
        with pytest.raises(TruncatedError, match="vault: a: ") as caught:
            opened.read_bytes("a")
        assert caught.value.exit_code == 22
        assert "restore it from a copy" in (caught.value.hint or "")
        with pytest.raises(TruncatedError):
            opened.verify()
        assert opened.read_bytes("b") == b"whole"


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("commits", [1, 2, 6])
@pytest.mark.parametrize("anchored", [True, False])
def test_a_meta_that_was_cut(cut, commits, anchored):
    directory, memory = MemoryDirectory(), MemoryAnchor()
    anchor = memory if anchored else NO_FRESHNESS
    for number in range(commits):
        with vault.open(directory, "r+" if number else "x", key=KEY, anchor=anchor) as opened:
            opened.write_bytes(f"file {number}", b"content")
    with closing(directory.open("meta", "r+")) as storage:
        storage.resize(CUTS[cut](storage.size()))
    for mode in ("r", "r+"):
        with pytest.raises(TruncatedError, match=r"meta: [0-9]+ bytes, wanted at least") as caught:
            vault.open(directory, mode, key=KEY, anchor=anchor)
        assert caught.value.exit_code == 22
        assert "restore it from a copy" in (caught.value.hint or "")


def test_refusals_of_changed_vaults_say_what_to_do():
    directory = created({"a": b"1" * 100_000, "b": b"2" * 100_000, "c": b"3" * 5000})
    with vault.open(directory, key=KEY, anchor=NO_FRESHNESS) as opened:
        one, two = data_file(opened, "a"), data_file(opened, "b")
        assert isinstance(opened.inode(opened.stat("c").inode).body, Packed)
        directory.files[one].data[:] = directory.files[two].data
        with pytest.raises(TamperedError, match=r"vault: a: .*authentication failed") as replaced:
            opened.read_bytes("a")
        directory.files[data_file(opened, "c")].data[100] ^= 1
        with pytest.raises(TamperedError, match=r"vault: c: .*authentication failed") as changed:
            opened.read_bytes("c")
        directory.unlink(two)
        with pytest.raises(TamperedError, match=r"vault: b: .*is missing") as removed:
            opened.read_bytes("b")
    with pytest.raises(WrongKeyError) as key:
        vault.open(directory, key=random_key(), anchor=NO_FRESHNESS)
    for caught in (replaced, changed, removed, key):
        assert caught.value.hint


class Silent(MemoryAnchor):
    """An anchor that can be out of reach."""

    def __init__(self) -> None:
        super().__init__()
        self.reached = True

    def advance(self, old, new):
        if not self.reached:
            raise CasUnreachableError("cas: no answer")
        super().advance(old, new)


@pytest.mark.parametrize("log", [False, True])
def test_an_anchor_out_of_reach_leaves_a_commit_undecided(log):
    directory, anchor = MemoryDirectory(), Silent()
    opened = vault.Vault(directory, "x", KEY, anchor, what="vault", log=log)
    opened.write_bytes("a", b"1")
    opened.commit()
    opened.write_bytes("a", b"2" * 5000)
    anchor.reached = False
    with pytest.raises(CasUnreachableError):
        opened.fsync(opened.stat("a").inode)
    with pytest.raises(CasUnreachableError):
        opened.commit()
    assert opened.read_bytes("a") == b"2" * 5000
    anchor.reached = True
    opened.write_bytes("b", b"3" * 70_000)
    opened.close()
    with vault.open(directory, key=KEY, anchor=anchor) as reader:
        assert {path: reader.read_bytes(path) for path in reader.files()} == {"a": b"2" * 5000, "b": b"3" * 70_000}
        assert reader.root.sequence == anchor.read().sequence


def test_what_is_written_while_a_commit_is_undecided_waits():
    directory, anchor = MemoryDirectory(), Silent()
    opened = vault.open(directory, "x", key=KEY, anchor=anchor)
    opened.write_bytes("a", b"1")
    file = opened.open("a", "r+b")
    opened.commit()
    file.write(b"2")
    anchor.reached = False
    with pytest.raises(CasUnreachableError):
        opened.commit()
    for act in (lambda: opened.write_bytes("b", b""), lambda: file.write(b"3"), lambda: opened.remove("a")):
        with pytest.raises(CasUnreachableError):
            act()
    anchor.reached = True
    file.write(b"4")
    file.close()
    opened.close()
    assert contents(directory) == {"a": b"24"}
