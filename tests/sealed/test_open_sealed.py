"""The sealed file as a file object: modes, content, commits, who may open it."""

import io
import os
import stat
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest

from strongroom.crypto import random_key
from strongroom.errors import (
    ConflictError,
    FormatError,
    LockedError,
    RollbackError,
    StrongroomError,
    TamperedError,
    TruncatedError,
    UsageError,
    WrongKeyError,
)
from strongroom.sealed import NO_FRESHNESS, FileAnchor, MemoryAnchor, PinnedAnchor, Root, SealedFile, open_sealed
from strongroom.sealed.layout import MAX_LENGTH
from strongroom.sealed.opening import open_in
from strongroom.storage import MemoryDirectory, MemoryStorage

KEY = bytes(range(32))
BLOCK = 4096


def sealed(storage, mode, anchor=NO_FRESHNESS, key=KEY) -> SealedFile:
    return open_sealed(storage, mode, key=key, anchor=anchor, block_size=BLOCK)


def stored(content: bytes) -> MemoryStorage:
    storage = MemoryStorage()
    with sealed(storage, "x") as file:
        file.write(content)
    return storage


def content_of(storage: MemoryStorage) -> bytes:
    with sealed(storage, "r") as file:
        return file.read()


@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 85 * BLOCK, 85 * BLOCK + 1, 200 * BLOCK + 7])
def test_reads_back_what_was_written(size):
    content = os.urandom(size)
    storage = stored(content)
    assert content_of(storage) == content
    with sealed(storage, "r") as file:
        assert file.length == size
        assert file.verify() == -(-size // BLOCK)


def test_ciphertext_holds_no_plaintext():
    storage = stored(b"a secret that nobody shall see" * 1000)
    assert b"a secret" not in storage.data
    assert KEY not in storage.data


def test_every_commit_draws_fresh_nonces():
    storage = stored(b"x" * BLOCK)
    first = bytes(storage.data)
    with sealed(storage, "w") as file:
        file.write(b"x" * BLOCK)
    # The same content at another place: no block of ciphertext repeats.
    blocks = [bytes(storage.data[i : i + BLOCK]) for i in range(4 * BLOCK, len(storage.data), BLOCK)]
    assert len(set(blocks)) == len(blocks) == 2
    assert blocks[0] == first[4 * BLOCK : 5 * BLOCK]


def test_numpy_and_zipfile_work(tmp_path):
    array = np.arange(100_000)
    with open_sealed(tmp_path / "a.npz", "x", key=KEY, anchor=NO_FRESHNESS) as file:
        np.savez(file, array=array)
    with open_sealed(tmp_path / "a.npz", key=KEY, anchor=NO_FRESHNESS) as file:
        assert (np.load(file)["array"] == array).all()
        file.seek(0)
        assert zipfile.ZipFile(file).namelist() == ["array.npy"]


def test_text_wrapper_works():
    storage = MemoryStorage()
    with io.TextIOWrapper(sealed(storage, "x"), encoding="utf-8") as text:
        text.write("höhe\n")
    assert content_of(storage) == "höhe\n".encode()


def test_seek_and_partial_writes():
    storage = stored(bytes(10 * BLOCK))
    with sealed(storage, "r+") as file:
        assert file.seek(-5, os.SEEK_END) == 10 * BLOCK - 5
        file.write(b"0123456789")
        file.seek(BLOCK - 1)
        file.write(b"ab")
        assert file.tell() == BLOCK + 1
        file.seek(-1, os.SEEK_CUR)
        assert file.read(2) == b"b\0"
        with pytest.raises(ValueError, match="position"):
            file.seek(-1)
    assert content_of(storage)[-10:] == b"0123456789"


def test_write_takes_any_buffer():
    storage = MemoryStorage()
    with sealed(storage, "x") as file:
        file.write(np.arange(3, dtype="<u4"))
    assert content_of(storage) == bytes([0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0])


def test_a_hole_takes_no_space():
    storage = MemoryStorage()
    with sealed(storage, "x") as file:
        file.seek(1 << 40)
        file.write(b"end")
    assert storage.size() < 20 * BLOCK
    with sealed(storage, "r") as file:
        assert file.length == (1 << 40) + 3
        file.seek(1 << 39)
        assert file.read(10) == bytes(10)
        file.seek(1 << 40)
        assert file.read() == b"end"
        assert file.verify() == 1


def test_truncate_forgets_what_it_cuts():
    storage = stored(b"x" * (100 * BLOCK))
    with sealed(storage, "r+") as file:
        file.truncate(BLOCK + 10)
        file.truncate(3 * BLOCK)
    assert content_of(storage) == b"x" * (BLOCK + 10) + bytes(2 * BLOCK - 10)


def test_dead_blocks_are_used_again_and_given_back():
    storage = stored(b"x" * (100 * BLOCK))
    sizes = []
    for _ in range(6):
        with sealed(storage, "r+") as file:
            file.write(b"y" * (100 * BLOCK))
        sizes.append(storage.size())
    assert sizes[-1] == sizes[2] <= 4 * stored(b"x" * (100 * BLOCK)).size()
    with sealed(storage, "w") as file:
        file.commit()
        file.write(b"small")
        file.commit()
        file.write(b"small")
    assert storage.size() < 30 * BLOCK + sizes[0]


def test_nothing_counts_before_the_commit():
    storage = stored(b"old")
    file = sealed(storage, "r+")
    file.write(b"new")
    assert content_of(MemoryStorage(storage.data)) == b"old"
    file.commit()
    assert content_of(MemoryStorage(storage.data)) == b"new"
    file.discard()


def test_the_version_before_the_newest_stays_whole():
    storage = stored(b"1" * (20 * BLOCK))
    with sealed(storage, "w") as file:
        file.write(b"2" * (20 * BLOCK))
    file = sealed(storage, "r+")
    file.write(b"3" * (20 * BLOCK))
    before = MemoryStorage(storage.data)
    before.write_at(2 * 4096, bytes(2 * 4096))  # both slots of the newest
    assert content_of(before) == b"1" * (20 * BLOCK)
    file.discard()


def test_an_exception_discards(tmp_path):
    storage = stored(b"old")
    with pytest.raises(RuntimeError), sealed(storage, "r+") as file:
        file.write(b"new")
        raise RuntimeError
    assert content_of(storage) == b"old"
    with pytest.raises(RuntimeError), open_sealed(tmp_path / "f", "x", key=KEY, anchor=NO_FRESHNESS):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_file_forgotten_is_not_committed():
    storage = stored(b"old")
    file = sealed(storage, "r+")
    file.write(b"new")
    with pytest.warns(ResourceWarning, match="not closed, so not committed"):
        del file
    assert content_of(storage) == b"old"


def test_roots_count_commits_and_differ():
    storage = MemoryStorage()
    with sealed(storage, "x") as file:
        assert file.root is None
        first = file.commit()
        assert file.commit() == first == file.root  # nothing was changed
        file.write(b"1")
        second = file.commit()
    assert (first.sequence, second.sequence) == (1, 2)
    assert first.digest != second.digest
    with sealed(storage, "r") as file:
        assert file.root == second


def test_root_has_one_text_form():
    root = Root(7, bytes(range(32)))
    assert Root.parse(str(root)) == root
    good = str(root)
    numbers = ["0" + good, "+" + good, good.replace("7:", "0:"), "9" * 20 + good]
    for bad in ["", "7", good[:-1], good + "0", good.upper(), *numbers]:
        with pytest.raises(FormatError, match="root"):
            Root.parse(bad)


def test_wrong_key_is_told_before_anything_else():
    storage = stored(b"content")
    with pytest.raises(WrongKeyError, match="another key"):
        sealed(storage, "r", key=random_key())
    storage.resize(5000)
    with pytest.raises(WrongKeyError):
        sealed(storage, "r", key=random_key())
    with pytest.raises(TruncatedError, match="5000 bytes, wanted at least"):
        sealed(storage, "r")


def test_wrong_key_does_not_replace():
    storage = stored(b"content")
    with pytest.raises(WrongKeyError):
        sealed(storage, "w", key=random_key())
    assert content_of(storage) == b"content"


@pytest.mark.parametrize("content", [b"", b"plain text", bytes(20_000), os.urandom(20_000)])
def test_not_a_sealed_file(content):
    with pytest.raises(FormatError, match="not a sealed file"):
        sealed(MemoryStorage(content), "r")


def test_version_of_the_future():
    storage = stored(b"content")
    for slot in range(4):
        storage.data[slot * 4096 + 8] = 9
    with pytest.raises(FormatError, match="version: 9, wanted 1"):
        sealed(storage, "r")


def test_modes(tmp_path):
    path = tmp_path / "f"
    with pytest.raises(FileNotFoundError):
        open_sealed(path, "r", key=KEY, anchor=NO_FRESHNESS)
    with pytest.raises(FileNotFoundError):
        open_sealed(path, "r+", key=KEY, anchor=NO_FRESHNESS)
    with open_sealed(path, "w", key=KEY, anchor=NO_FRESHNESS) as file:
        file.write(b"1")
    with pytest.raises(FileExistsError):
        open_sealed(path, "x", key=KEY, anchor=NO_FRESHNESS)
    with open_sealed(path, "w", key=KEY, anchor=NO_FRESHNESS) as file:
        assert file.read() == b""
    with open_sealed(path, "r", key=KEY, anchor=NO_FRESHNESS) as file:
        assert (file.readable(), file.writable(), file.seekable()) == (True, False, True)
        with pytest.raises(io.UnsupportedOperation):
            file.write(b"1")
        with pytest.raises(io.UnsupportedOperation):
            file.commit()
    with pytest.raises(ValueError, match="closed"):
        file.read()
    with pytest.raises(UsageError, match="mode"):
        open_sealed(path, "a", key=KEY, anchor=NO_FRESHNESS)  # type: ignore[arg-type]


def test_arguments_are_checked():
    with pytest.raises(UsageError, match="31 bytes, wanted 32"):
        sealed(MemoryStorage(), "x", key=KEY[:31])
    with pytest.raises(FormatError, match="block size: 5000"):
        open_sealed(MemoryStorage(), "x", key=KEY, anchor=NO_FRESHNESS, block_size=5000)
    with sealed(MemoryStorage(), "x") as file, pytest.raises(UsageError, match="length"):
        file.truncate(MAX_LENGTH + 1)


def test_one_writer(tmp_path):
    path = tmp_path / "f"
    with open_sealed(path, "x", key=KEY, anchor=NO_FRESHNESS) as writer:
        with pytest.raises(LockedError, match="in use by another opener"):
            open_sealed(path, "r+", key=KEY, anchor=NO_FRESHNESS)
        with pytest.raises(LockedError, match="being written"):
            open_sealed(path, "r", key=KEY, anchor=NO_FRESHNESS)
        writer.commit()
        with pytest.raises(LockedError, match="in use by another opener"):
            open_sealed(path, "w", key=KEY, anchor=NO_FRESHNESS)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


class NoLocks(MemoryDirectory):
    """A platform without byte locks: its plain openers exclude each other."""

    def open(self, name, mode, *, shared=False):
        handle = super().open(name, mode, shared=shared)
        handle.close, handle.locks = handle.locks.close, None
        return handle


def test_without_byte_locks_readers_and_a_writer_exclude_each_other():
    directory = NoLocks()

    def open_it(mode):
        return open_in(directory, "f", mode, KEY, NO_FRESHNESS, BLOCK, what="f")

    with open_it("x") as writer:
        writer.write(b"1")
        writer.commit()
        for mode in ("r", "r+", "w"):
            with pytest.raises(LockedError, match="f: in use by another opener"):
                open_it(mode)
    readers = [open_it("r") for _ in range(2)]
    with pytest.raises(LockedError):
        open_it("w")
    for reader in readers:
        assert reader.read() == b"1"
        reader.close()
    open_it("w").close()


def test_block_size_is_the_files_own():
    storage = MemoryStorage()
    with open_sealed(storage, "x", key=KEY, anchor=NO_FRESHNESS, block_size=1 << 20) as file:
        file.write(b"x" * 3_000_000)
    assert content_of(storage) == b"x" * 3_000_000


def test_threads_may_read_one_file():
    content = os.urandom(64 * BLOCK)
    storage = stored(content)
    wrong = []
    with sealed(storage, "r") as file:

        def read(start: int) -> None:
            for i in range(start, start + 200):
                at = i * 977 % len(content)
                buffer = bytearray(BLOCK)
                count = file.read_at(at, buffer)
                if buffer[:count] != content[at : at + BLOCK]:
                    wrong.append(at)

        threads = [threading.Thread(target=read, args=(i * 50,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


class FailingSync(MemoryStorage):
    fail = False

    def sync(self) -> None:
        if self.fail:
            raise OSError(5, "input/output error")


def test_a_failed_sync_poisons_the_handle():
    storage = FailingSync()
    file = sealed(storage, "x")
    file.commit()
    file.write(b"1")
    storage.fail = True
    with pytest.raises(OSError, match="input/output"):
        file.commit()
    storage.fail = False
    with pytest.raises(StrongroomError, match="an earlier write or commit failed"):
        file.commit()
    with pytest.raises(StrongroomError, match="an earlier write or commit failed"):
        file.close()  # no failed commit passes for a success
    assert file.closed
    assert content_of(storage) == b""


def test_half_a_write_is_not_committed():
    storage = stored(b"x" * (90 * BLOCK))
    file = sealed(storage, "r+")
    storage.data[4 * BLOCK : 100 * BLOCK] = bytes(len(storage.data[4 * BLOCK : 100 * BLOCK]))
    file.seek(90 * BLOCK - 10)
    with pytest.raises(TamperedError):
        file.write(b"y" * (10_000 * BLOCK))
    with pytest.raises(StrongroomError, match="an earlier write or commit failed"):
        file.commit()
    file.discard()


# Freshness.


def test_anchor_follows_and_accepts():
    anchor, storage = MemoryAnchor(), MemoryStorage()
    with sealed(storage, "x", anchor) as file:
        file.write(b"1")
        assert anchor.read() is None
        assert file.commit() == anchor.read()
        file.write(b"2")
    with sealed(storage, "r", anchor) as file:
        assert file.root == anchor.read() == Root.parse(str(file.root))
        assert file.root.sequence == 2


def test_older_version_is_refused():
    anchor, storage = MemoryAnchor(), MemoryStorage()
    with sealed(storage, "x", anchor) as file:
        file.write(b"1")
    old = bytes(storage.data)
    for content in (b"2", b"3"):
        with sealed(storage, "w", anchor) as file:
            file.write(content)
    for mode in ("r", "r+", "w"):
        with pytest.raises(RollbackError, match=r"root 1:[0-9a-f]{64}, wanted 3:[0-9a-f]{64}"):
            sealed(MemoryStorage(old), mode, anchor)
    assert content_of(MemoryStorage(old)) == b"1"  # NO_FRESHNESS, as asked


def test_a_commit_that_missed_the_anchor_is_taken_in():
    anchor, storage = MemoryAnchor(), MemoryStorage()
    with sealed(storage, "x", anchor) as file:
        first = file.commit()
        file.write(b"1")
    behind = MemoryAnchor(first)
    with sealed(storage, "r", behind) as file:
        assert file.read() == b"1"
    assert behind.read() == anchor.read()
    with sealed(storage, "r+", anchor) as file:
        file.commit()
        file.write(b"22")
    with pytest.raises(RollbackError):  # one commit may miss it, not two
        sealed(storage, "r", MemoryAnchor(first))


def test_a_fork_is_refused():
    anchor, storage = MemoryAnchor(), MemoryStorage()
    with sealed(storage, "x", anchor) as file:
        file.write(b"1")
    fork = MemoryStorage(storage.data)
    with sealed(fork, "w") as file:
        file.write(b"fork")
    with sealed(storage, "w", anchor) as file:
        file.write(b"2")
    with pytest.raises(RollbackError):
        sealed(fork, "r", anchor)


def test_a_deleted_file_cannot_be_made_anew_behind_the_anchor():
    anchor = MemoryAnchor()
    sealed(MemoryStorage(), "x", anchor).close()
    with pytest.raises(RollbackError, match="is new, but the anchor holds 1:"):
        sealed(MemoryStorage(), "w", anchor)


def test_an_empty_anchor_accepts_no_history():
    storage = stored(b"1")
    with sealed(storage, "w") as file:
        file.write(b"2")
    with pytest.raises(RollbackError, match="the anchor is empty"):
        sealed(storage, "r", MemoryAnchor())


def test_two_writers_of_one_anchor_conflict():
    anchor = MemoryAnchor()
    one, two = sealed(MemoryStorage(), "x", anchor), sealed(MemoryStorage(), "x", anchor)
    one.commit()
    with pytest.raises(ConflictError, match="anchor: holds 1:"):
        two.commit()
    with pytest.raises(StrongroomError, match="an earlier write or commit failed"):
        two.commit()
    one.close()
    two.discard()


class SilentAnchor(MemoryAnchor):
    silent = False

    def advance(self, old, new):
        if self.silent:
            raise TimeoutError("no answer")
        super().advance(old, new)


def test_an_undecided_commit_is_finished_by_the_next():
    anchor, storage = SilentAnchor(), MemoryStorage()
    file = sealed(storage, "x", anchor)
    anchor.silent = True
    with pytest.raises(TimeoutError):
        file.commit()
    file.write(b"more")
    anchor.silent = False
    assert file.commit().sequence == 2
    assert anchor.read() == file.root
    file.close()


def test_pinned_anchor_takes_exactly_one_root():
    storage = stored(b"1")
    with sealed(storage, "r+") as file:
        old = file.root
        file.write(b"2")
    with sealed(storage, "r") as file:
        now = file.root
    sealed(storage, "r", PinnedAnchor(now)).close()
    with pytest.raises(RollbackError):
        sealed(storage, "r", PinnedAnchor(old))


def test_file_anchor(tmp_path: Path):
    anchor = FileAnchor(tmp_path / "anchor")
    assert anchor.read() is None
    one, two = Root(1, bytes(32)), Root(2, bytes(32))
    anchor.advance(None, one)
    anchor.advance(None, one)  # a lost answer
    with pytest.raises(ConflictError, match=r"holds 1:0+, wanted no root"):
        anchor.advance(None, two)
    anchor.advance(one, two)
    assert FileAnchor(tmp_path / "anchor").read() == two
    assert sorted(p.name for p in tmp_path.iterdir()) == ["anchor", "anchor.lock"]
    (tmp_path / "anchor.new").write_text("left by a crash")
    anchor.advance(two, Root(3, bytes(32)))
    (tmp_path / "anchor").write_text("1:abc\n")
    with pytest.raises(FormatError, match="not an anchor file"):
        anchor.read()


def test_a_link_of_the_callers_own_is_followed(tmp_path):
    (tmp_path / "store").mkdir()
    anchor = FileAnchor(tmp_path / "anchor")
    with open_sealed(tmp_path / "store" / "file", "x", key=bytes(32), anchor=anchor) as file:
        file.write(b"content")
    (tmp_path / "link").symlink_to("store/file")
    with open_sealed(tmp_path / "link", key=bytes(32), anchor=anchor) as file:
        assert file.read() == b"content"
        assert file.name == str(tmp_path / "link")


def test_an_anchor_of_something_else_is_not_begun_by_a_reader(tmp_path):
    anchor = FileAnchor(tmp_path / "anchor")
    with open_sealed(tmp_path / "file", "x", key=bytes(32), anchor=anchor) as file:
        file.write(b"content")
    with pytest.raises(RollbackError, match="the anchor is empty"):
        open_sealed(tmp_path / "file", key=bytes(32), anchor=FileAnchor(tmp_path / "mistyped"))
    assert not (tmp_path / "mistyped").exists()


@pytest.mark.parametrize(("key", "anchor"), [("k.key", MemoryAnchor()), (bytes(32), "anchor"), (bytes(32), None)])
def test_arguments_of_other_types(tmp_path, key, anchor):
    with pytest.raises(UsageError, match="wanted") as caught:
        open_sealed(tmp_path / "file", "x", key=key, anchor=anchor)
    assert caught.value.hint
