"""Which bytes of a file lie where: ranges that later writes cut or cover. Pure."""

from __future__ import annotations

import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Extent:
    """The bytes [`start`, `end`) of a file: in `source` from `at` on.

    Args:
        source: the bytes themselves, the name of an object that holds them, or None where they are zeros.
    """

    start: int
    end: int
    source: bytes | str | None = None
    at: int = 0

    def part(self, start: int, end: int) -> Extent:
        return Extent(start, end, self.source, self.at + start - self.start)


class Extents:
    """Disjoint extents in order of their starts; what none covers is zeros."""

    def __init__(self) -> None:
        self._items: list[Extent] = []
        self._starts: list[int] = []

    def __iter__(self) -> Iterator[Extent]:
        return iter(self._items)

    def put(self, extent: Extent) -> None:
        """Cover whatever was there."""
        low = bisect_right(self._starts, extent.start)
        if low and self._items[low - 1].end > extent.start:
            low -= 1
        high = bisect_left(self._starts, extent.end, lo=low)
        covered = self._items[low:high]
        kept = [extent]
        if covered and covered[0].start < extent.start:
            kept.insert(0, covered[0].part(covered[0].start, extent.start))
        if covered and covered[-1].end > extent.end:
            kept.append(covered[-1].part(extent.end, covered[-1].end))
        self._items[low:high] = kept
        self._starts[low:high] = [item.start for item in kept]

    def cut(self, size: int) -> None:
        """Forget what lies behind `size`."""
        low = bisect_left(self._starts, size)
        del self._items[low:], self._starts[low:]
        if self._items and self._items[-1].end > size:
            self._items[-1] = self._items[-1].part(self._items[-1].start, size)

    def pieces(self, start: int, end: int) -> Iterator[Extent]:
        """The parts of [`start`, `end`) in order, zeros included."""
        at = start
        low = bisect_right(self._starts, start)
        if low and self._items[low - 1].end > start:
            low -= 1
        for item in itertools.islice(self._items, low, None):
            if item.start >= end:
                break
            if item.start > at:
                yield Extent(at, item.start)
                at = item.start
            stop = min(end, item.end)
            yield item.part(at, stop)
            at = stop
        if at < end:
            yield Extent(at, end)
