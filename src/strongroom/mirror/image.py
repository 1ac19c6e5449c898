"""The arrays' part of a mirror's file: what has to be written of it, and copies of a state."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

from strongroom.mirror.manifest import Entry, Layout
from strongroom.sealed.file import SealedFile
from strongroom.sealed.threads import split

_LONG: Final = 8 << 20  # bytes that are worth more threads than one
_COPIED: Final = 2 << 20  # bytes copied at once
_COMPARED: Final = 1 << 20  # bytes compared at once, about what the second-level cache holds

Bytes = npt.NDArray[np.uint8]
Pieces = list[tuple[int, Bytes]]
"""Where whole blocks lie in the file, and what they hold."""


def whole_blocks(layout: Layout, views: list[Bytes]) -> Pieces:
    """The whole blocks of each array that has some, out of its memory."""
    pieces = [(entry.offset, view[: entry.whole]) for entry, view in zip(layout.entries, views, strict=True)]
    return [(offset, view) for offset, view in pieces if len(view)]


def put_rests(tail: Bytes, arrays: Iterable[tuple[Entry, Bytes]]) -> None:
    """Copy the rest of some arrays to where the tail has it."""
    for entry, view in arrays:
        if entry.whole != entry.nbytes:
            tail[entry.tail : entry.tail + entry.nbytes - entry.whole] = view[entry.whole :]


class Image:
    """What the file holds of arrays, as far as it is known, and memory for a copy of what it shall hold.

    Args:
        delta: remember what was written, to write less the next time.

    Attributes:
        written: bytes that the last `write` wrote.
    """

    def __init__(self, file: SealedFile, *, delta: bool) -> None:
        self._file = file
        self._delta = delta
        self._copy: Bytes | None = None
        self._tail: Bytes = np.empty(0, np.uint8)
        self._tail_layout: Layout | None = None
        self._known: Bytes | None = None
        self._known_layout: Layout | None = None
        self.written = 0

    def tail(self, layout: Layout, views: list[Bytes]) -> Bytes:
        """A copy of the rest of every array, in memory of its own, which is used again by the next call."""
        if self._tail_layout is not layout:
            self._tail, self._tail_layout = np.zeros(layout.rest, np.uint8), layout
        put_rests(self._tail, zip(layout.entries, views, strict=True))
        return self._tail

    def copy(self, layout: Layout, pieces: Pieces) -> Pieces:
        """The pieces in memory of its own, which is used again by the next call."""
        if self._copy is None or len(self._copy) != layout.area:
            self._copy = None  # first give back what there was
            self._copy = np.empty(layout.area, np.uint8)
        _fill(self._copy, pieces)
        return [(offset, self._copy[offset : offset + len(view)]) for offset, view in pieces]

    def write(self, layout: Layout, before: Layout | None, pieces: Pieces) -> None:
        """Write the pieces, or what of them the file does not hold yet.

        Args:
            before: the layout that the file has now.
        """
        known = self._known if self._known_layout == layout else None
        self._known_layout = None  # until this is committed nobody knows what the file holds
        if layout is not before and layout != before:
            self._punch(layout)
        if known is not None:
            pieces = [run for offset, view in pieces for run in self._changed(offset, view, known)]
        elif self._delta:
            self._known = None  # first give back what there was
            self._known = np.empty(layout.area, np.uint8)
            _fill(self._known, pieces)
            pieces = [(offset, self._known[offset : offset + len(view)]) for offset, view in pieces]
        self._file.write_blocks(pieces)
        self.written = sum(len(view) for _, view in pieces)

    def committed(self, layout: Layout) -> None:
        """Note that what the last `write` wrote is committed."""
        self._known_layout = layout if self._delta else None

    def forget(self) -> None:
        """Note that the file may hold anything."""
        self._known_layout = None

    def _punch(self, layout: Layout) -> None:
        """What lies between the arrays now was another's: holes take no room."""
        at = 0
        for entry in sorted(layout.entries, key=lambda entry: entry.offset):
            if entry.whole:
                if entry.offset > at:
                    self._file.punch(at, entry.offset - at)
                at = max(at, entry.offset + entry.whole)

    def _changed(self, offset: int, view: Bytes, known: Bytes) -> Iterator[tuple[int, Bytes]]:
        """The blocks of `view` that differ from what is known, as they are known from now on.

        Each is read once: another thread may be writing to it, and what is known must be what the file gets.
        """
        block = self._file.block_size
        step = max(block, _COMPARED // block * block)
        for at in range(0, len(view), step):
            new = view[at : at + step]
            old = known[offset + at : offset + at + len(new)]
            if np.array_equal(new.view(np.uint64), old.view(np.uint64)):
                continue
            changed = (new.reshape(-1, block).view(np.uint64) != old.reshape(-1, block).view(np.uint64)).any(axis=1)
            for first, stop in _runs(np.flatnonzero(changed)):
                run = old[first * block : stop * block]
                run[:] = new[first * block : stop * block]
                yield offset + at + first * block, run


def _fill(memory: Bytes, pieces: Pieces) -> None:
    """Put the pieces where they belong."""
    parts = [(offset + at, view[at : at + _COPIED]) for offset, view in pieces for at in range(0, len(view), _COPIED)]

    def copy(start: int, stop: int) -> None:
        for offset, part in parts[start:stop]:
            memory[offset : offset + len(part)] = part

    if sum(len(view) for _, view in pieces) < _LONG:
        copy(0, len(parts))
    else:
        split(len(parts), _COPIED, copy)


def _runs(blocks: npt.NDArray[np.intp]) -> Iterator[tuple[int, int]]:
    """(first, behind the last) of each run of consecutive numbers."""
    if not len(blocks):
        return
    breaks = np.flatnonzero(np.diff(blocks) != 1)
    firsts = [int(blocks[0]), *(int(blocks[i + 1]) for i in breaks)]
    lasts = [*(int(blocks[i]) for i in breaks), int(blocks[-1])]
    yield from ((first, last + 1) for first, last in zip(firsts, lasts, strict=True))
