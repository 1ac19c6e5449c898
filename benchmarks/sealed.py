"""Sealed files: how fast bytes pass, how long a large file takes to open, and what that needs in memory.

- Sequential transfers are calls of 8 MiB through a file of 256 MiB in blocks of 64 KiB, in memory and on a file system
  in memory: what a disk would add is left out, so that what is measured is sealing. Writes overwrite what was
  committed, as a second and later save does; commits are not in the figures.
- The same is compared with a bare loop over as many bytes: one call of the system and one of `cryptography` a block, no
  tree, no places, one nonce, one thread. It shows what the machine gives at the moment, which the goals in GB/s ignore.
- Random reads are aligned calls of 4 KiB into a file of 256 MiB in blocks of 4 KiB, past the cache of decrypted blocks.
- The large file is one of 100 GiB whose pointers and interior blocks are all there, while its data blocks are holes of
  the host file: opening and the first write look at the former only.
"""

from __future__ import annotations

import contextlib
import multiprocessing as mp
import os
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from benchmarks.harness import Bench, Goal
from strongroom.sealed import NO_FRESHNESS, SealedFile, layout, open_sealed
from strongroom.sealed.blocks import BlockStore
from strongroom.sealed.layout import POINTER, Commit, Header
from strongroom.storage import FileStorage, MemoryStorage, Storage

KEY = bytes(range(32))
SIZE = 256 << 20
CALL = 8 << 20
LARGE = 100 << 30

BARE_WRITE_GOAL = "sequential write, file / bare loop"
BARE_READ_GOAL = "sequential read, file / bare loop"
RANDOM_GOAL = "random reads, 4 KiB"
LARGE_GOAL = "open and first write, 100 GiB"
LARGE_MEMORY_GOAL = "memory of that"
STREAM_MEMORY_GOAL = "memory to write and read 2 GiB"

GOALS: Sequence[Goal] = (
    *(
        Goal(f"sequential {way}, 64 KiB blocks, {where}", 3, "GB/s", "at least")
        for where in ("memory", "file")
        for way in ("write", "read")
    ),
    Goal(BARE_WRITE_GOAL, 0.9, "x", "at least"),
    Goal(BARE_READ_GOAL, 0.9, "x", "at least"),
    Goal(RANDOM_GOAL, 50_000, "1/s", "at least"),
    Goal(LARGE_GOAL, 1000, "ms", "at most"),
    Goal(LARGE_MEMORY_GOAL, 192, "MiB", "at most"),
    Goal(STREAM_MEMORY_GOAL, 64, "MiB", "at most", full_only=True),
)


def measure(bench: Bench) -> None:
    """Measure every goal that `bench` wants."""
    with tempfile.TemporaryDirectory(dir=_in_memory()) as name:
        directory = Path(name)
        _sequential(bench, "memory", MemoryStorage())
        _sequential(bench, "file", FileStorage(directory / "sequential", "x"), bare=directory / "bare")
        (directory / "sequential").unlink()
        (directory / "bare").unlink(missing_ok=True)
        _random(bench, FileStorage(directory / "random", "x"))
        (directory / "random").unlink()
        if bench.wants(LARGE_GOAL):
            make_large(directory / "large")
            bench.measure(LARGE_GOAL, bench.timed(lambda: _first_write(directory / "large")), rounds=5)
            bench.record(LARGE_MEMORY_GOAL, _memory_of(_first_write, directory / "large"))
            (directory / "large").unlink()
        if bench.wants(STREAM_MEMORY_GOAL):
            bench.record(STREAM_MEMORY_GOAL, _memory_of(_stream, directory / "stream"))


def _in_memory() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108


@contextlib.contextmanager
def _filled(storage: Storage, block_size: int) -> Iterator[SealedFile]:
    """A file of `SIZE` random bytes, committed often enough that the next write finds places of its own size."""
    data = os.urandom(CALL)
    file = open_sealed(storage, "x", key=KEY, anchor=NO_FRESHNESS, block_size=block_size)
    for _ in range(3):
        file.seek(0)
        for _ in range(SIZE // CALL):
            file.write(data)
        file.commit()
    try:
        yield file
    finally:
        file.discard()


def _sequential(bench: Bench, where: str, storage: Storage, bare: Path | None = None) -> None:
    names = [f"sequential {way}, 64 KiB blocks, {where}" for way in ("write", "read")]
    if not any(bench.wants(name) for name in names):
        return
    buffer = bytearray(os.urandom(CALL))
    with _filled(storage, 64 << 10) as file:

        def write() -> float:
            file.seek(0)
            began = time.perf_counter()
            for _ in range(SIZE // CALL):
                file.write(buffer)
            return SIZE / (time.perf_counter() - began) / 1e9

        def read() -> float:
            began = time.perf_counter()
            for at in range(0, SIZE, CALL):
                file.read_at(at, buffer)
            return SIZE / (time.perf_counter() - began) / 1e9

        for name, figure in zip(names, (write, read), strict=True):
            bench.measure(name, figure, rounds=25, warmup=2)
        if bare:
            peers = _bare_loops(bare, buffer)
            for name, figure, peer in zip((BARE_WRITE_GOAL, BARE_READ_GOAL), (write, read), peers, strict=True):
                bench.compare(name, figure, peer, peer_name="cryptography", unit="GB/s", rounds=15)


def _bare_loops(path: Path, buffer: bytearray) -> tuple[Callable[[], float], Callable[[], float]]:
    """Write and read `SIZE` bytes of ciphertext block by block; each gives GB/s."""
    size = 64 << 10
    gcm, nonce, aad = AESGCM(KEY), bytes(12), bytes(60)
    box, tags = bytearray(size + 16), [b""] * (SIZE // size)
    view, clear = memoryview(box), memoryview(buffer)
    fd = os.open(path, os.O_RDWR | os.O_CREAT)

    def write() -> float:
        began = time.perf_counter()
        for i in range(SIZE // size):
            at = i * size % CALL
            gcm.encrypt_into(nonce, clear[at : at + size], aad, box)
            os.pwrite(fd, view[:size], i * size)
            tags[i] = bytes(box[size:])
        return SIZE / (time.perf_counter() - began) / 1e9

    def read() -> float:
        began = time.perf_counter()
        for i in range(SIZE // size):
            at = i * size % CALL
            os.preadv(fd, [view[:size]], i * size)
            box[size:] = tags[i]
            gcm.decrypt_into(nonce, box, aad, clear[at : at + size])
        return SIZE / (time.perf_counter() - began) / 1e9

    return write, read


def _random(bench: Bench, storage: Storage) -> None:
    if not bench.wants(RANDOM_GOAL):
        storage.close()
        return
    rng = random.Random(1)  # noqa: S311  # the same order each time
    offsets = [rng.randrange(SIZE >> 12) << 12 for _ in range(20_000)]
    buffer = bytearray(4 << 10)
    with _filled(storage, 4 << 10) as file:

        def read() -> float:
            began = time.perf_counter()
            for at in offsets:
                file.read_at(at, buffer)
            return len(offsets) / (time.perf_counter() - began)

        bench.measure(RANDOM_GOAL, read, rounds=15, warmup=1)


def make_large(path: Path) -> None:
    """A committed file of `LARGE` bytes. Its data blocks rest where the tree says, but nothing was ever written there.

    The blocks above them are real; pointers to data hold random nonces and tags, which only a reader of data would try.
    """
    size, fanout = layout.DEFAULT_BLOCK, layout.fanout(layout.DEFAULT_BLOCK)
    header = Header(size, os.urandom(16), b"")
    header = Header(size, header.file_id, layout.commitment(KEY, header.file_id))
    storage = FileStorage(path, "x")
    cipher = layout.block_cipher(KEY, header.file_id)
    store = BlockStore(storage, {0: cipher}, 0, header.file_id, size, origin=0, what="large")
    first = layout.first_place(size)
    count = LARGE // size
    place = first + count
    pointers = b"".join(at.to_bytes(8, "little") + os.urandom(POINTER.size - 8) for at in range(first, first + count))
    for level in range(1, layout.height_of(LARGE, size) + 1):
        blocks = [
            pointers[at : at + fanout * POINTER.size].ljust(size, b"\0")
            for at in range(0, len(pointers), fanout * POINTER.size)
        ]
        written = [store.write(level, at, [place + at], block) for at, block in enumerate(blocks)]
        place += len(blocks)
        pointers = b"".join(written)
    commit = Commit(1, LARGE, place, pointers, None)
    storage.write_at(0, layout.seal_slot(cipher, header, commit, os.urandom(24)))
    storage.close()


def _first_write(path: Path) -> None:
    file = open_sealed(path, "r+", key=KEY, anchor=NO_FRESHNESS)
    file.seek(LARGE // 2)
    file.write(bytes(file.block_size))
    file.discard()


def _stream(path: Path) -> None:
    buffer = bytearray(CALL)
    with open_sealed(path, "x", key=KEY, anchor=NO_FRESHNESS) as file:
        for _ in range((2 << 30) // CALL):
            file.write(buffer)
        for at in range(0, 2 << 30, CALL):
            file.read_at(at, buffer)


def _memory_of(action: Callable[[Path], None], path: Path) -> float:
    """MiB by which the peak of a fresh process grows while `action` runs in it."""
    here, there = mp.Pipe()
    process = mp.get_context("spawn").Process(target=_grow, args=(action, path, there))
    process.start()
    there.close()
    grown: float = here.recv()
    process.join()
    return grown


def _grow(action: Callable[[Path], None], path: Path, answer: Connection) -> None:
    before = _peak()
    action(path)
    answer.send(_peak() - before)


def _peak() -> float:
    """MiB that this process has had at most."""
    if sys.platform == "linux":  # there getrusage counts what the process was before it became this program
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / (1 << 20)
