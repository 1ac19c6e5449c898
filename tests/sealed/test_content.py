"""The bytes of one block tree: against a bytearray, with older versions that stay whole, new keys, and compaction."""

import errno
import os
from array import array

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from strongroom.crypto import BlockCipher
from strongroom.errors import StrongroomError, TamperedError, TruncatedError, UsageError, WrongKeyError
from strongroom.sealed import threads as threads_module
from strongroom.sealed.content import Content, Version
from strongroom.sealed.layout import HOLE, MAX_LENGTH
from strongroom.storage import MemoryStorage

FILE = bytes(range(16))
CIPHERS = {generation: BlockCipher(bytes([generation]) * 32) for generation in range(4)}
BLOCK = 4096
LIMIT = 300 * BLOCK  # three levels


def content(storage, version=None, **options) -> Content:
    options = {"slots": False, "what": "content", "block_size": BLOCK, "ciphers": CIPHERS} | options
    return Content(storage, options.pop("ciphers"), FILE, options.pop("block_size"), version, **options)


def commit(file: Content, held=()) -> Version:
    version = file.prepare()
    file.committed(version)
    file.hold(held)
    return version


def written(data: bytes, **options) -> tuple[MemoryStorage, Version]:
    storage = MemoryStorage()
    file = content(storage, **options)
    file.write_at(0, data)
    return storage, commit(file)


def read(file: Content, offset: int = 0, size: int | None = None) -> bytes:
    buffer = bytearray(file.length if size is None else size)
    return bytes(buffer[: file.read_at(offset, buffer)])


aligned = st.integers(0, LIMIT // BLOCK).map(lambda n: n * BLOCK)
offsets = st.one_of(st.integers(0, LIMIT), aligned, st.integers(0, 3 * BLOCK))
sizes = st.one_of(st.integers(0, 100), st.sampled_from([BLOCK - 1, BLOCK, BLOCK + 1]), st.integers(0, 100 * BLOCK))

flag = st.booleans()


class ContentMachine(RuleBasedStateMachine):
    """`now` is what it should hold, `versions` what each version that has to stay whole holds, the newest last."""

    @initialize(
        slots=st.booleans(), write_early=st.booleans(), clear=st.booleans(), cache=st.sampled_from([0, 1 << 20])
    )
    def create(self, slots, write_early, clear, cache):
        self.options = {"slots": slots, "write_early": write_early, "authenticated_only": clear, "cache": cache}
        self.storage, self.now, self.generation, self.fill = MemoryStorage(), bytearray(), 0, 0
        self.versions: list[tuple[Version | None, bytes]] = [(None, b"")]
        self.open()

    def open(self):
        *held, (newest, data) = self.versions
        self.file = content(
            self.storage,
            newest,
            held=[version for version, _ in held],
            generation=self.generation,
            **self.options,
        )
        self.now = bytearray(data)
        self.resting = bytes(self.storage.data)

    @rule(offset=offsets, size=sizes)
    def write(self, offset, size):
        self.fill = self.fill % 255 + 1
        data = bytes([self.fill]) * size
        self.file.write_at(offset, data)
        if size:
            self.now.extend(bytes(max(0, offset - len(self.now))))
            self.now[offset : offset + size] = data

    @rule(offset=offsets, size=sizes)
    def read(self, offset, size):
        assert read(self.file, offset, size) == self.now[offset : offset + size]

    @rule(blocks=st.lists(st.integers(0, LIMIT // BLOCK), unique=True, max_size=20), data=st.data())
    def read_blocks(self, blocks, data):
        rows = data.draw(st.permutations(range(len(blocks) + 1)))[: len(blocks)]
        out = bytearray(b"?" * (len(blocks) + 1) * BLOCK)
        expected = bytearray(out)
        self.file.read_blocks(blocks, out, rows)
        for block, row in zip(blocks, rows, strict=True):
            expected[row * BLOCK : (row + 1) * BLOCK] = self.now[block * BLOCK :][:BLOCK].ljust(BLOCK, b"\0")
        assert out == expected

    @rule(size=offsets)
    def truncate(self, size):
        self.file.truncate(size)
        del self.now[size:]
        self.now.extend(bytes(size - len(self.now)))

    @rule(offset=offsets, size=sizes)
    def punch(self, offset, size):
        self.file.punch(offset, size)
        stop = min(offset + size, len(self.now))
        self.now[offset:stop] = bytes(max(0, stop - offset))

    @rule(between=st.booleans())
    def commit(self, between):
        data, version = bytes(self.now), self.file.prepare()
        if between and self.now:
            self.file.write_at(len(self.now) // 2, b"between")
            self.now[len(self.now) // 2 :][:7] = b""
            self.now[len(self.now) // 2 : len(self.now) // 2 + 7] = b"between"
        self.file.committed(version)
        assert self.file.changed == (between and len(data) > 0)
        if version != self.versions[-1][0]:
            self.versions.append((version, data))
        if self.versions[0][0] is None:
            del self.versions[0]
        self.resting = bytes(self.storage.data)

    @rule()
    def prepare_and_give_up(self):
        self.file.prepare()
        self.resting = bytes(self.storage.data)

    @rule(data=st.data())
    def hold(self, data):
        *held, newest = self.versions
        held = [version for version in held if data.draw(st.booleans())]
        self.file.hold([version for version, _ in held])
        self.versions = [*held, newest]

    @rule()
    def reopen(self):
        self.file.close()
        self.open()

    @rule()
    def change_key(self):
        self.file.close()
        self.generation = (self.generation + 1) % 4
        self.open()
        left = self.file.rekey_step(0)
        while left:
            left, before = self.file.rekey_step(7), left
            assert left == max(0, before - 7)
        assert self.file.rekey_step(10) == 0
        self.commit(between=False)
        assert self.file.generations() <= {self.generation}

    @rule(limit=st.sampled_from([1, 20, 1000]))
    def compact(self, limit):
        for _ in range(1000):
            moved = self.file.compact(limit)
            assert moved <= limit
            if moved == 0:
                break
        else:
            pytest.fail("compaction does not end")

    @invariant()
    def all_versions_are_whole(self):
        if not hasattr(self, "file"):
            return
        assert self.file.length == len(self.now)
        if not self.options["write_early"]:
            assert self.storage.data == self.resting
        version, data = self.versions[len(self.now) % len(self.versions)]
        if version:
            assert read(content(MemoryStorage(self.storage.data), version, **self.options)) == data

    def teardown(self):
        if hasattr(self, "file"):
            for version, data in self.versions:
                if version:
                    other = content(MemoryStorage(self.storage.data), version, **self.options)
                    assert read(other) == data
                    other.verify()
            assert self.file.scrub().problems == []


TestContent = ContentMachine.TestCase
TestContent.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)


def test_a_content_without_slots_begins_at_byte_0():
    storage, version = written(b"x" * BLOCK)
    assert storage.size() == BLOCK
    assert version.places == 2
    storage, version = written(b"x" * BLOCK, slots=True)
    assert storage.size() == 5 * BLOCK
    assert version.places == 5


def test_an_empty_content_has_a_version():
    file = content(MemoryStorage())
    assert not file.changed
    assert commit(file) == Version(HOLE, 0, 1)
    assert file.prepare() == Version(HOLE, 0, 1)
    assert file.verify() == 0


def test_only_the_version_prepared_last_can_be_committed():
    file = content(MemoryStorage())
    file.write_at(0, b"1")
    version = file.prepare()
    file.write_at(0, b"2")
    assert file.prepare() != version
    with pytest.raises(ValueError, match="not the one that was prepared last"):
        file.committed(version)


def test_places_of_a_version_no_longer_held_are_used_again():
    storage, first = written(os.urandom(100 * BLOCK))
    file = content(storage, first)
    sizes = []
    for fill in range(6):
        file.write_at(0, bytes([fill]) * (100 * BLOCK))
        commit(file)
        sizes.append(storage.size() // BLOCK)
    assert sizes == [206] * 6
    file.hold([first])  # gone already: it holds nothing that was not reused
    file.truncate(BLOCK)
    commit(file)
    commit(file)
    assert storage.size() <= 105 * BLOCK


def test_a_damaged_version_holds_nothing():
    storage, first = written(os.urandom(100 * BLOCK))
    file = content(storage, first)
    file.write_at(0, bytes(100 * BLOCK))
    second = commit(file, [first])
    storage.data[102 * BLOCK - 1] ^= 1  # an interior block of the first
    file = content(storage, second, held=[first])
    assert [problem.level for problem in file.scrub().problems] == [1]
    file.write_at(0, b"x")
    commit(file)
    assert storage.size() <= 206 * BLOCK


def test_arguments_are_checked():
    file = content(MemoryStorage())
    for wrong in (lambda: file.truncate(-1), lambda: file.truncate(MAX_LENGTH + 1), lambda: file.punch(-1, 1)):
        with pytest.raises(UsageError):
            wrong()
    with pytest.raises(UsageError, match="length"):
        file.write_at(MAX_LENGTH, b"1")
    for wrong in (lambda: file.write_at(-1, b"1"), lambda: file.read_at(-1, bytearray(1))):
        with pytest.raises(UsageError, match="offset: -1"):
            wrong()
    file.write_at(0, b"")
    assert not file.changed
    file.close()
    with pytest.raises(ValueError, match="closed"):
        file.read_at(0, bytearray(1))


class Failing(MemoryStorage):
    """Its writes at or behind `after` fail with `error`; None: none do."""

    def __init__(self, error: int | None, after: int = 0) -> None:
        super().__init__()
        self.error = error
        self.after = after

    def write_at(self, offset, data):
        if self.error and offset >= self.after:
            raise OSError(self.error, os.strerror(self.error))
        super().write_at(offset, data)


def test_a_failed_write_poisons():
    file = content(Failing(errno.EIO))
    with pytest.raises(OSError, match="Input/output"):
        file.write_at(0, bytes(BLOCK))
    assert file.poisoned
    with pytest.raises(StrongroomError, match="an earlier write or commit failed"):
        file.prepare()
    late = content(Failing(errno.EIO), write_early=False)
    late.write_at(0, bytes(3 * BLOCK))
    assert late.dirty == 3 * BLOCK
    with pytest.raises(OSError, match="Input/output"):
        late.prepare()
    assert late.poisoned


@pytest.mark.parametrize("early", [True, False])
def test_a_full_disk_can_be_written_once_there_is_room(early):
    data = os.urandom(40 * BLOCK)
    storage = Failing(None)
    file = content(storage, write_early=early)
    file.write_at(0, data)
    file.committed(file.prepare())
    storage.error, storage.after = errno.ENOSPC, 60 * BLOCK
    try:
        file.write_at(30 * BLOCK, data * 3)
        file.prepare()
    except OSError as error:
        assert error.errno == errno.ENOSPC
    assert not file.poisoned
    assert file.length == (40 if early else 150) * BLOCK
    assert read(file)[: 30 * BLOCK] == data[: 30 * BLOCK]
    storage.error = None
    file.write_at(30 * BLOCK, data)
    file.truncate(70 * BLOCK)
    file.truncate(72 * BLOCK)
    file.committed(file.prepare())
    assert read(file) == data[: 30 * BLOCK] + data + bytes(2 * BLOCK)


def test_reads_and_changes_of_many_blocks_share_the_cache():
    data = bytearray(os.urandom(64 * BLOCK))
    storage, version = written(bytes(data))
    file = content(storage, version)
    for offset in range(100, 64 * BLOCK, 5 * BLOCK):
        file.write_at(offset, b"changed")
        data[offset : offset + 7] = b"changed"
        assert read(file) == data
    assert file.dirty > 0


@pytest.mark.parametrize("clear", [False, True])
@pytest.mark.parametrize(
    "buffer", [bytearray, lambda size: memoryview(bytearray(size)), lambda size: array("I", bytes(size))]
)
def test_one_block_into_any_buffer(clear, buffer):
    data = os.urandom(100 * BLOCK + 5)
    storage, version = written(data, authenticated_only=clear)
    file = content(storage, version, authenticated_only=clear)
    for offset in (0, 7 * BLOCK, 99 * BLOCK, 99 * BLOCK + 5, 100 * BLOCK):
        out = buffer(BLOCK)
        assert file.read_at(offset, out) == min(BLOCK, len(data) - offset)
        assert bytes(out) == data[offset : offset + BLOCK].ljust(BLOCK, b"\0")
    storage.data[7 * BLOCK + 5] ^= 1
    out = buffer(BLOCK)
    memoryview(out).cast("B")[:] = b"?" * BLOCK
    with pytest.raises(TamperedError, match="block 7 of level 0"):
        file.read_at(7 * BLOCK, out)
    assert bytes(out) == bytes(BLOCK)
    with pytest.raises((TypeError, BufferError)):
        file.read_at(0, bytes(BLOCK))


@pytest.mark.parametrize("clear", [False, True])
def test_of_several_blocks_one_was_changed(clear):
    data = os.urandom(100 * BLOCK)
    storage, version = written(data, authenticated_only=clear)
    storage.data[7 * BLOCK + 5] ^= 1
    file = content(storage, version, authenticated_only=clear)
    out = bytearray(b"?" * 5 * BLOCK)
    with pytest.raises(TamperedError, match="block 7 of level 0"):
        file.read_blocks([50, 7, 3], out, [4, 0, 2])
    assert out == bytes(BLOCK) + b"?" * BLOCK + bytes(BLOCK) + b"?" * BLOCK + bytes(BLOCK)
    file.read_blocks([50, 3], out)
    assert out[: 2 * BLOCK] == data[50 * BLOCK : 51 * BLOCK] + data[3 * BLOCK : 4 * BLOCK]
    file.read_blocks([], out)
    for blocks, rows in (([-1], [0]), ([1], [-1]), ([1], [5]), ([1, 2], [0])):
        with pytest.raises(UsageError, match="rows"):
            file.read_blocks(blocks, out, rows)


# Long transfers, which threads share.

LONG = 64 << 10


@pytest.fixture(params=[1, 2, 4])
def threads(request, monkeypatch):
    monkeypatch.setattr(threads_module, "_THREADS", request.param)
    monkeypatch.setattr(threads_module, "_executor", None)
    yield request.param
    if threads_module._executor:
        threads_module._executor.shutdown()


@pytest.mark.parametrize("clear", [False, True])
def test_long_transfers(threads, clear):
    data = os.urandom((9 << 20) + 12345)
    storage, version = written(data, block_size=LONG, authenticated_only=clear)
    file = content(storage, version, block_size=LONG, authenticated_only=clear)
    assert read(file) == data
    assert read(file, 1000, 5 << 20) == data[1000 : 1000 + (5 << 20)]
    assert file.verify() == -(-len(data) // LONG)
    file.write_at(LONG * 3, data[: 5 << 20])
    file.punch(LONG * 7, LONG * 5)
    expected = bytearray(data)
    expected[LONG * 3 : LONG * 3 + (5 << 20)] = data[: 5 << 20]
    expected[LONG * 7 : LONG * 12] = bytes(LONG * 5)
    assert read(file) == expected
    assert read(content(storage, commit(file), block_size=LONG, authenticated_only=clear)) == expected


@pytest.mark.parametrize("clear", [False, True])
@pytest.mark.parametrize("block", [0, 50, 77, 127])
def test_a_block_changed_within_a_long_transfer(threads, clear, block):
    data = os.urandom(128 * LONG)
    storage, version = written(data, block_size=LONG, authenticated_only=clear)
    file = content(storage, version, block_size=LONG, authenticated_only=clear)
    backwards = bytearray(128 * LONG)
    file.read_blocks(range(128), backwards, range(127, -1, -1))
    assert backwards == b"".join(data[at : at + LONG] for at in range(127 * LONG, -1, -LONG))
    storage.data[block * LONG + 5] ^= 1
    with pytest.raises(TamperedError, match=f"block {block} of level 0: authentication failed"):
        file.read_blocks(range(128), backwards, range(127, -1, -1))
    assert backwards == bytes(128 * LONG)
    buffer = bytearray(b"?" * (128 * LONG))
    with pytest.raises(TamperedError, match=f"block {block} of level 0: authentication failed"):
        file.read_at(0, buffer)
    assert buffer == bytes(128 * LONG)
    with pytest.raises(TamperedError):
        file.verify()
    storage.resize(100 * LONG)
    with pytest.raises((TamperedError, TruncatedError)):
        file.read_at(0, buffer)


def test_a_failed_long_write_poisons(threads):
    file = content(Failing(errno.EIO, 20 * LONG), block_size=LONG)
    with pytest.raises(OSError, match="Input/output"):
        file.write_at(0, bytes(128 * LONG))
    assert file.poisoned


def test_a_full_disk_in_a_long_write(threads):
    storage = Failing(errno.ENOSPC, 20 * LONG)
    file = content(storage, block_size=LONG)
    with pytest.raises(OSError, match="No space"):
        file.write_at(0, bytes(128 * LONG))
    assert (file.poisoned, file.length) == (False, 0)
    storage.error = None
    file.write_at(0, b"x" * (50 * LONG))
    file.committed(file.prepare())
    assert read(file) == b"x" * (50 * LONG)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_transfers_too(monkeypatch):
    monkeypatch.setattr(threads_module, "_THREADS", 2)
    data = os.urandom(4 << 20)
    storage, version = written(data, block_size=LONG)
    child = os.fork()
    if child == 0:
        os._exit(read(content(storage, version, block_size=LONG)) != data)
    assert os.waitpid(child, 0)[1] == 0


def test_without_more_threads_one_does_the_work(monkeypatch):
    def none_left():
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threads_module, "_THREADS", 2)
    monkeypatch.setattr(threads_module, "_pool", none_left)
    data = os.urandom(4 << 20)
    storage, version = written(data, block_size=LONG)
    assert read(content(storage, version, block_size=LONG)) == data


# Authenticated only.


def test_authenticated_only_blocks_can_be_read_in_place():
    data = os.urandom(100 * BLOCK)
    storage, version = written(data, authenticated_only=True)
    assert data in bytes(storage.data)
    assert read(content(storage, version, authenticated_only=True)) == data


@pytest.mark.parametrize("at", [*range(0, 103 * BLOCK, 3001), 103 * BLOCK - 1])
def test_every_bit_of_an_authenticated_block_counts(at):
    storage, version = written(b"x" * (100 * BLOCK), authenticated_only=True)
    storage.data[at] ^= 1 << at % 8
    file = content(storage, version, authenticated_only=True)
    buffer = bytearray(100 * BLOCK)
    with pytest.raises(TamperedError):
        file.read_at(0, buffer)
    assert not any(buffer)


def test_the_flag_cannot_be_stripped_or_added():
    for clear in (False, True):
        storage, version = written(b"x" * BLOCK, authenticated_only=clear)
        with pytest.raises(TamperedError):
            read(content(storage, version, authenticated_only=not clear))


# Keys.


def test_new_keys_in_steps():
    data = os.urandom(200 * BLOCK)
    storage, old = written(data)
    file = content(storage, old, generation=1)
    assert file.generations() == {0}
    left, commits = file.rekey_step(50), []
    while left:
        commits.append(commit(file))
        assert file.generations() == {0, 1}
        left = file.rekey_step(50)
    new = commit(file)
    assert len(commits) == 4
    assert file.generations() == {1}
    assert read(content(storage, new, ciphers={1: CIPHERS[1]}, generation=1)) == data
    with pytest.raises(WrongKeyError, match=r"key generation 1, wanted one of \[0\]"):
        read(content(storage, new, ciphers={0: CIPHERS[0]}))


def test_the_generation_is_bound():
    """Who swaps the key of a pointer must forge the block above; the root pointer is the slot's."""
    storage, version = written(b"x")
    forged = Version(version.pointer[:7] + b"\1" + version.pointer[8:], version.length, version.places)
    with pytest.raises(TamperedError):
        read(content(storage, forged))


# Compaction and scrubbing.


def test_compaction_gives_back_what_was_punched():
    data = bytearray(os.urandom(400 * BLOCK))
    storage, version = written(bytes(data))
    file = content(storage, version)
    for block in range(0, 400, 2):
        file.punch(block * BLOCK, BLOCK)
        data[block * BLOCK : (block + 1) * BLOCK] = bytes(BLOCK)
    commit(file)
    assert storage.size() > 400 * BLOCK
    while file.compact(60):
        commit(file)
    commit(file)
    assert storage.size() < 220 * BLOCK
    assert file.compact(60) == 0
    assert read(file) == data
    file.verify()


def test_compaction_never_decrypts():
    storage, version = written(os.urandom(200 * BLOCK))
    file = content(storage, version)
    file.punch(0, 150 * BLOCK)
    commit(file)
    storage.data[180 * BLOCK] ^= 1
    assert file.compact(1000) > 20
    commit(file)
    assert [problem.index for problem in file.scrub().problems] == [180]  # moved as it is, and still seen


def test_scrub_counts_and_goes_on():
    storage, first = written(os.urandom(100 * BLOCK))
    file = content(storage, first)
    file.write_at(0, os.urandom(10 * BLOCK))
    file.truncate(150 * BLOCK)
    second = commit(file, [first])
    clean = file.scrub()
    assert (clean.blocks, clean.holes, clean.unreachable_places, clean.problems) == (110, 50, 0, [])
    file.hold([])
    assert file.scrub().unreachable_places == 12
    for place in (1, 50, 60):
        storage.data[place * BLOCK] ^= 1
    found = content(storage, second, held=[first]).scrub()
    assert sorted((problem.level, problem.index) for problem in found.problems) == [(0, 1), (0, 50), (0, 60)]
    assert all(isinstance(problem.error, TamperedError) for problem in found.problems)
    storage.resize(105 * BLOCK)
    assert content(storage, second, held=[first]).scrub().problems
