"""Where a row of operators is cut: pure numbers.

A unit that is not worth placing by itself, since it has next to no weights and next to no work, joins a neighbour: over
the dearer of its two cuts if that is clearly dearer, else the lighter neighbour, so that in a long row of light units
none collects them all. So what stays are cuts where little crosses, between units that matter.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

# A unit with less than this part of both the weights and the work is joined to another, while there are more than FEW.
_LIGHT = 1 / 500
FEW = 10
_CLEARLY = 2  # times as dear


def cut_places(weights: Sequence[int], work: Sequence[int], costs: Sequence[int | None], *, most: int) -> list[int]:
    """The places of the cuts, ascending, with 0 and the number of operators at the ends.

    Args:
        weights, work: of each operator.
        costs: of a cut before each operator; None where there can be none. The first is not looked at.
        most: how many units there may be.
    """
    count = len(weights)
    whole = (max(1, sum(weights)), max(1, sum(work)))
    starts = [0, *(place for place in range(1, count) if costs[place] is not None)]
    after = dict(zip(starts, [*starts[1:], count], strict=True))
    before = dict(zip(starts[1:], starts, strict=False))
    held = {start: (sum(weights[start:end]), sum(work[start:end])) for start, end in after.items()}

    def substance(start: int) -> float:
        return max(held[start][0] / whole[0], held[start][1] / whole[1])

    def side(start: int) -> int:
        """The cut of a unit that goes: the one before it, or the one behind it."""
        behind = after[start]
        if start not in before or behind not in before:
            return start if start in before else behind
        left, right = costs[start] or 0, costs[behind] or 0
        if left >= _CLEARLY * right or right >= _CLEARLY * left:
            return start if left >= right else behind
        return start if (substance(before[start]), -left) <= (substance(behind), -right) else behind

    lightest = [(substance(start), start) for start in starts]
    heapq.heapify(lightest)
    while lightest and len(held) > 1:
        size, start = heapq.heappop(lightest)
        if start not in held or size != substance(start):
            continue  # joined meanwhile
        if len(held) <= most and (size >= _LIGHT or len(held) <= FEW):
            break
        cut = side(start)
        first = before.pop(cut)
        joined = held.pop(cut)
        held[first] = (held[first][0] + joined[0], held[first][1] + joined[1])
        after[first] = after.pop(cut)
        if after[first] in before:
            before[after[first]] = first
        heapq.heappush(lightest, (substance(first), first))
    return [*sorted(held), count]
