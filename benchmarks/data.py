"""Sealed data sets against the same records in a plain memory-mapped array: a set of 2 GiB, shuffled batches.

- "NumPy" is `SealedDataset.batches` against fancy indexing of a `numpy.memmap`, the fastest plain way to a batch.
  "DataLoader" is PyTorch's, without workers, over each: ours with `collate`, the plain one with PyTorch's own, as a
  data set that indexes the memmap. Both sides read the same records in the same order and end with the same batch.
- "cached": the cache holds all and is full. "beyond": it holds an eighth of the set and is full; every round reads
  other records. Uniform orders of small records read a file of 4 KiB blocks, all else one of 64 KiB; a windowed order
  is measured over a whole window. The plain file is in the kernel's page cache throughout, the sealed one too: what is
  compared is the work, not the disk. The plain side thus never reads the disk, and has the memory to hold it all.
- Memory is what a process takes above its imports, at its peak, over the cap.

A quick run takes a set of 128 MiB.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.harness import Bench, Goal

RECORDS = {"784 B": 784, "3 KiB": 3 << 10, "64 KiB": 64 << 10, "588 KiB": 588 << 10}
SMALL = ("784 B", "3 KiB")
FACES = ("NumPy", "DataLoader")
MEMORY = "memory / cap"

GOALS: Sequence[Goal] = (
    *(Goal(f"{face}, cached, {name}", 1.2, "x", "at most") for name in RECORDS for face in FACES),
    *(
        Goal(f"{face}, beyond, {name}", 2 if name in SMALL else 1.2, "x", "at most")
        for name in RECORDS
        for face in FACES
    ),
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
        if any(bench.wants(f"{face}, beyond, {name}") for face in FACES):
            sealed.unlink()
            _seal(sealed, array, 4 << 10)
    for face in FACES:
        compare(face, "beyond", sealed, cap, some)
    if name == SMALL[0] and bench.wants(MEMORY):
        bench.record(MEMORY, _memory(sealed, cap) / cap)


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
