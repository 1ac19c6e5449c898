"""Which bytes of a file lie where: ranges that later writes cut or cover. Pure."""

from __future__ import annotations

import heapq
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
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

    def __init__(self, extents: Iterable[Extent] = ()) -> None:
        """`extents` are disjoint and rising."""
        self._items = list(extents)
        self._starts = [item.start for item in self._items]

    def __iter__(self) -> Iterator[Extent]:
        return iter(self._items)

    def put(self, extent: Extent) -> None:
        """Cover whatever was there. Takes time as there are extents behind it: for many at once see `layered`."""
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
        for index in range(low, len(self._items)):
            item = self._items[index]
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


def layered(layers: Sequence[tuple[int, Sequence[Extent]]]) -> Extents:
    """What is left of `layers`, each put on those before: a length to cut the file to first, then rising extents.

    Takes n log n time for n extents however they lie; the result has fewer than twice as many.
    """
    tops: list[tuple[int, int, Extent]] = []  # start, -layer, extent
    limit = None
    for number in range(len(layers) - 1, -1, -1):
        cut, extents = layers[number]
        for extent in extents:
            end = extent.end if limit is None else min(extent.end, limit)
            if extent.start < end:
                tops.append((extent.start, -number, extent.part(extent.start, end)))
        limit = cut if limit is None else min(limit, cut)
    tops.sort(key=lambda item: item[:2])
    return Extents(_visible(tops))


def _visible(tops: Sequence[tuple[int, int, Extent]]) -> Iterator[Extent]:
    """Of extents by rising start, each with a layer of which the lowest number lies on top, the parts that are seen."""
    waiting: list[tuple[int, int, Extent]] = []  # layer, index, extent: a heap of those that began and may be seen
    at = index = 0
    while waiting or index < len(tops):
        if not waiting:
            at = tops[index][0]
        while index < len(tops) and tops[index][0] <= at:
            heapq.heappush(waiting, (tops[index][1], index, tops[index][2]))
            index += 1
        _, _, top = waiting[0]
        if top.end <= at:
            heapq.heappop(waiting)
            continue
        # It is seen up to its end, or to where one begins that lies on it.
        stop = top.end
        while index < len(tops) and tops[index][0] < stop:
            if tops[index][1] < waiting[0][0]:
                stop = tops[index][0]
                break
            heapq.heappush(waiting, (tops[index][1], index, tops[index][2]))
            index += 1
        yield top.part(at, stop)
        at = stop
