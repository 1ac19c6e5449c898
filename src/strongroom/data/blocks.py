"""Rows of one array in a file, through decrypted blocks that are kept up to a cap.

- **Held** blocks are the first of the array, as many as their share of the cap allows (often all). They are never
  given up: when every record is read once in an epoch, in another order each time, that keeps the share of hits equal
  to the share of blocks held, where dropping the least recently used keeps far less (Mohan et al., "Analyzing and
  Mitigating Data Stalls in DNN Training", VLDB 2021, section 5.1). They lie in memory that forked workers share, so
  that each is decrypted once for all of them.
- The **ring** serves the rest: the most recently used blocks, in each process its own.
- Blocks that a run of rows covers whole are decrypted straight into the batch and are not kept.

Only what has been authenticated is copied into shared memory, so two workers that fill the same block write the same
bytes.
"""

from __future__ import annotations

import mmap
import os
from collections import OrderedDict
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from strongroom.data.order import Indices
from strongroom.data.source import Source

Bytes = npt.NDArray[np.uint8]

_SCRATCH = 1 << 20  # adjacent missing blocks are read up to this together
_CHECK = 64  # batches without a miss, after which it is worth a look whether all is there


class Rows:
    """Fixed-size rows that lie one after the other in a file.

    Args:
        source: the file.
        offset: of the first row.
        count, size: of the rows; the size in bytes, 1 or more.
        held, ring: the caps, in bytes. If all blocks fit into `held`, no ring is made.
    """

    def __init__(self, source: Source, offset: int, count: int, size: int, *, held: int, ring: int) -> None:
        self._source = source
        self._size = size
        self._count = count
        self._offset = offset
        self._block = block = source.block_size
        first, self._lead = divmod(offset, block)
        self._base = first * block
        self._end = offset + count * size
        blocks = -(-(self._end - self._base) // block)
        kept = min(blocks, held // block)
        self._slots = ring // block if kept < blocks else 0
        # Which slot of the ring holds a block, by last use. Slots are filled in turn, so that no free list is needed.
        self._ring: OrderedDict[int, int] = OrderedDict()
        self._ring_bytes: Bytes = np.empty(self._slots * block, np.uint8)
        # Row-sized pieces of the ring from any byte on: picking from them gathers rows in one call.
        self._pieces = sliding_window_view(self._ring_bytes, size) if size <= self._slots * block else None
        self._blockwise = size == block and self._lead == 0  # rows are blocks
        self._process = os.getpid()
        self._held = _shared(kept * block)
        self._there = _shared(kept)
        whole = (kept * block - self._lead) // size
        self._rows_held = min(count, max(0, whole)) if kept < blocks else count
        end = self._lead + self._rows_held * size
        self._view = self._held[self._lead : end].reshape(self._rows_held, size) if self._rows_held else None
        self._complete = False
        self._hits = 0

    @staticmethod
    def needed(source: Source, offset: int, nbytes: int) -> int:
        """Bytes of the cap that hold all blocks of such an array."""
        block = source.block_size
        return (-(-(offset + nbytes) // block) - offset // block) * block

    @property
    def kept(self) -> int:
        """Bytes of decrypted blocks in memory now."""
        return int(np.count_nonzero(self._there)) * self._block + len(self._ring) * self._block

    def gather(self, indices: Indices, out: Bytes) -> None:
        """Row `indices[k]` into `out[k]`, for all k; indices from 0 to count - 1, `out` contiguous."""
        if self._rows_held == self._count and self._view is not None:
            if not self._complete:
                self._fill(indices)
            np.take(self._view, indices, axis=0, out=out, mode="clip")
            return
        positions = np.arange(len(indices))
        if self._view is not None:
            inside = indices < self._rows_held
            chosen = positions[inside]
            if len(chosen):
                rows = indices[chosen]
                self._fill(rows)
                if self._size < self._block:
                    out[chosen] = self._view[rows]
                else:
                    for k, row in zip(chosen.tolist(), rows.tolist(), strict=True):
                        out[k] = self._view[row]
            positions = positions[~inside]
        if not len(positions):
            return
        if self._size > self._block or _neighbours(indices):
            self._read(indices, positions, out)
        elif self._blockwise:
            rows = indices[positions] + self._base // self._block
            self._source.read_blocks(rows.tolist(), out.data.cast("B"), positions.tolist())
        elif not self._read_small(indices, positions, out):
            self._read(indices, positions, out)

    # Held blocks.

    def preload(self) -> None:
        """Read every block that is to be held, in order."""
        step = max(1, _SCRATCH // self._block)
        for first in range(0, len(self._there), step):
            self._load(first + np.flatnonzero(self._there[first : first + step] == 0))
        self._complete = self._rows_held == self._count

    def _fill(self, rows: Indices) -> None:
        first = rows * self._size + self._lead
        last = (first + (self._size - 1)) // self._block
        first //= self._block
        there = self._there
        if self._size <= self._block:
            missing = np.concatenate((first[there[first] == 0], last[there[last] == 0]))
        else:
            gaps = [
                a + np.flatnonzero(there[a : b + 1] == 0)
                for a, b in zip(first.tolist(), last.tolist(), strict=True)
                if not there[a : b + 1].all()
            ]
            missing = np.concatenate(gaps) if gaps else first[:0]
        # Taking the lock, even to load nothing, orders what another process wrote before what is read here.
        with self._source.lock:
            if len(missing):
                self._load(np.unique(missing))
                self._hits = 0
            else:
                self._hits += 1
                if self._hits % _CHECK == 0:
                    self._complete = bool(there.all())

    def _load(self, missing: npt.NDArray[Any]) -> None:
        most = max(1, _SCRATCH // self._block)
        for first, count in _runs(missing, most):
            start = first * self._block
            size = min(count * self._block, self._end_of_blocks() - start)
            private = bytearray(size)
            self._source.read(self._base + start, private)
            with self._source.lock:
                self._held[start : start + size] = np.frombuffer(private, np.uint8)
            with self._source.lock:
                self._there[first : first + count] = 1

    def _end_of_blocks(self) -> int:
        """Where the readable bytes of this array's blocks end: the last block of a file may be short."""
        return min(self._source.length - self._base, -(-(self._end - self._base) // self._block) * self._block)

    # The rest.

    def _read(self, indices: Indices, positions: npt.NDArray[Any], out: Bytes) -> None:
        """The rows at `positions` of the batch: neighbours in both file and batch together, in the file's order."""
        rows = indices[positions]
        breaks = np.flatnonzero((np.diff(rows) != 1) | (np.diff(positions) != 1)) + 1
        starts = np.concatenate(([0], breaks))
        lengths = np.diff(np.concatenate((starts, [len(rows)]))) * self._size
        by_place = np.argsort(rows[starts])
        starts = starts[by_place]
        froms = (rows[starts] * self._size + (self._offset - self._base)).tolist()
        tos = (positions[starts] * self._size).tolist()
        target = out.data.cast("B")
        with self._source.lock:
            self._own_ring()
            for start, to, length in zip(froms, tos, lengths[by_place].tolist(), strict=True):
                self._read_run(start, target[to : to + length])

    def _read_small(self, indices: Indices, positions: npt.NDArray[Any], out: Bytes) -> bool:
        """Rows of at most a block, through the ring: all blocks that it lacks are read in one call.

        The result is False if they are too many for it; nothing is read then.
        """
        size, block, pieces = self._size, self._block, self._pieces
        starts = indices[positions] * size + self._lead
        first = starts // block
        starts -= first * block
        two = np.flatnonzero(starts > block - size)  # rows that go on in the next block
        needed = np.unique(np.concatenate((first, first[two] + 1)))
        if len(needed) > self._slots or pieces is None:
            return False
        with self._source.lock:
            self._own_ring()
            slots = np.array(self._ring_all(needed.tolist()), np.int64)
            at = np.searchsorted(needed, first)
            starts += slots[at] * block
            # Blocks that were read one after the other mostly lie so in the ring too, and rows across them are whole.
            torn = two[slots[at[two] + 1] != slots[at[two]] + 1]
            if len(torn):
                whole = np.ones(len(positions), bool)
                whole[torn] = False
                out[positions[whole]] = pieces[starts[whole]]
                follows = slots[at[torn] + 1] * block
                for k, start, then in zip(
                    positions[torn].tolist(), starts[torn].tolist(), follows.tolist(), strict=True
                ):
                    head = block - start % block
                    out[k, :head] = self._ring_bytes[start : start + head]
                    out[k, head:] = self._ring_bytes[then : then + size - head]
            elif len(positions) == len(out):
                out[:] = pieces[starts]
            else:
                out[positions] = pieces[starts]
        return True

    def _own_ring(self) -> None:
        """Forget what a parent kept: that is the parent's to count."""
        if self._process != os.getpid():
            self._process = os.getpid()
            self._ring.clear()

    def _ring_all(self, blocks: list[int]) -> list[int]:
        """The slots of the ring that hold these blocks, no more than it has; they are the last used ones now."""
        ring = self._ring
        missing: list[int] = []
        for index in blocks:
            if index in ring:
                ring.move_to_end(index)
            else:
                missing.append(index)
        if missing:
            slots = []
            for index in missing:  # what makes room is none of `blocks`: those are the last used
                slot = len(ring) if len(ring) < self._slots else ring.popitem(last=False)[1]
                ring[index] = slot
                slots.append(slot)
            base = self._base // self._block
            try:
                self._source.read_blocks([base + index for index in missing], self._ring_bytes.data, slots)
            except BaseException:
                ring.clear()  # so that the slots in use stay the first ones
                raise
        return [ring[index] for index in blocks]

    def _read_run(self, start: int, target: memoryview) -> None:
        block, ring = self._block, self._ring
        done, length = 0, len(target)
        while done < length:
            index, within = divmod(start + done, block)
            count = min(block - within, length - done)
            if index in ring or (count < block and self._slots):
                at = self._ringed(index) * block + within
                target[done : done + count] = self._ring_bytes[at : at + count].data
            else:
                # Whole blocks, up to the next one in the ring or the part of a block at the end; or there is no ring.
                while self._slots and length - done - count >= block and (index := index + 1) not in ring:
                    count += block
                if not self._slots:
                    count = length - done
                self._source.read(self._base + start + done, target[done : done + count])
            done += count

    def _ringed(self, index: int) -> int:
        """The slot of the ring that holds a block, which is the last used one now."""
        slot = self._ring.get(index)
        if slot is None:
            return self._ring_all([index])[0]
        self._ring.move_to_end(index)
        return slot


def _shared(size: int) -> Bytes:
    """Zeros that this process and those that it forks share; the pages are taken when they are first written."""
    return np.frombuffer(mmap.mmap(-1, size), np.uint8) if size else np.empty(0, np.uint8)


def _neighbours(indices: Indices) -> bool:
    """Whether most of a batch follows the order of the file, so that it is better read in runs."""
    return 2 * int(np.count_nonzero(np.diff(indices) == 1)) > len(indices)


def _runs(sorted_blocks: npt.NDArray[Any], most: int) -> list[tuple[int, int]]:
    """(first, count) of each run of consecutive numbers, of at most `most`."""
    runs: list[tuple[int, int]] = []
    for number in sorted_blocks.tolist():
        if runs and runs[-1][0] + runs[-1][1] == number and runs[-1][1] < most:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((number, 1))
    return runs
