"""Sealed files against a bytearray, and parsers against garbage."""

import contextlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from strongroom.errors import StrongroomError
from strongroom.sealed import NO_FRESHNESS, FileAnchor, MemoryAnchor, Root, load_key, open_sealed
from strongroom.sealed.layout import (
    HOLE,
    MAGIC,
    MAX_SEQUENCE,
    PLACE_MASK,
    Commit,
    Header,
    Retained,
    block_cipher,
    commitment,
    open_slot,
    parse_header,
    seal_slot,
)
from strongroom.storage import MemoryDirectory, MemoryStorage

KEY = bytes(32)
BLOCK = 4096
LIMIT = 300 * BLOCK  # three levels

aligned = st.integers(0, LIMIT // BLOCK).map(lambda n: n * BLOCK)
offsets = st.one_of(st.integers(0, LIMIT), aligned, st.integers(0, 3 * BLOCK))
sizes = st.one_of(st.integers(0, 100), st.sampled_from([BLOCK - 1, BLOCK, BLOCK + 1]), st.integers(0, 20 * BLOCK))


class SealedFileMachine(RuleBasedStateMachine):
    """One file, one anchor; `content` is what it should hold now, `committed` what the last commit held."""

    @initialize()
    def create(self):
        self.storage, self.anchor = MemoryStorage(), MemoryAnchor()
        self.file = open_sealed(self.storage, "x", key=KEY, anchor=self.anchor, block_size=BLOCK)
        self.file.commit()
        self.content, self.committed = bytearray(), b""
        self.fill = 0

    @rule(offset=offsets, size=sizes)
    def write(self, offset, size):
        self.fill = self.fill % 255 + 1
        data = bytes([self.fill]) * size
        self.file.seek(offset)
        assert self.file.write(data) == size
        if size:
            self.content.extend(bytes(max(0, offset - len(self.content))))
            self.content[offset : offset + size] = data

    @rule(offset=offsets, size=sizes)
    def read(self, offset, size):
        self.file.seek(offset)
        assert self.file.read(size) == self.content[offset : offset + size]

    @rule(size=offsets)
    def truncate(self, size):
        self.file.truncate(size)
        del self.content[size:]
        self.content.extend(bytes(size - len(self.content)))

    @rule()
    def commit(self):
        assert self.file.commit() == self.anchor.read()
        self.committed = bytes(self.content)

    @rule(keep=st.booleans(), mode=st.sampled_from(["r+", "w"]))
    def reopen(self, keep, mode):
        if keep:
            self.file.close()
            self.committed = bytes(self.content)
        else:
            self.file.discard()
        self.file = open_sealed(self.storage, mode, key=KEY, anchor=self.anchor)
        self.content = bytearray(self.committed if mode == "r+" else b"")

    @rule()
    def crash(self):
        """Whatever was going on, the storage always holds the last commit."""
        with open_sealed(MemoryStorage(self.storage.data), "r", key=KEY, anchor=self.anchor) as other:
            assert other.read() == self.committed
            other.verify()

    @invariant()
    def length(self):
        if hasattr(self, "file"):
            assert self.file.length == len(self.content)

    def teardown(self):
        if hasattr(self, "file"):
            self.file.discard()


TestSealedFile = SealedFileMachine.TestCase
TestSealedFile.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


pointers = st.binary(min_size=len(HOLE), max_size=len(HOLE))
digests = st.binary(min_size=32, max_size=32)


@st.composite
def commits(draw):
    sequence = draw(st.integers(1, MAX_SEQUENCE))
    lsn = draw(st.just(0) | st.integers(1, (1 << 63) - 1))
    numbers = draw(st.sets(st.integers(1, sequence - 1), max_size=16)) if sequence > 1 else ()
    since = draw(st.lists(digests, max_size=min(sequence - 1, 64)))
    return Commit(
        sequence,
        length=draw(st.integers(0, 1 << 60)),
        places=draw(st.integers(0, PLACE_MASK)),
        pointer=draw(pointers),
        previous=Root(sequence - 1, since[-1] if since else draw(digests)) if sequence > 1 else None,
        epoch=draw(st.integers(0, (1 << 63) - 1)),
        lsn=lsn,
        tag=draw(st.binary(min_size=16, max_size=16)) if lsn else b"",
        retained=tuple(
            Retained(n, draw(st.integers(0, 1 << 60)), 9, draw(pointers), draw(digests), pinned=draw(st.booleans()))
            for n in sorted(numbers)
        ),
        since=tuple(since),
        generation=draw(st.integers(0, 255)),
        old_key=draw(st.just(b"") | st.binary(min_size=32, max_size=32)),
    )


@given(commits(), st.binary(min_size=16, max_size=16), st.binary(min_size=24, max_size=24))
def test_slot_round_trip(commit, file_id, nonce):
    header = Header(BLOCK, file_id, commitment(KEY, file_id))
    slot = seal_slot(block_cipher(KEY, file_id), header, commit, nonce)
    assert len(slot) == 4096
    assert parse_header(slot) == header
    assert open_slot(block_cipher(KEY, file_id), slot) == commit


@given(st.binary(max_size=9000), st.booleans())
def test_opening_garbage(data, with_magic):
    with contextlib.suppress(StrongroomError):
        open_sealed(MemoryStorage(MAGIC * with_magic + data), key=KEY, anchor=NO_FRESHNESS).close()
        pytest.fail("opened")
    with contextlib.suppress(StrongroomError):
        parse_header(MAGIC * with_magic + data)


@given(
    st.text(max_size=90)
    | st.from_regex(r"\A[0-9]{1,20}:[0-9a-f]{64}(\+[0-9]{1,20}:[0-9a-f]{32})?(@[0-9]{1,20})?\Z", fullmatch=True)
)
def test_parsing_roots(text):
    with contextlib.suppress(StrongroomError):
        assert str(Root.parse(text)) == text


@given(st.binary(max_size=300))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_files_of_text(tmp_path, data):
    path = tmp_path / "file"
    for content in (data, b"STRONGROOM-SEALING-KEY-1 " + data, b"STRONGROOM-ANCHOR-1 " + data + b"\n"):
        path.write_bytes(content)
        with contextlib.suppress(StrongroomError):
            load_key(path)
        with contextlib.suppress(StrongroomError):
            FileAnchor(path).read()


@given(st.dictionaries(st.text(max_size=30), st.binary(max_size=50), max_size=5))
@settings(max_examples=30, deadline=None)
def test_vault_keeps_any_path_it_takes(files):
    from strongroom import vault

    directory, anchor, taken = MemoryDirectory(), MemoryAnchor(), {}
    with vault.open(directory, "x", key=KEY, anchor=anchor) as opened:
        for path, content in files.items():
            with contextlib.suppress(StrongroomError):
                opened.write_bytes(path, content)
                taken[path] = content
    with vault.open(directory, key=KEY, anchor=anchor) as opened:
        assert {path: opened.read_bytes(path) for path in opened.files()} == taken
        assert sorted(f"{top}/{name}".lstrip("/") for top, _, names in opened.walk() for name in names) == sorted(taken)
