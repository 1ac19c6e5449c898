"""In which order records are read: a function of (count, seed, epoch, window), the same on every machine and version.

- A position of the order is computed, not looked up: no list of all records is kept, and to resume at any step costs
  nothing.
- A uniform order is a keyed permutation: a Feistel network over Z_a x Z_b with a x b just above the count (Black and
  Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002, the generalised method with cycle walking); of up to
  4,096 records the sorted order of keyed random numbers. It mixes well; it hides nothing.
- A windowed order reads runs of consecutive records (chunks): it draws the chunks in a uniform order, takes as many
  of them as make a window, and shuffles the records within each window.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from strongroom.errors import UsageError

Indices = npt.NDArray[np.int64]
_Words = npt.NDArray[np.uint64]

_SMALL = 1 << 12
_SPAN = 1 << 14  # positions computed together
_ROUNDS = 8


@dataclass(frozen=True)
class Order:
    """The order of one epoch.

    Args:
        count: of records.
        shuffle: False for the order of the file.
        window: how many records are shuffled together; None for all.
        chunk: how many consecutive records a window takes at a time.
    """

    count: int
    shuffle: bool = True
    seed: int = 0
    epoch: int = 0
    window: int | None = None
    chunk: int = 1

    def __post_init__(self) -> None:
        if self.epoch < 0:
            raise UsageError(f"epoch: {self.epoch}, wanted 0 or more")
        if self.window is not None and self.window < 1:
            raise UsageError(f"window: {self.window}, wanted 1 or more records")

    def take(self, start: int, stop: int) -> Indices:
        """The records at positions `start` to `stop` - 1 of the order."""
        stop = min(stop, self.count)
        if not self.shuffle or start >= stop:
            return np.arange(start, max(start, stop), dtype=np.int64)
        if self.window is None or self.window >= self.count:
            return self._permute("records", 0, self.count, np.arange(start, stop, dtype=np.uint64))
        return self._windows(start, stop, self.window)

    def _windows(self, start: int, stop: int, window: int) -> Indices:
        chunks, rest = divmod(self.count, self.chunk)
        if chunks == 0:
            return self._permute("records", 0, self.count, np.arange(start, stop, dtype=np.uint64))
        wide = max(1, window // self.chunk)  # chunks in a window
        windows = -(-chunks // wide)
        # The records that fill no chunk join one window, another one in each epoch.
        lucky = int.from_bytes(self._digest("rest", 0)[:8], "little") % windows
        parts: list[Indices] = []
        while start < stop:
            w = min(start // (wide * self.chunk), windows - 1)
            if w > lucky:
                w = max(lucky, min((start - rest) // (wide * self.chunk), windows - 1))
            first = w * wide * self.chunk + (rest if w > lucky else 0)
            full = min(wide, chunks - w * wide) * self.chunk
            size = full + (rest if w == lucky else 0)
            end = min(stop, first + size)
            local = self._permute("window", w, size, np.arange(start - first, end - first, dtype=np.uint64))
            slot, within = np.divmod(np.minimum(local, full - 1), self.chunk)
            drawn = self._permute("chunks", 0, chunks, (slot + w * wide).astype(np.uint64))
            parts.append(np.where(local < full, drawn * self.chunk + within, chunks * self.chunk + local - full))
            start = end
        return np.concatenate(parts)

    def _permute(self, use: str, number: int, count: int, positions: _Words) -> Indices:
        return permute(self._digest(use, number), count, positions)

    def _digest(self, use: str, number: int) -> bytes:
        text = f"strongroom/data/order/v0 {use} {number} of {self.count} seed {self.seed} epoch {self.epoch}"
        return hashlib.sha512(text.encode()).digest()


@dataclass
class Batches:
    """The batches of an epoch as lists of record numbers; serves as `batch_sampler` of a PyTorch `DataLoader`.

    Args:
        order: of the records.
        size: of a batch.
        drop_last: leave out a last batch that is smaller.
        start: the first batch to give, to resume an epoch; `set_epoch` sets it back to 0.
    """

    order: Order
    size: int
    drop_last: bool = False
    start: int = 0

    def __post_init__(self) -> None:
        if self.size < 1:
            raise UsageError(f"batch size: {self.size}, wanted 1 or more")
        if self.start < 0:
            raise UsageError(f"start: {self.start}, wanted 0 or more batches")

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of another epoch."""
        self.order = Order(**{**vars(self.order), "epoch": epoch})
        self.start = 0

    def __len__(self) -> int:
        """How many batches an iteration gives: those from `start` on."""
        whole = self.order.count // self.size if self.drop_last else -(-self.order.count // self.size)
        return max(0, whole - self.start)

    def arrays(self) -> Iterator[Indices]:
        """The batches as arrays."""
        size = self.size
        end = (self.start + len(self)) * size
        span = size * max(1, _SPAN // size)
        for first in range(self.start * size, end, span):
            records = self.order.take(first, min(first + span, end))
            for at in range(0, len(records), size):
                yield records[at : at + size]

    def __iter__(self) -> Iterator[list[int]]:
        for records in self.arrays():
            yield records.tolist()


def permute(key: bytes, count: int, positions: npt.NDArray[Any]) -> Indices:
    """Where a permutation of range(`count`), chosen by the 64 bytes of `key`, takes `positions`."""
    if count <= _SMALL:
        return _sorted_order(key, count)[positions.astype(np.int64)]
    a = math.isqrt(count - 1) + 1
    b = -(-count // a)
    word = _WIDE if count > _NARROW_COUNT else _NARROW
    keys = np.frombuffer(key[: _ROUNDS * 8], "<u8").astype(word.kind)
    result = _feistel(word, keys, a, b, positions.astype(word.kind))
    outside = np.flatnonzero(result >= count)
    while len(outside):
        walked = _feistel(word, keys, a, b, result[outside])
        result[outside] = walked
        outside = outside[walked >= count]
    return result.astype(np.int64)


@dataclass(frozen=True)
class _Word:
    """Numbers to compute with, and how to hash half of one: multiply, fold, multiply; the upper half counts."""

    kind: Any
    half: int
    first: int
    second: int


_NARROW = _Word(np.uint32, 16, 0x85EBCA6B, 0xC2B2AE35)  # the multipliers of MurmurHash3's finalizer
_WIDE = _Word(np.uint64, 32, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)  # of SplitMix64's
_NARROW_COUNT = 1 << 31  # up to here both halves have 16 bits, and a x b fits into 32


def _feistel(word: _Word, keys: npt.NDArray[Any], a: int, b: int, positions: npt.NDArray[Any]) -> npt.NDArray[Any]:
    half, first, second = word.kind(word.half), word.kind(word.first), word.kind(word.second)
    sizes = word.kind(a), word.kind(b)
    left: npt.NDArray[Any] = positions // sizes[1]
    right = positions - left * sizes[1]
    for number, key in enumerate(keys):
        size = sizes[number % 2]
        mixed = right ^ key
        mixed *= first
        mixed ^= mixed >> half
        mixed *= second
        mixed >>= half
        mixed *= size  # scales the hash, of half a word, to a number below `size`
        mixed >>= half
        mixed += left
        # One of the two wraps around to something huge, unless it is the sum modulo `size`.
        left, right = right, np.minimum(mixed, mixed - size)
    # An even number of rounds: the halves are in their places again.
    left *= sizes[1]
    left += right
    return left


@functools.lru_cache(maxsize=4)
def _sorted_order(key: bytes, count: int) -> Indices:
    base = np.frombuffer(key, "<u8").astype(np.uint64)
    mixed = np.arange(count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + base[0]
    for word in base[1:3]:
        mixed ^= mixed >> np.uint64(30)
        mixed *= np.uint64(_WIDE.first)
        mixed ^= mixed >> np.uint64(27)
        mixed *= np.uint64(_WIDE.second)
        mixed ^= (mixed >> np.uint64(31)) ^ word
    return np.argsort(mixed, kind="stable").astype(np.int64)
