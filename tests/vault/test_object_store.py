"""A vault on an object store: files written once under fresh names, `meta` as numbered objects, no log and no locks."""

import os

import fsspec
import pytest

from strongroom.errors import ConflictError, IntegrityError, RollbackError, StrongroomError, TamperedError
from strongroom.sealed import NO_FRESHNESS, MemoryAnchor
from strongroom.storage import open_directory
from strongroom.vault.engine import META
from strongroom.vault.vault import Vault

KEY = bytes(range(32))
BIG = os.urandom(300_000)
SMALL = os.urandom(5000)


class Store:
    """A bucket, and an anchor for the vault in it."""

    def __init__(self, kind: str, top) -> None:
        self.fs = fsspec.filesystem(kind)
        self.path = f"{top}/bucket"
        self.url = f"{kind}://{self.path}"
        self.anchor = MemoryAnchor()

    def directory(self):
        # The memory of one process and a local disk: both make an object only if it is absent.
        return open_directory(self.url, updatable=(META,), exclusive=True)

    def open(self, mode="r+", anchor=None, **options) -> Vault:
        return Vault(self.directory(), mode, KEY, anchor or self.anchor, what="vault", **options)

    def names(self) -> set[str]:
        return {name.rpartition("/")[2] for name in self.fs.find(self.path)}

    def contents(self) -> dict[str, bytes]:
        with self.open("r") as opened:
            opened.verify()
            return {path: opened.read_bytes(path) for path in opened.files()}


@pytest.fixture(params=["memory", "file"])
def store(request, tmp_path):
    store = Store(request.param, tmp_path.as_posix())
    with store.open("x") as opened:
        opened.write_bytes("big", BIG)
        opened.write_bytes("folder/small", SMALL)
        opened.write_bytes("inline", b"i")
    yield store
    if store.fs.exists(store.path):
        store.fs.rm(store.path, recursive=True)


FILES = {"big": BIG, "folder/small": SMALL, "inline": b"i"}


def test_keeps_files(store):
    assert store.contents() == FILES
    assert len(store.names()) == 4  # a data file, a pack, and of `meta` the commit and the second copy of its slot
    with pytest.raises(FileExistsError):
        store.open("x")


def test_a_change_in_place_is_written_under_a_new_name(store):
    before = store.names()
    with store.open() as opened, opened.open("big", "r+b") as file:
        file.write_at(100_000, b"changed")
        file.truncate(200_000)
    assert store.contents()["big"] == BIG[:100_000] + b"changed" + BIG[100_007:200_000]
    assert len([name for name in store.names() - before if len(name) == 32]) == 1


def test_a_file_that_stays_open_over_commits(store):
    content = bytearray(BIG)
    with store.open() as opened, opened.open("big", "r+b") as file:
        for number in range(5):
            data = bytes([number]) * 1000
            file.write_at(number * 70_000, data)
            content[number * 70_000 : number * 70_000 + 1000] = data
            opened.commit()
            assert store.contents()["big"] == content
    assert store.contents() == FILES | {"big": bytes(content)}


def test_small_files_and_names(store):
    with store.open() as opened:
        for number in range(50):
            opened.write_bytes(f"many/{number}", bytes([number]) * 4000)
        opened.rename("folder/small", "moved")
        opened.remove("inline")
        opened.commit()
        opened.write_bytes("many/0", b"again" * 1000)
        opened.symlink("moved", "link")
    found = store.contents()
    assert found["moved"] == found["link"] == SMALL
    assert found["many/0"] == b"again" * 1000
    assert found["many/49"] == bytes([49]) * 4000
    assert "inline" not in found


def test_an_fsync_is_a_commit(store):
    with store.open(log=True) as opened:
        with opened.open("inline", "r+b") as file:
            file.write(b"synced")
        before = opened.root
        opened.fsync(opened.stat("inline").inode)
        assert opened.root != before
        assert store.contents()["inline"] == b"synced"
    assert "log" not in store.names()


def test_one_of_two_writers_wins(store):
    one, two = store.open(), store.open()
    one.write_bytes("one", BIG)
    two.write_bytes("two", BIG)
    two.write_bytes("two-small", SMALL)
    one.commit()
    with pytest.raises(ConflictError, match="another"):
        two.commit()
    with pytest.raises(StrongroomError, match="an earlier write or commit failed"):
        two.commit()
    two.discard()
    assert store.contents() == FILES | {"one": BIG}
    with store.open() as again:  # the loser opens it anew, and succeeds
        again.write_bytes("two", SMALL)
        again.commit()
    one.discard()
    assert store.contents() == FILES | {"one": BIG, "two": SMALL}


def test_the_loser_leaves_nothing_behind(store):
    one, two = store.open(), store.open()
    one.write_bytes("one", b"1")
    one.close()
    before = store.names()
    two.write_bytes("two", BIG)
    with pytest.raises(ConflictError):
        two.commit()
    two.discard()
    assert store.names() == before


def test_a_reader_beside_a_writer(store):
    with store.open("r") as reader, reader.open("big") as file:
        assert file.read(10) == BIG[:10]
        with store.open() as writer:
            writer.write_bytes("inline", b"new")
        assert reader.read_bytes("inline") == b"i"
        file.seek(0)
        assert file.read() == BIG
        # What it reads goes two commits after it was replaced, and it says so.
        for number in range(3):
            with store.open() as writer:
                writer.write_bytes("big", bytes([number]) * 100_000)
    with store.open("r") as reader:
        assert reader.read_bytes("big") == b"\2" * 100_000


def test_a_reader_that_was_overtaken_is_told(store):
    with store.open("r") as reader:
        for number in range(3):
            with store.open() as writer:
                writer.write_bytes("big", bytes([number]) * 100_000)
        with pytest.raises(IntegrityError, match="is missing"):
            reader.read_bytes("big")


def test_what_nothing_needs_goes(store):
    for number in range(6):
        with store.open() as writer:
            writer.write_bytes("big", bytes([number]) * 100_000)
            writer.write_bytes("folder/small", bytes([number]) * 5000)
    assert len([name for name in store.names() if len(name) == 32]) <= 4


def test_many_commits(store):
    """More than lie between two full copies of `meta`."""
    with store.open() as opened:
        for number in range(70):
            opened.write_bytes("inline", b"%d" % number)
            opened.commit()
    assert store.contents() == FILES | {"inline": b"69"}


def test_discarding(store):
    before = store.names()
    opened = store.open()
    opened.write_bytes("big", b"x" * 100_000)
    opened.write_bytes("small", SMALL)
    opened.discard()
    assert store.names() == before
    assert store.contents() == FILES


def test_attacks_on_objects(store):
    with store.open() as opened:
        opened.write_bytes("other", bytes(reversed(BIG)))
    objects = {name: store.fs.cat(f"{store.path}/{name}") for name in store.names()}
    data = sorted((name for name in objects if len(name) == 32), key=lambda name: len(objects[name]))
    one, two = data[-2:]

    def put(changes: dict[str, bytes | None]) -> None:
        for name, content in changes.items():
            path = f"{store.path}/{name}"
            store.fs.rm(path) if content is None else store.fs.pipe(path, content)

    for changes in (
        {one: objects[two], two: objects[one]},
        {one: None},
        {one: objects[one][:-1]},
        {one: bytes([objects[one][0] ^ 1]) + objects[one][1:]},
        {data[0]: bytes(len(objects[data[0]]))},
    ):
        put(changes)
        with pytest.raises((TamperedError, IntegrityError)):
            store.contents()
        put({name: objects[name] for name in changes})
    assert store.contents()["big"] == BIG
    *_, commit, copy = sorted(name for name in objects if name.startswith("meta."))
    put({copy: None})
    assert store.contents()["big"] == BIG  # the second copy of the slot only
    put({commit: None})
    with pytest.raises(RollbackError):
        store.contents()
    with store.open("r", NO_FRESHNESS) as opened:
        assert "other" not in opened.files()  # without an anchor nobody can tell
    put({commit: objects[commit][:-1] + bytes([objects[commit][-1] ^ 1])})
    with pytest.raises(StrongroomError):
        store.contents()
