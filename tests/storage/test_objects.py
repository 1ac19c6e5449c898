"""Directories of objects: files written once, files of numbered objects, and who wins."""

import contextlib
import errno
import os
import random
import sys
import threading
import warnings

import pytest

from strongroom.errors import (
    ConflictError,
    FormatError,
    MissingDependencyError,
    StrongroomError,
    TruncatedError,
    UsageError,
)
from strongroom.sealed import NO_FRESHNESS, open_sealed
from strongroom.storage import LocalDirectory, ObjectDirectory, open_directory
from strongroom.storage.backends import EXCLUSIVE, SPOOLED, Objects
from strongroom.storage.extents import Extent, Extents
from strongroom.storage.numbered import FULL_EVERY, KEPT, decode, encode
from tests.storage.remote import Remote

fsspec = pytest.importorskip("fsspec")

REMOTE = f"{Remote.__module__}.{Remote.__qualname__}"


@pytest.fixture
def remote(monkeypatch):
    """A server that keeps to create-if-absent, and is known to."""
    monkeypatch.setitem(EXCLUSIVE, REMOTE, "a fake")
    return Remote()


def memory():
    return fsspec.filesystem("memory", global_store=False, skip_instance_cache=True)


@pytest.fixture(params=["memory", "file", "remote"])
def directory(request, tmp_path, remote):
    if request.param == "memory":
        return ObjectDirectory(memory(), "/vault", updatable={"meta"})
    if request.param == "file":
        return ObjectDirectory(fsspec.filesystem("file"), str(tmp_path / "vault"), updatable={"meta"})
    return ObjectDirectory(remote, "bucket/vault", updatable={"meta"})


def create(directory, name="meta", data=b""):
    with contextlib.closing(directory.open(name, "x")) as file:
        file.write_at(0, data)
        file.sync()


def content(storage) -> bytes:
    buffer = bytearray(storage.size() + 10)
    return bytes(buffer[: storage.read_into(0, buffer)])


def content_of(directory, name="meta") -> bytes:
    with contextlib.closing(directory.open(name, "r")) as file:
        return content(file)


# Files that are written once.


@pytest.mark.parametrize("size", [0, 100, 300_000, SPOOLED + 5])
def test_a_new_file_is_one_object_from_its_sync_on(directory, size, remote):
    if size > SPOOLED and directory._objects.fs is remote:
        pytest.skip("this fake has no streams")
    data = os.urandom(size)
    file = directory.open("data", "x")
    file.write_at(1, data[1:])
    file.write_at(0, data[:1])
    assert content(file) == data
    assert directory.list() == []
    file.sync()
    file.sync()
    assert directory.list() == ["data"]
    assert content(file) == data
    for change in (lambda: file.write_at(0, b"x"), lambda: file.resize(size + 1)):
        with pytest.raises(OSError, match="written once"):
            change()
    file.close()
    file.close()
    assert content_of(directory, "data") == data
    with pytest.raises(FileExistsError):
        directory.open("data", "x")
    with pytest.raises(UsageError, match="written once"):
        directory.open("data", "r+")


def test_a_buffer_cuts_and_extends(directory):
    with contextlib.closing(directory.open("data", "x")) as file:
        file.write_at(3, b"abc")
        file.resize(4)
        file.resize(8)
        file.write_at(10, b"z")
        assert content(file) == b"\0\0\0a\0\0\0\0\0\0z"
        file.sync()
    assert content_of(directory, "data") == b"\0\0\0a\0\0\0\0\0\0z"


def test_what_was_not_uploaded_is_gone(directory):
    with contextlib.closing(directory.open("data", "x")) as file:
        file.write_at(0, b"abc")
    assert file.size() == 0
    with pytest.raises(OSError, match="closed"):
        file.write_at(0, b"abc")
    assert directory.list() == []
    with pytest.raises(FileNotFoundError):
        directory.open("data", "r")


def test_names(directory):
    assert directory.locks("pins") is None
    assert directory.write_once
    create(directory, "a", b"1")
    create(directory, "b", b"2")
    create(directory, "meta", b"3")
    directory.sync()
    assert directory.list() == ["a", "b", "meta"]
    directory.rename("a", "b")
    assert directory.list() == ["b", "meta"]
    assert content_of(directory, "b") == b"1"
    directory.unlink("b")
    directory.unlink("meta")
    assert directory.list() == []
    for name in ("b", "meta"):
        with pytest.raises(FileNotFoundError):
            directory.unlink(name)
        with pytest.raises(FileNotFoundError):
            directory.open(name, "r")
    with pytest.raises(FileNotFoundError):
        directory.rename("b", "c")
    for name in ("meta.0000000001", "../a", "a/b", "", ".strongroom-x"):
        with pytest.raises(UsageError, match="file name"):
            directory.open(name, "x")
    with pytest.raises(UsageError, match="not renamed"):
        directory.rename("meta", "c")


def test_readers_read_only(directory):
    create(directory, "data", b"1")
    create(directory, "meta", b"1")
    for name in ("data", "meta"):
        with contextlib.closing(directory.open(name, "r")) as file:
            assert file.atomic_sync
            assert file.locks is None
            file.sync()
            for change in (lambda file=file: file.write_at(0, b"x"), lambda file=file: file.resize(9)):
                with pytest.raises(OSError, match="reading only"):
                    change()


def test_long_reads_take_few_requests(remote):
    directory, data = ObjectDirectory(remote, "bucket"), os.urandom(3 << 20)
    create(directory, "data", data)
    with contextlib.closing(ObjectDirectory(remote, "bucket").open("data", "r")) as file:
        remote.requests.clear()
        assert content(file) == data
        buffer = bytearray(10)
        file.read_into(5, buffer)
        assert buffer == data[5:15]
        assert len(remote.requests) == 1


def test_an_object_that_vanishes_or_shrinks_is_named(remote):
    directory = ObjectDirectory(remote, "bucket")
    create(directory, "data", b"12345678")
    for fresh, damage in ((None, "wanted 8 bytes"), ("gone", "missing")):
        with contextlib.closing(ObjectDirectory(remote, "bucket").open("data", "r")) as file:
            if fresh:
                remote.store.clear()
            else:
                remote.short = 1
            with pytest.raises(TruncatedError, match=f"object remote://bucket/data: .*{damage}"):
                content(file)
            remote.short = 0


def test_errors_of_client_libraries_are_those_of_a_medium(remote):
    directory = ObjectDirectory(remote, "bucket")
    remote.broken = 1
    with pytest.raises(OSError, match="RemoteError: connection reset") as caught:
        create(directory, "data", b"1")
    assert caught.value.errno == errno.EIO


# Files of numbered objects.


def test_each_sync_with_a_change_publishes_one_object(directory):
    with contextlib.closing(directory.open("meta", "x")) as file:
        assert directory.list() == []
        file.write_at(0, b"one")
        file.sync()
        assert file.number == 1
        file.sync()
        assert file.number == 1
        file.write_at(5, b"two")
        assert content_of(directory) == b"one"
        file.sync()
        file.write_at(0, b"lost")
    assert directory.list() == ["meta"]
    assert content_of(directory) == b"one\0\0two"
    with pytest.raises(FileExistsError):
        directory.open("meta", "x")


def test_cuts_and_holes_are_published_too(directory):
    create(directory, data=b"0123456789")
    with contextlib.closing(directory.open("meta", "r+")) as file:
        file.resize(2)
        file.resize(6)
        file.write_at(8, b"x")
        file.resize(8)
        file.sync()
        assert content(file) == b"01\0\0\0\0\0\0"
        assert content_of(directory) == b"01\0\0\0\0\0\0"
        file.resize(0)
        file.sync()
    assert content_of(directory) == b""


def test_any_history_reads_back(directory):
    rng = random.Random(7)  # noqa: S311  # a failure must come back
    mirror = bytearray(b"start")
    create(directory, data=bytes(mirror))
    file = directory.open("meta", "r+")
    for step in range(3 * FULL_EVERY):
        for _ in range(rng.randrange(1, 4)):
            if rng.random() < 0.2:
                size = rng.randrange(3000)
                file.resize(size)
                mirror = mirror[:size].ljust(size, b"\0")
            else:
                at, data = rng.randrange(3000), rng.randbytes(rng.randrange(200))
                file.write_at(at, data)
                if data:
                    mirror[len(mirror) :] = bytes(max(0, at - len(mirror)))
                    mirror[at : at + len(data)] = data
        assert content(file) == mirror
        file.sync()
        if step % 17 == 0:
            file.close()
            assert content_of(directory) == mirror
            file = directory.open("meta", "r+")
    assert content_of(directory) == mirror


def test_a_reader_keeps_its_version_until_it_asks(directory):
    create(directory, data=b"one")
    with contextlib.closing(directory.open("meta", "r")) as reader:
        assert not reader.refresh()
        with contextlib.closing(directory.open("meta", "r+")) as writer:
            writer.write_at(0, b"two")
            writer.sync()
        assert content(reader) == b"one"
        assert reader.refresh()
        assert content(reader) == b"two"
        assert reader.number == 2


def test_old_objects_stay_for_readers_in_flight_then_go(remote):
    directory = ObjectDirectory(remote, "bucket", updatable={"meta"})
    create(directory, data=b"0")
    reader = ObjectDirectory(remote, "bucket", updatable={"meta"}).open("meta", "r")
    reader._objects._cache.clear()
    with contextlib.closing(directory.open("meta", "r+")) as writer:
        while writer.number < KEPT + FULL_EVERY:
            writer.write_at(0, str(writer.number).encode())
            writer.sync()
        assert content(reader) == b"0"
        reader._objects._cache.clear()
        writer.write_at(0, b"last")
        writer.sync()
        assert len(remote.store) == KEPT + 1
    with pytest.raises(TruncatedError, match=r"object remote://bucket/meta\.0000000001: missing"):
        content(reader)
    assert reader.refresh()
    assert content(reader) == content_of(directory) == b"last"


def test_opening_lists_once_and_reads_from_the_newest_full_object_on(remote):
    directory = ObjectDirectory(remote, "bucket", updatable={"meta"})
    create(directory, data=bytes(100_000))
    with contextlib.closing(directory.open("meta", "r+")) as writer:
        for i in range(FULL_EVERY + 4):
            writer.write_at(i, b"x")
            writer.sync()
    remote.requests.clear()
    directory.open("meta", "r").close()
    assert [request[0] for request in remote.requests].count("ls") == 1
    assert [request[1] for request in remote.requests if request[0] == "get"] == [
        f"meta.{number:010}" for number in range(FULL_EVERY + 1, FULL_EVERY + 6)
    ]


# Two writers.


def test_of_two_writers_one_gets_a_conflict(directory):
    create(directory, data=b"old")
    first, second = directory.open("meta", "r+"), directory.open("meta", "r+")
    first.write_at(0, b"ONE")
    second.write_at(0, b"TWO")
    first.sync()
    with pytest.raises(ConflictError, match="another writer published number 2"):
        second.refresh()
    with pytest.raises(ConflictError, match=r"meta: another writer published number 2"):
        second.sync()
    with pytest.raises(StrongroomError, match="an earlier sync failed"):
        second.write_at(0, b"x")
    assert content_of(directory) == b"ONE"


def test_of_many_creators_at_once_one_wins(directory):
    start, results = threading.Barrier(8), []
    directory._objects.exclusive()

    def run(i):
        file = directory.open("meta", "x")
        file.write_at(0, bytes([i]) * 1000)
        start.wait(timeout=60)
        try:
            file.sync()
            results.append(i)
        except ConflictError:
            results.append(None)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = [i for i in results if i is not None]
    assert len(results) == 8
    assert len(winners) == 1
    assert content_of(directory) == bytes(winners) * 1000


def test_a_reset_connection_after_the_write_is_no_conflict(remote):
    directory = ObjectDirectory(remote, "bucket", updatable={"meta"})
    create(directory, data=b"old")
    with contextlib.closing(directory.open("meta", "r+")) as file:
        file.write_at(0, b"new")
        remote.broken = 1
        file.sync()
        assert file.number == 2
    assert content_of(directory) == b"new"


def test_a_failed_publication_poisons(remote, monkeypatch):
    directory = ObjectDirectory(remote, "bucket", updatable={"meta"})
    create(directory, data=b"old")

    def down(path, value, **kwargs):
        raise TimeoutError(errno.ETIMEDOUT, "timed out")

    with contextlib.closing(directory.open("meta", "r+")) as file:
        file.write_at(0, b"new")
        monkeypatch.setattr(remote, "pipe_file", down)
        with pytest.raises(TimeoutError):
            file.sync()
        with pytest.raises(StrongroomError, match="an earlier sync failed"):
            file.sync()
    assert content_of(directory) == b"old"


def test_whichever_request_fails_one_reads_a_version_that_was_published(remote):
    def commit_three(directory):
        done = 0
        with contextlib.closing(directory.open("meta", "r+")) as file, contextlib.suppress(OSError):
            for version in (b"one", b"two", b"three"):
                file.resize(0)
                file.write_at(0, version)
                file.sync()
                done += 1
        return done

    create(ObjectDirectory(remote, "bucket", updatable={"meta"}), data=b"zero")
    # So that full objects, and the deletions that follow them, are among the requests.
    with contextlib.closing(ObjectDirectory(remote, "bucket", updatable={"meta"}).open("meta", "r+")) as file:
        while file.number < KEPT + FULL_EVERY - 1:
            file.write_at(0, b"ZERO" if file.number % 2 else b"zero")
            file.sync()
    before, seen = dict(remote.store), set()
    whole = Remote(dict(before))
    commit_three(ObjectDirectory(whole, "bucket", updatable={"meta"}))
    for down_from in range(whole.changes + 1):
        after = Remote(dict(before))
        directory = ObjectDirectory(after, "bucket", updatable={"meta"})
        assert directory._objects.exclusive()
        after.down_from = after.changes + down_from
        done = commit_three(directory)
        after.down_from = None
        assert content_of(directory) == [b"zero", b"one", b"two", b"three"][done]
        seen.add(done)
        with contextlib.closing(directory.open("meta", "r+")) as file:  # and goes on
            file.write_at(0, b"next")
            file.sync()
    assert seen == {0, 1, 2, 3}
    assert len(whole.store) < len(before)


def test_back_ends_that_are_not_known_warn_once(tmp_path):
    directory = ObjectDirectory(Remote(), "bucket", updatable={"meta"})
    with pytest.warns(UserWarning, match="only one program at a time may write here") as caught:
        create(directory, data=b"1")
    assert caught[0].filename == __file__
    with contextlib.closing(directory.open("meta", "r+")) as second:
        second.write_at(0, b"2")
        with contextlib.closing(directory.open("meta", "r+")) as third:
            third.write_at(0, b"3")
            third.sync()
        with pytest.raises(ConflictError):  # seen, as nobody raced
            second.sync()
    assert content_of(directory) == b"3"


@pytest.mark.parametrize("behaviour", ["drops the condition", "knows no mode"])
def test_a_server_that_overwrites_is_found_out(remote, behaviour, monkeypatch):
    remote.conditional = False
    if behaviour == "knows no mode":
        real = remote.pipe_file
        monkeypatch.setattr(remote, "pipe_file", lambda path, value: real(path, value))
    directory = ObjectDirectory(remote, "bucket", updatable={"meta"})
    with pytest.warns(UserWarning, match="only one program"):
        create(directory, data=b"1")
    assert list(remote.store) == ["bucket/meta.0000000001"]  # no probe is left


@pytest.mark.parametrize(
    ("attributes", "environment", "wanted"),
    [
        ({}, {}, True),
        ({"endpoint_url": "https://other"}, {}, False),
        ({"client_kwargs": {"endpoint_url": "https://other"}}, {}, False),
        ({}, {"AWS_ENDPOINT_URL_S3": "https://other"}, False),
    ],
)
def test_servers_that_only_speak_the_protocol_of_s3_are_not_known(attributes, environment, wanted, monkeypatch):
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    client = type("S3FileSystem", (Remote,), {"__module__": "s3fs.core"})()
    vars(client).update(attributes)
    assert Objects(client, "bucket").exclusive() is wanted
    assert Objects(client, "bucket", exclusive=True).exclusive()


def test_the_caller_may_know_better(remote, monkeypatch):
    monkeypatch.delitem(EXCLUSIVE, REMOTE)
    create(ObjectDirectory(remote, "bucket", updatable={"meta"}, exclusive=True), data=b"1")
    with pytest.warns(UserWarning, match="only one program"):
        ObjectDirectory(memory(), "/", updatable={"meta"}, exclusive=False).open("meta", "x")


# Objects from a host that lies.


def test_an_object_reads_back():
    data = encode(2, 30, 7, [(0, 3), (10, 5)], b"abcdefgh")
    length, cut, ranges = decode(data, 2, len(data), "o")
    assert (length, cut) == (30, 7)
    assert [(offset, data[place : place + size]) for offset, size, place in ranges] == [(0, b"abc"), (10, b"defgh")]


def test_every_cut_and_flipped_bit_of_the_table_is_an_error():
    data = encode(2, 30, 7, [(0, 3), (10, 5)], b"abcdefgh")
    table = len(data) - 8
    for size in range(len(data)):
        with pytest.raises(TruncatedError, match="object o"):
            decode(data[:size], 2, size, "o")
    for bit in range(table * 8):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises((FormatError, TruncatedError), match="object o"):
            decode(bytes(damaged), 2, len(data), "o")


@pytest.mark.parametrize(
    ("made", "wanted"),
    [
        (encode(2, 1 << 61, 0, [], b""), "make no sense"),
        (encode(2, 5, 6, [], b""), "make no sense"),
        (encode(2, 30, 0, [(5, 3), (7, 1)], b"abcd"), r"range 7\+1"),
        (encode(2, 30, 0, [(0, 1 << 40)], b""), "range"),
        (encode(2, 30, 0, [(28, 3)], b"abc"), "range"),
        (encode(3, 30, 0, [], b""), "number 3"),
        (b"x" * 200, "not one of version 1"),
    ],
    ids=["size", "cut", "overlap", "long range", "past the end", "number", "no object"],
)
def test_objects_that_make_no_sense(made, wanted):
    with pytest.raises(FormatError, match=wanted):
        decode(made, 2, len(made), "o")


def test_a_count_is_believed_only_up_to_a_limit():
    header = bytearray(encode(2, 30, 0, [], b"")[:64])
    header[12:16] = b"\xff" * 4
    with pytest.raises(FormatError, match="4294967295 ranges"):
        decode(bytes(header), 2, 1 << 40, "o")


def test_missing_and_exchanged_objects_are_named(remote):
    directory = ObjectDirectory(remote, "bucket", updatable={"meta"})
    create(directory, data=b"1")
    with contextlib.closing(directory.open("meta", "r+")) as file:
        for i in range(3):
            file.write_at(i, b"x")
            file.sync()
    whole = dict(remote.store)
    del remote.store["bucket/meta.0000000003"]
    with pytest.raises(TruncatedError, match=r"object remote://bucket/meta\.0000000003: missing"):
        directory.open("meta", "r")
    remote.store.update(whole)
    remote.store["bucket/meta.0000000003"] = whole["bucket/meta.0000000002"]
    with pytest.raises(FormatError, match=r"meta\.0000000003: number 2 .*wanted number 3"):
        directory.open("meta", "r")
    remote.store.update(whole)
    remote.store["bucket/meta.9999999999"] = b""
    with pytest.raises(TruncatedError, match="missing"):
        directory.open("meta", "r")


def test_a_table_longer_than_the_first_read(remote):
    directory = ObjectDirectory(remote, "bucket", updatable={"meta"})
    create(directory, data=b"\1" * 20_000)
    with contextlib.closing(directory.open("meta", "r+")) as file:
        for i in range(0, 20_000, 2):
            file.write_at(i, b"\2")
        file.sync()
    assert content_of(ObjectDirectory(remote, "bucket", updatable={"meta"})) == b"\2\1" * 10_000


# The whole.


def test_sealed_files_on_it(directory):
    key, text = bytes(32), os.urandom(300_000)

    def opened(mode):
        return open_sealed(directory.open("meta", mode), mode, key=key, anchor=NO_FRESHNESS, block_size=4096)

    with opened("x") as file:
        file.write(text)
    with opened("r+") as file:
        file.write(b"changed")
    with opened("r") as file:
        assert file.read() == b"changed" + text[7:]


def test_locations(tmp_path, monkeypatch):
    assert isinstance(open_directory(tmp_path), LocalDirectory)
    assert isinstance(open_directory("C:\\vault"), LocalDirectory)
    directory = open_directory(f"file://{tmp_path}/new", updatable={"meta"}, scratch=tmp_path)
    create(directory, data=b"1")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["meta.0000000001"]
    assert repr(directory) == f"ObjectDirectory('file://{tmp_path}/new')"
    with pytest.raises(UsageError, match="nosuch"):
        open_directory("nosuch://x")
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(MissingDependencyError, match="fsspec") as caught:
        open_directory("memory://x")
    assert caught.value.hint == "pip install 'strongroom[fsspec]'"


def test_nothing_warns_on_known_back_ends(directory):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        create(directory, data=b"1")


# Extents.


def test_extents_against_a_plain_array():
    rng = random.Random(3)  # noqa: S311  # a failure must come back
    for _ in range(50):
        extents, mirror = Extents(), bytearray(60)
        for _ in range(rng.randrange(30)):
            if rng.random() < 0.15:
                size = rng.randrange(60)
                extents.cut(size)
                mirror[size:] = bytes(60 - size)
            else:
                data = rng.randbytes(rng.randrange(1, 15))
                at, skip = rng.randrange(45), rng.randrange(len(data))
                extents.put(Extent(at, at + len(data) - skip, data, skip))
                mirror[at : at + len(data) - skip] = data[skip:]
            start = rng.randrange(60)
            end = rng.randrange(start, 61)
            found = b"".join(
                bytes(p.end - p.start) if p.source is None else p.source[p.at : p.at + p.end - p.start]
                for p in extents.pieces(start, end)
            )
            assert found == mirror[start:end]
            assert sum(e.end - e.start for e in extents) <= 60
