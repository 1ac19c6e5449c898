"""The vault: paths, files, commits, packing and unpacking."""

import os
import stat
from contextlib import closing

import pytest

from strongroom import vault
from strongroom.crypto import random_key
from strongroom.errors import FormatError, LockedError, TamperedError, TruncatedError, UsageError, WrongKeyError
from strongroom.sealed import NO_FRESHNESS, MemoryAnchor
from strongroom.storage import LocalDirectory, MemoryDirectory
from strongroom.vault import metadata
from strongroom.vault.names import Names

KEY = bytes(range(32))


def created(files: dict[str, bytes]) -> MemoryDirectory:
    directory = MemoryDirectory()
    with vault.open(directory, "x", key=KEY, anchor=NO_FRESHNESS) as opened:
        for path, content in files.items():
            opened.write_bytes(path, content)
    return directory


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
        assert opened.listdir() == ["a", "c"]
    assert contents(directory) == {"a": b"new", "c": b"2"}
    assert len(directory.list()) == 3  # dead data files are gone


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
    assert len(directory.list()) == 2


def test_an_open_writer_is_not_part_of_a_commit():
    directory = created({})
    with vault.open(directory, "r+", key=KEY, anchor=NO_FRESHNESS) as opened:
        with opened.open("late", "wb") as file:
            file.write(b"1")
            opened.write_bytes("early", b"2")
            opened.commit()
            assert contents(MemoryDirectory({n: bytes(f.data) for n, f in directory.files.items()})) == {"early": b"2"}
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


def test_a_data_file_that_a_later_commit_removed_is_told():
    directory = created({"a": b"1"})
    with vault.open(directory, key=KEY, anchor=NO_FRESHNESS) as reader:
        with vault.open(directory, "r+", key=KEY, anchor=NO_FRESHNESS) as writer:
            writer.remove("a")
        with pytest.raises(TamperedError, match="is missing") as caught:
            reader.read_bytes("a")
    assert "open the vault again" in caught.value.hint


def test_on_disk(tmp_path):
    path = tmp_path / "v"
    with pytest.raises(FileNotFoundError):
        vault.open(path, key=KEY, anchor=NO_FRESHNESS)
    with vault.open(path, "x", key=KEY, anchor=NO_FRESHNESS) as opened:
        opened.write_bytes("secret name", b"1")
        with pytest.raises(LockedError):
            vault.open(path, "r+", key=KEY, anchor=NO_FRESHNESS)
    with pytest.raises(FileExistsError):
        vault.open(path, "x", key=KEY, anchor=NO_FRESHNESS)
    with pytest.raises(WrongKeyError):
        vault.open(path, key=random_key(), anchor=NO_FRESHNESS)
    assert [len(p.name) for p in path.iterdir() if p.name != "meta"] == [32]
    if os.name == "posix":
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
        assert all(stat.S_IMODE(p.stat().st_mode) == 0o600 for p in path.iterdir())


def test_the_sweep_takes_only_data_files(tmp_path):
    path = tmp_path / "v"
    with vault.open(path, "x", key=KEY, anchor=NO_FRESHNESS) as opened:
        (path / "README").write_text("mine")
        (path / ("0" * 32)).write_text("left by a crash")
        opened.write_bytes("a", b"1")
    assert sorted(len(p.name) for p in path.iterdir()) == [4, 6, 32]


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
        assert stat.S_IMODE((tmp_path / "out" / "a").stat().st_mode) == 0o700


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
        name = opened._files["b"].name
        directory.files[name].data[70_000] ^= 1
        with pytest.raises(TamperedError, match="b: block"):
            vault.unpack(opened, tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["a"]


# Metadata.


def entry(**change):
    fields = {"id": "0" * 32, "key": "A" * 43 + "=", "mode": 0o644, "root": "1:" + "0" * 64, "size": 1}
    return fields | change


def document(files, version=0):
    return metadata._canonical({"files": files, "version": version})


def test_metadata_round_trip():
    data = document({"a": entry(), "b/ü": entry(id="1" * 32)})
    assert metadata.encode(metadata.decode(data)) == data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "wanted an object"),
        (document({}, version=1), "vault version: 1, wanted 0"),
        (b'{"files":{},"version":0} ', "not canonical"),
        (b'{"files":{},"files":{},"version":0}', "not canonical"),
        (b'{"version":0,"files":{}}', "not canonical"),
        (document([]), "wanted an object of at most"),
        (document({"../a": entry()}), "without empty parts"),
        (document({"/a": entry()}), "without empty parts"),
        (document({"a\0": entry()}), "contains NUL"),
        (document({"a": entry(), "a/b": entry(id="1" * 32)}), "is a file and a directory"),
        (document({"a": entry(), "b": entry()}), "share a data file"),
        (document({"a": entry(id="../meta")}), "id: wanted 32 hex digits"),
        (document({"a": entry(id="0" * 32 + "\n")}), "id: wanted 32 hex digits"),
        (document({"a": entry(id=7)}), "id: int, wanted a string"),
        (document({"a": entry(key="A" * 42 + "==")}), "key: wanted 32 bytes"),
        (document({"a": entry(key="A" * 42 + "B=")}), "key: wanted 32 bytes"),
        (document({"a": entry(mode=0o4755)}), "mode: wanted a whole number"),
        (document({"a": entry(mode=True)}), "mode: wanted a whole number"),
        (document({"a": entry(size=-1)}), "size: wanted a whole number"),
        (document({"a": entry(size=1.5)}), "size: wanted a whole number"),
        (document({"a": entry(root="1:00")}), "root"),
        (document({"a": {"id": "0" * 32}}), "wanted an object of id, key"),
    ],
)
def test_metadata_that_is_refused(data, message):
    with pytest.raises(FormatError, match=message):
        metadata.decode(data)


def test_metadata_shows_no_key():
    shown = repr(metadata.decode(document({"a": entry(key="B" * 42 + "A=")})))
    assert "key" not in shown
    assert "BBBB" not in shown


def test_names_follow_files():
    names = Names(["a/b/c", "a/d"])
    names.remove("a/b/c")
    assert not names.is_dir("a/b")
    assert names.list("a") == ["d"]
    names.remove("a/d")
    assert names.list("") == []


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
@pytest.mark.parametrize("content", [b"", b"short", bytes(range(256)) * 2000], ids=["empty", "short", "long"])
def test_a_data_file_that_was_cut(content, cut):
    directory = created({"a": content, "b": b"whole"})
    with vault.open(directory, key=KEY, anchor=NO_FRESHNESS) as opened:
        with closing(directory.open(opened._files["a"].name, "r+")) as storage:
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
    directory = created({"a": b"1" * 5000, "b": b"2" * 5000})
    with vault.open(directory, key=KEY, anchor=NO_FRESHNESS) as opened:
        one, two = (opened._files[path].name for path in "ab")
        with closing(directory.open(two, "r")) as storage:
            other = bytearray(storage.size())
            storage.read_into(0, other)
        with closing(directory.open(one, "r+")) as storage:
            storage.write_at(0, other)
        with pytest.raises(TamperedError, match="is another one") as replaced:
            opened.read_bytes("a")
        with closing(directory.open(two, "r+")) as storage:
            storage.write_at(storage.size() - 4096, bytes(4096))
            storage.write_at(storage.size() - 8192, bytes(4096))
        with pytest.raises(TamperedError, match="authentication failed") as changed:
            opened.read_bytes("b")
    with pytest.raises(WrongKeyError) as key:
        vault.open(directory, key=random_key(), anchor=NO_FRESHNESS)
    for caught in (replaced, changed, key):
        assert caught.value.hint
