"""The stages with the least period, each enclave with cores of its own.

A bisection over periods, whole nanoseconds, so that it is exact: for one period, each run takes so many enclaves, and
the fewest that a plan takes are found from cut to cut.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from strongroom.serve.plan.costs import NEVER, Enclaves, Matrix
from strongroom.serve.plan.shortest import require_counts, require_work, shortest
from strongroom.serve.plan.solution import Placed, Tables


def fastest(tables: Tables) -> list[Placed] | None:
    """The stages of the shortest period, in enclaves as there are; None if they hold no plan."""
    n, enclaves = len(tables.ask.costs), tables.ask.enclaves
    periods = tables.periods()
    some = shortest(tables)
    if some is None:
        return None
    search = _Alike(periods[0], enclaves[0].count, n) if len(enclaves) == 1 else _Kinds(periods, enclaves, n)
    high = tables.judge(some).period_ns
    # No stage is faster than its slowest unit on the fastest enclave, nor by more replicas than there are; nor are all
    # enclaves together faster than all work divided by them.
    percent = max(kind.percent for kind in enclaves)
    low = max(1, max(tables.ask.costs.nanoseconds) * 100 // percent // max(kind.count or 1 for kind in enclaves))
    if all(kind.count for kind in enclaves):
        total = sum(tables.ask.costs.nanoseconds) * 100 // percent
        low = max(low, total // sum(kind.count or 0 for kind in enclaves))
    while low < high:
        middle = (low + high) // 2
        if search.can(middle):
            high = middle
        else:
            low = middle + 1
    return search.stages(high)


class _Alike:
    """Plans of one kind of enclave."""

    def __init__(self, periods: Matrix, count: int | None, n: int) -> None:
        self._columns = np.ascontiguousarray(periods.T)  # a row for each last unit
        # Without a count a stage has no replicas: more of them would shorten every period for ever.
        self._count, self._most = (n, 1) if count is None else (count, count)
        self._n = n

    def can(self, period: int) -> bool:
        """Whether there is a plan with no longer period."""
        return self.stages(period) is not None

    def stages(self, period: int) -> list[Placed] | None:
        """The plan of the fewest enclaves, then stages, with no longer period; None if there is none."""
        n, count = self._n, self._count
        # Enclaves times (n + 1), and stages.
        total = np.full(n + 1, NEVER, np.int64)
        total[0] = 0
        back = np.zeros(n + 1, np.int64)
        limit = min(period * self._most, NEVER - 1)
        for last in range(1, n + 1):
            column = self._columns[last, :last]
            low = int(np.argmax(column <= limit))  # no run that begins before is in any plan
            column = column[low:]
            sums = total[low:last] + np.where(column <= limit, -(-column // period) * (n + 1) + 1, NEVER)
            at = int(np.argmin(sums))
            total[last], back[last] = min(NEVER, int(sums[at])), low + at
        if total[n] >= (count + 1) * (n + 1):
            return None
        stages, last = [], n
        while last:
            first = int(back[last])
            stages.append(Placed(first, last, 0, int(-(-self._columns[last, first] // period))))
            last = first
        return stages[::-1]


class _Kinds:
    """Plans of several kinds: for each way to use all kinds but the last, the fewest enclaves of the last."""

    def __init__(self, periods: list[Matrix], enclaves: Sequence[Enclaves], n: int) -> None:
        counts = require_counts(enclaves)
        require_work(n, counts)
        # The kind with most enclaves comes last: it needs no ways of its own.
        self._order = sorted(range(len(counts)), key=lambda kind: counts[kind])
        self._counts = [counts[kind] for kind in self._order]
        self._periods = [periods[kind] for kind in self._order]
        self._columns = [np.ascontiguousarray(each.T) for each in self._periods]
        self._n = n

    def can(self, period: int) -> bool:
        """Whether there is a plan with no longer period: which cuts are reached by each way to use up the counts."""
        # A row for each first unit; a bit for each last.
        runs = [
            [np.packbits(each < min(replicas * period + 1, NEVER), axis=1) for replicas in range(1, count + 1)]
            for each, count in zip(self._periods, self._counts, strict=True)
        ]
        start = np.zeros(self._n + 1, bool)
        start[0] = True
        reached = {(0,) * len(runs): start}
        for used in itertools.product(*(range(count + 1) for count in self._counts)):
            bits = np.zeros(runs[0][0].shape[1], np.uint8)
            for kind in range(len(runs)):
                for replicas in range(1, used[kind] + 1):
                    before = reached[(*used[:kind], used[kind] - replicas, *used[kind + 1 :])]
                    bits |= np.bitwise_or.reduce(runs[kind][replicas - 1][before], axis=0)
            if any(used):
                reached[used] = np.unpackbits(bits, count=self._n + 1).astype(bool)
            if reached[used][self._n]:
                return True
        return False

    def stages(self, period: int) -> list[Placed] | None:
        """As `_Alike.stages`."""
        n, counts = self._n, self._counts
        shape = tuple(count + 1 for count in counts[:-1])
        # By cut and enclaves used: those of the last kind times (n + 1), and stages.
        total = np.full((n + 1, *shape), NEVER, np.int64)
        total[(0,) * (1 + len(shape))] = 0
        back = np.zeros((3, n + 1, *shape), np.int64)  # where the stage begins, its kind, its replicas
        for last in range(1, n + 1):
            for kind in range(len(counts)):
                replicas = self._replicas(kind, last, period)
                for each in np.unique(replicas[replicas < NEVER]).tolist():
                    firsts = np.flatnonzero(replicas == each)
                    came = total[firsts]
                    at = np.argmin(came, axis=0)
                    after = np.minimum(np.take_along_axis(came, at[None], 0)[0] + 1, NEVER)
                    _improve(total[last], back[:, last], after, firsts[at], kind, each, len(shape), n)
        held = np.argwhere(total[n] < (counts[-1] + 1) * (n + 1))
        if not len(held):
            return None
        used = min((tuple(map(int, each)) for each in held), key=lambda each: self._enclaves(total[n], each))
        stages, last = [], n
        while last:
            first, kind, each = (int(part[(last, *used)]) for part in back)
            stages.append(Placed(first, last, self._order[kind], each))
            if kind < len(used):
                used = (*used[:kind], used[kind] - each, *used[kind + 1 :])
            last = first
        return stages[::-1]

    def _replicas(self, kind: int, last: int, period: int) -> Matrix:
        """Enclaves that each run to `last` takes; `NEVER` where there are not so many."""
        column = self._columns[kind][last, :last]
        replicas = -(-column // period)
        return np.where((column < NEVER) & (replicas <= self._counts[kind]), replicas, NEVER)

    def _enclaves(self, ends: Matrix, used: tuple[int, ...]) -> tuple[int, int, tuple[int, ...]]:
        last, stages = divmod(int(ends[used]), self._n + 1)
        return sum(used) + last, stages, used


def _improve(
    total: Matrix, back: Matrix, after: Matrix, firsts: Matrix, kind: int, each: int, last_kind: int, n: int
) -> None:
    """Take the ways that end in a stage of `each` enclaves of a kind where they are better."""
    here: tuple[slice, ...] = (slice(None),) * total.ndim
    there = here
    if kind == last_kind:
        after = np.minimum(after + each * (n + 1), NEVER)
    else:
        here = (*here[:kind], slice(None, -each), *here[kind + 1 :])
        there = (*there[:kind], slice(each, None), *there[kind + 1 :])
    better = after[here] < total[there]
    total[there] = np.where(better, after[here], total[there])
    begins, kinds, replicas = back
    begins[there] = np.where(better, firsts[here], begins[there])
    kinds[there] = np.where(better, kind, kinds[there])
    replicas[there] = np.where(better, each, replicas[there])
