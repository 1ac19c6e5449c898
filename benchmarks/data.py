"""Sealed data sets against the same records in a plain memory-mapped array: a set of 2 GiB, shuffled batches.

- "NumPy" is `SealedDataset.batches` against fancy indexing of a `numpy.memmap`, the fastest plain way to a batch.
  "DataLoader" is PyTorch's, without workers, over each: ours with `collate`, the plain one with PyTorch's own, as a
  data set that indexes the memmap. Both sides read the same records in the same order and end with the same batch.
- "cached": the cache holds all and is full. "beyond": it holds an eighth of the set and is full; every round reads
  other records. Uniform orders of small records read a file of 4 KiB blocks, all else one of 64 KiB; a windowed order
  is measured over a whole window. The plain file is in the kernel's page cache throughout, the sealed one too: what is
  compared is the work, not the disk. The plain side thus never reads the disk, and has the memory to hold it all.
- Beyond the cache a small record costs the copy and the decryption of whole blocks, which no code can leave out. "bare
  loop" is what that takes at least: one call of the system and one of `cryptography` for each block that the same
  batches lie in, with nothing around them. "no page cache" lets both sides read from the disk, which is what a set that
  is larger than memory does: there the plain side has nothing for free either.
- Memory is what a process takes above its imports, at its peak, over the cap.

A quick run takes a set of 128 MiB.
"""

from __future__ import annotations

import itertools
import json
import mmap
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from benchmarks.harness import Bench, Goal

RECORDS = {"784 B": 784, "3 KiB": 3 << 10, "64 KiB": 64 << 10, "588 KiB": 588 << 10}
SMALL = ("784 B", "3 KiB")
FACES = ("NumPy", "DataLoader")
MEMORY = "memory / cap"
BARE = "of a bare loop"
COLD = "no page cache"

GOALS: Sequence[Goal] = (
    *(Goal(f"{face}, cached, {name}", 1.2, "x", "at most") for name in RECORDS for face in FACES),
    *(
        Goal(f"{face}, beyond, {name}", 2 if name in SMALL else 1.2, "x", "at most")
        for name in RECORDS
        for face in FACES
    ),
    *(Goal(f"NumPy, beyond, {name}, {BARE}", 2, "x", "at most") for name in SMALL),
    *(Goal(f"NumPy, beyond, {name}, {COLD}", 2, "x", "at most", full_only=True) for name in SMALL),
    *(Goal(f"{face}, beyond, windowed, {name}", 2, "x", "at most") for name in SMALL for face in FACES),
    Goal(MEMORY, 1.2, "x", "at most"),
)

_KEY = bytes(range(32))
_Batches = Iterator[Any]


class PlainDataset:
    """What one writes without Strongroom."""

    def __init__(self, array: npt.NDArray[Any]) -> None:
        self.array = array

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, index: int) -> Any:
        return self.array[index]


def measure(bench: Bench) -> None:
    """Measure every goal that `bench` wants."""
    total = (128 << 20) if bench.quick else (2 << 30)
    for name, size in RECORDS.items():
        with tempfile.TemporaryDirectory() as directory:
            _records(bench, name, size, total, Path(directory))


def _records(bench: Bench, name: str, size: int, total: int, directory: Path) -> None:
    plain, sealed = directory / "plain", directory / "sealed"
    count = total // size
    batch = 128 if name in SMALL else 64
    _write(plain, count, size)
    array = np.memmap(plain, np.uint8, "c", shape=(count, size))
    _seal(sealed, array, 64 << 10)
    cap = total // 8

    def compare(face: str, what: str, path: Path, cache: int, batches: int, window: int | None = None) -> None:
        goal = f"{face}, {what}, {name}"
        if not bench.wants(goal):
            return
        from strongroom.data import SealedDataset
        from strongroom.sealed import NO_FRESHNESS

        _warm(plain)
        _warm(path)
        with SealedDataset(path, key=_KEY, anchor=NO_FRESHNESS, cache=cache) as dataset:
            dataset.preload()
            ours, peer = _faces(face, dataset, array, batch, window)
            per = 1e-3 * batches * batch  # of milliseconds, so that the figure is in microseconds for each record
            bench.compare(
                goal,
                bench.timed(lambda: _draw(ours, batches), per=per),
                bench.timed(lambda: _draw(peer, batches), per=per),
                peer_name="numpy.memmap" if face == "NumPy" else "DataLoader of a memmap",
                unit="us",
                rounds=7,
            )

    some = max(4, min(256, (32 << 20) // (size * batch)))
    for face in FACES:
        compare(face, "cached", sealed, total + (1 << 20), some)
    if name in SMALL:
        window = int(0.75 * (cap // 4)) // size
        for face in FACES:
            compare(face, "beyond, windowed", sealed, cap, -(-window // batch), window)
        others = [f"NumPy, beyond, {name}, {what}" for what in (BARE, COLD)]
        if any(map(bench.wants, (*(f"{face}, beyond, {name}" for face in FACES), *others))):
            sealed.unlink()
            _seal(sealed, array, 4 << 10)
    for face in FACES:
        compare(face, "beyond", sealed, cap, some)
    if name in SMALL:
        _limits(bench, name, plain, sealed, array, batch, cap)
    if name == SMALL[0] and bench.wants(MEMORY):
        bench.record(MEMORY, _memory(sealed, cap) / cap)


def _limits(bench: Bench, name: str, plain: Path, sealed: Path, array: npt.NDArray[Any], batch: int, cap: int) -> None:
    """Uniform orders beyond the cache, beside what the blocks cost at least, and with nothing in the page cache."""
    from strongroom.data import SealedDataset
    from strongroom.sealed import NO_FRESHNESS

    batches = 64
    per = 1e-3 * batches * batch
    with SealedDataset(sealed, key=_KEY, anchor=NO_FRESHNESS, cache=cap) as dataset:
        dataset.preload()
        _warm(sealed)
        ours = _endless(dataset, batch)
        goal = f"NumPy, beyond, {name}, {BARE}"
        if bench.wants(goal):
            bare = _bare_loop(sealed, array.shape, batch, batches, cap)
            timed = bench.timed(lambda: _draw(ours, batches), per=per), bench.timed(bare, per=per)
            bench.compare(goal, *timed, peer_name="preadv + AESGCM", unit="us", rounds=9)
        goal = f"NumPy, beyond, {name}, {COLD}"
        if bench.wants(goal) and sys.platform == "linux":
            sampler = _endless_records(dataset, batch)
            mapped: Any = array.base

            def cold(path: Path, action: Callable[[], None]) -> Callable[[], float]:
                timed = bench.timed(action, per=per / 8)

                def figure() -> float:
                    mapped.madvise(mmap.MADV_DONTNEED)  # what is mapped stays in the cache
                    _drop(path)
                    return timed()

                return figure

            def peer() -> None:
                for _ in range(batches // 8):
                    array[next(sampler)]

            mapped.madvise(mmap.MADV_RANDOM)  # else the kernel reads far more than is asked for
            sides = cold(sealed, lambda: _draw(ours, batches // 8)), cold(plain, peer)
            bench.compare(goal, *sides, peer_name="numpy.memmap", unit="us", rounds=9)
            mapped.madvise(mmap.MADV_NORMAL)


def _bare_loop(path: Path, shape: tuple[int, ...], batch: int, batches: int, cap: int) -> Callable[[], None]:
    """Copy and decrypt as many blocks of 4 KiB, anywhere in `path`, as the records beyond the cache lie in."""
    block = 4 << 10
    count, size = shape
    beyond = 1 - cap / (count * size)  # held or in the ring are hits
    blocks = 1 + (size - 1) / block  # of a record that begins anywhere
    fd = os.open(path, os.O_RDONLY)
    places = np.random.default_rng(1).integers(0, os.fstat(fd).st_size // block, 1 << 20).tolist()
    gcm, nonce, aad = AESGCM(_KEY), bytes(12), bytes(60)
    sealed, room = gcm.encrypt(nonce, bytes(block), aad), [memoryview(bytearray(block))]
    out = memoryview(bytearray(batch * block))
    rows = [out[at : at + block] for at in range(0, len(out), block)]
    numbers = itertools.cycle(places)

    def loop() -> None:
        for _ in range(batches):
            for k in range(round(batch * beyond * blocks)):
                os.preadv(fd, room, next(numbers) * block)
                gcm.decrypt_into(nonce, sealed, aad, rows[k % batch])

    return loop


def _drop(path: Path) -> None:
    """Take a file out of the page cache, as far as the system does it."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def _endless(dataset: Any, batch: int) -> _Batches:
    for epoch in itertools.count():
        yield from dataset.batches(batch, epoch=epoch, drop_last=True)


def _endless_records(dataset: Any, batch: int) -> Iterator[Any]:
    for epoch in itertools.count():
        yield from dataset.batch_sampler(batch, epoch=epoch, drop_last=True).arrays()


def _faces(
    face: str, dataset: Any, array: npt.NDArray[Any], batch: int, window: int | None
) -> tuple[_Batches, _Batches]:
    """Endless batches of ours and of the peer, one epoch after another."""

    def endless(one_epoch: Callable[[Any], _Batches]) -> _Batches:
        epoch = 0
        while True:
            yield from one_epoch(dataset.batch_sampler(batch, epoch=epoch, window=window, drop_last=True))
            epoch += 1

    def indexed(sampler: Any) -> _Batches:
        for records in sampler.arrays():
            yield array[records]

    if face == "NumPy":
        return (
            endless(lambda order: dataset.batches(batch, epoch=order.order.epoch, window=window, drop_last=True)),
            endless(indexed),
        )
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
    from torch.utils.data import DataLoader

    from strongroom.data import collate

    plain: Any = PlainDataset(array)
    return (
        endless(lambda order: iter(DataLoader(dataset, batch_sampler=order, collate_fn=collate))),
        endless(lambda order: iter(DataLoader(plain, batch_sampler=order))),
    )


def _draw(batches: _Batches, count: int) -> None:
    for _ in range(count):
        next(batches)


def _write(path: Path, count: int, size: int) -> None:
    generator = np.random.default_rng(0)
    left = count * size
    with path.open("wb") as file:
        while left:
            file.write(generator.bytes(min(left, 16 << 20)))
            left -= min(left, 16 << 20)


def _seal(path: Path, array: npt.NDArray[Any], block: int) -> None:
    from strongroom.data import seal_arrays
    from strongroom.sealed import NO_FRESHNESS

    seal_arrays(path, {"x": array}, key=_KEY, anchor=NO_FRESHNESS, block_size=block)


def _warm(path: Path) -> None:
    """Bring a file into the page cache."""
    buffer = bytearray(4 << 20)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


_CHILD = """
import json, sys
from pathlib import Path
from strongroom.data import SealedDataset
from strongroom.sealed import NO_FRESHNESS

def taken():
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return sum(int(lines[name].split()[0]) << 10 for name in ("RssAnon", "RssShmem"))

path, key, cap = json.load(sys.stdin)
before = taken()
peak = 0
with SealedDataset(path, key=bytes.fromhex(key), anchor=NO_FRESHNESS, cache=cap) as dataset:
    dataset.preload()
    for number, _ in zip(range(2000), dataset.batches(128)):
        if number % 50 == 0:
            peak = max(peak, taken() - before)
print(max(peak, taken() - before))
"""


def _memory(path: Path, cap: int) -> float:
    """The bytes that another process takes at most while it reads."""
    question = json.dumps([str(path), _KEY.hex(), cap])
    done = subprocess.run([sys.executable, "-c", _CHILD], input=question, capture_output=True, text=True, check=True)
    return float(done.stdout)
