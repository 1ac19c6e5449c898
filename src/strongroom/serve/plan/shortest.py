"""The stages with the least sum of times and transfers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from strongroom.errors import UsageError
from strongroom.serve.plan.costs import NEVER, Enclaves, Matrix
from strongroom.serve.plan.solution import Placed, Tables

# Units squared, times the ways to use up the counts of several kinds: some seconds of work.
_MAX_WORK: Final = 4 * 10**9


def shortest(tables: Tables) -> list[Placed] | None:
    """The stages of the fastest answer, in enclaves as there are; None if they hold no plan."""
    enclaves, n = tables.ask.enclaves, len(tables.ask.costs)
    # A stage brings the transfer of the cut before it; that of the last cut is in every plan.
    weighed = [_weigh(stage[:n] + tables.moved[:-1, None], n) for stage in tables.stage]
    stages = without_counts(weighed, n)
    used = [sum(each.kind == kind for each in stages or ()) for kind in range(len(enclaves))]
    if stages is None or all(k.count is None or u <= k.count for k, u in zip(enclaves, used, strict=True)):
        return stages
    counts = require_counts(enclaves)
    if len(counts) == 1:
        return _by_layers(weighed[0], counts[0], n)
    return _by_counts(weighed, [min(count, n) for count in counts], n)


def require_counts(enclaves: Sequence[Enclaves]) -> list[int]:
    """How many there are of each kind. Raises UsageError where it is not said."""
    counts = [kind.count for kind in enclaves if kind.count is not None]
    if len(counts) < len(enclaves):
        raise UsageError("enclaves: of several kinds, wanted a count of each")
    return counts


def require_work(n: int, counts: Sequence[int]) -> None:
    """Refuse to try more ways to use up the counts than can be tried in some seconds."""
    ways = math.prod(count + 1 for count in counts)
    if n * n * len(counts) * ways > _MAX_WORK:
        raise UsageError(
            f"enclaves: {ways} ways to use {len(counts)} kinds of enclaves, too many for {n} units",
            hint="fewer kinds, or smaller counts",
        )


def _weigh(cost: Matrix, n: int) -> Matrix:
    """Costs, made so that of two equal sums the one of fewer stages is smaller."""
    known = cost < NEVER
    return np.where(known, np.where(known, cost, 0) * (n + 1) + 1, NEVER)


def without_counts(weighed: list[Matrix], n: int) -> list[Placed] | None:
    """The shortest way through the cuts, with as many enclaves of each kind as it takes."""
    columns = np.ascontiguousarray(np.min(weighed, axis=0).T)  # a row for each last unit
    total = np.full(n + 1, NEVER, np.int64)
    total[0] = 0
    back = np.zeros(n + 1, np.int64)
    for last in range(1, n + 1):
        sums = total[:last] + columns[last, :last]
        back[last] = np.argmin(sums)
        total[last] = min(NEVER, int(sums[back[last]]))
    if total[n] >= NEVER:
        return None
    stages, last = [], n
    while last:
        first = int(back[last])
        stages.append(Placed(first, last, int(np.argmin([each[first, last] for each in weighed]))))
        last = first
    return stages[::-1]


def _by_layers(weighed: Matrix, count: int, n: int) -> list[Placed] | None:
    """The shortest way of at most `count` stages, of one kind."""
    total = np.full(n + 1, NEVER, np.int64)
    total[0] = 0
    backs, ends = [], []
    for _ in range(count):
        total, back = _one_more(total, weighed)
        backs.append(back)
        ends.append(int(total[n]))
    best = int(np.argmin(ends))
    if ends[best] >= NEVER:
        return None
    stages, last = [], n
    for back in reversed(backs[: best + 1]):
        first = int(back[last])
        stages.append(Placed(first, last, 0))
        last = first
    return stages[::-1]


def _one_more(total: Matrix, weighed: Matrix) -> tuple[Matrix, Matrix]:
    """With one stage more: the least costs of ending at each cut, and where that stage begins."""
    after, back = np.full_like(total, NEVER), np.zeros_like(total)
    known = np.flatnonzero(total[:-1] < NEVER)
    if len(known):
        low, high = int(known[0]), int(known[-1]) + 1
        sums = total[low:high, None] + weighed[low:high, low + 1 :]
        best = np.argmin(sums, axis=0)
        after[low + 1 :] = np.minimum(np.take_along_axis(sums, best[None], 0)[0], NEVER)
        back[low + 1 :] = best + low
    return after, back


def _by_counts(weighed: list[Matrix], counts: Sequence[int], n: int) -> list[Placed] | None:
    """The shortest way with at most so many stages of each kind: every way to use up the counts."""
    require_work(n, counts)
    start = np.full(n + 1, NEVER, np.int64)
    start[0] = 0
    totals = {(0,) * len(counts): start}
    backs: dict[tuple[int, ...], tuple[Matrix, Matrix]] = {}
    for used in itertools.product(*(range(count + 1) for count in counts)):
        if not 0 < sum(used) <= n:
            continue
        best, first, kinds = np.full(n + 1, NEVER, np.int64), np.zeros(n + 1, np.int64), np.zeros(n + 1, np.int64)
        for kind, matrix in enumerate(weighed):
            if used[kind]:
                after, back = _one_more(totals[_less(used, kind)], matrix)
                better = after < best
                best, first = np.where(better, after, best), np.where(better, back, first)
                kinds[better] = kind
        totals[used], backs[used] = best, (first, kinds)
    used = min(totals, key=lambda each: (int(totals[each][n]), each))
    if totals[used][n] >= NEVER:
        return None
    stages, last = [], n
    while last:
        first, kinds = backs[used]
        kind = int(kinds[last])
        stages.append(Placed(int(first[last]), last, kind))
        last, used = int(first[last]), _less(used, kind)
    return stages[::-1]


def _less(used: tuple[int, ...], kind: int) -> tuple[int, ...]:
    return (*used[:kind], used[kind] - 1, *used[kind + 1 :])
