"""Every plan there is, tried one after another: what the planner is held against. For chains of some 12 units.

What a plan costs is worked out here once more, in whole numbers and from the words of docs/spec/plan.md alone, so that
a mistake in the planner's tables is seen as well as one in its search. Nothing is left out because it looks worse.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import Final

from strongroom.errors import ServeError
from strongroom.serve.plan.costs import Costs, Enclaves, Transfer
from strongroom.serve.plan.paging import PAGE, Paging
from strongroom.serve.plan.planner import solve
from strongroom.serve.plan.solution import Ask, Objective, Placed

Rank = tuple[int, int, int]  # what is to be least, enclaves, stages
LARGEST: Final = 12
_OBJECTIVES: tuple[Objective, ...] = ("latency", "throughput")


def as_good(ask: Ask) -> bool:
    """Whether the planner's plan is the best there is and costs what it says, or there is none and it says so."""
    best = search(ask)
    try:
        found = solve(ask)
    except ServeError:
        return best is None
    rank = worth(ask, found.stages)
    value = found.period_ns if ask.shared is not None or ask.objective == "throughput" else found.latency_ns
    if best is None or rank is None or ask.shared is not None:
        return best is not None and best == rank
    return best == rank and rank[0] == value


def search(ask: Ask) -> Rank | None:
    """What the best of all plans is worth; None if there is none."""
    n, runs, moved = len(ask.costs), _runs(ask), _moved(ask)
    summed = ask.objective == "latency" or ask.shared is not None
    left = [n if kind.count is None else kind.count for kind in ask.enclaves]
    most = [1 if summed or kind.count is None else kind.count for kind in ask.enclaves]
    best: Rank | None = None

    def go(first: int, value: int, enclaves: int, stages: int) -> None:
        nonlocal best
        if first == n:
            rank = (value, enclaves, stages)
            best = rank if best is None or rank < best else best
            return
        for last in range(first + 1, n + 1):
            for kind, there in enumerate(left):
                spent = runs[kind][first, last]
                if spent is None:
                    continue
                for replicas in range(1, min(most[kind], there) + 1):
                    left[kind] = there - replicas
                    if summed:
                        so_far = value + spent + moved[last]
                    else:
                        so_far = max(value, -(-max(spent, moved[first], moved[last]) // replicas))
                    go(last, so_far, enclaves + replicas, stages + 1)
                left[kind] = there

    go(0, moved[0] if summed else 0, 0, 0)
    return best


def worth(ask: Ask, stages: Sequence[Placed]) -> Rank | None:
    """What one plan is worth; None if it is none."""
    runs, moved = _runs(ask), _moved(ask)
    bounds = [0, *(each.last for each in stages)]
    if [each.first for each in stages] != bounds[:-1] or bounds[-1] != len(ask.costs):
        return None
    for index, kind in enumerate(ask.enclaves):
        mine = [each.replicas for each in stages if each.kind == index]
        if (max(mine, default=1) > 1) if kind.count is None else (sum(mine) > kind.count):
            return None
    times = [runs[each.kind][each.first, each.last] for each in stages]
    if any(each is None for each in times):
        return None
    known = [each for each in times if each is not None]
    enclaves = sum(each.replicas for each in stages)
    if ask.objective == "latency" or ask.shared is not None:
        return sum(known) + sum(moved[cut] for cut in bounds), enclaves, len(stages)
    periods = (
        -(-max(spent, moved[each.first], moved[each.last]) // each.replicas)
        for each, spent in zip(stages, known, strict=True)
    )
    return max(periods), enclaves, len(stages)


def _moved(ask: Ask) -> list[int]:
    return [ask.transfer.frame_ns + size * ask.transfer.byte_ps // 1000 for size in ask.costs.frontiers]


def _runs(ask: Ask) -> list[dict[tuple[int, int], int | None]]:
    """For each kind, what each run takes as a stage; None where it does not fit and may not page."""
    costs, n = ask.costs, len(ask.costs)
    known = {(first, last): (size, touched) for first, last, size, touched in costs.measured}
    reads, active = costs.reads or costs.weights, costs.active or costs.working
    found: list[dict[tuple[int, int], int | None]] = []
    for kind in ask.enclaves:
        times: dict[tuple[int, int], int | None] = {}
        for first, last in itertools.combinations(range(n + 1), 2):
            shared = sum(size for a, b, size in costs.ties if first <= a and b < last)
            read = max(0, sum(reads[first:last]) - shared)
            taken = costs.fixed + sum(costs.weights[first:last]) - shared + max(costs.working[first:last])
            touched = costs.fixed + read + max(active[first:last])
            taken, touched = known.get((first, last), (taken, touched))
            frames = costs.frontiers[first] + costs.frontiers[last]
            spent = max(1, -(-(costs.call + sum(costs.nanoseconds[first:last])) * 100 // kind.percent))
            if ask.paging is not None:
                spent += _paged(ask.paging, min(taken, touched) + frames, kind.memory)
            times[first, last] = None if ask.paging is None and taken + frames > kind.memory else spent
        found.append(times)
    return found


def _paged(paging: Paging, touched: int, limit: int) -> int:
    again = min(Fraction(touched), max(0, touched - limit) * Fraction(paging.sharpness, 100))
    return math.ceil(again / PAGE) * paging.page_ns


def every_small_ask() -> Iterator[Ask]:
    """Every chain of 1 to 3 units whose weights, times and frontiers are small whole numbers, in enclaves of each size
    that matters, for both objectives, with and without paging, and with replicas."""
    for n in (1, 2, 3):
        tables = itertools.product(
            itertools.product((1, 2), repeat=n),
            itertools.product((0, 1, 3), repeat=n),
            itertools.product((0, 1), repeat=n + 1),
        )
        for weights, times, frontiers in tables:
            costs = Costs([each * PAGE for each in weights], [0] * n, times, [each * PAGE for each in frontiers])
            for memory, count in itertools.product((3 * PAGE, 4 * PAGE), (None, 2)):
                for objective, paging in itertools.product(_OBJECTIVES, (None, Paging(1, 100, "test"))):
                    yield Ask(costs, [Enclaves(memory, count)], Transfer(1, 0), objective, paging)


def random_asks(count: int, *, largest: int = LARGEST, seed: int = 7) -> Iterator[Ask]:
    """Chains of up to `largest` units: numbers of few values, so that many plans are equal, or of many; or made to
    mislead whoever plans greedily (`_SHAPES`)."""
    rng = random.Random(seed)  # noqa: S311  # no secret
    for _ in range(count):
        n = rng.randint(1, largest)
        shape = rng.choice(list(_SHAPES))
        weights, times, frontiers = (
            _SHAPES[shape](rng, n, scale) for scale in (rng.choice([3, 200]), rng.choice([2, 500]), rng.choice([2, 90]))
        )
        costs = Costs(
            [(each + 1) * PAGE // 8 for each in weights],
            [rng.randint(0, 3) * PAGE // 8 for _ in range(n)],
            times,
            [*(each * PAGE // 16 for each in frontiers), rng.randint(0, PAGE)],
            list(_ties(rng, n)),
            rng.randint(0, PAGE),
            rng.randint(0, 20),
            [rng.randint(0, each + 1) * PAGE // 8 for each in weights] if (some := rng.random() < 0.5) else (),
            [rng.randint(0, 3) * PAGE // 8 for _ in range(n)] if some else (),
            [(0, n, rng.randint(0, n * PAGE), rng.randint(0, n * PAGE))] if rng.random() < 0.3 else (),
        )
        total = sum(costs.weights)
        several = rng.random() < 0.4
        enclaves = [
            Enclaves(
                rng.randint(total // 6 + 1, total + PAGE),
                rng.choice([None, 1, 2, 3, 5]) if not several else rng.randint(1, 3),
                rng.choice([50, 100, 100, 300]),
            )
            for _ in range(rng.choice([2, 2, 3]) if several else 1)
        ]
        paging = rng.choice([None, Paging(rng.randint(1, 1000), rng.choice([100, 250, 1000]), "test")])
        transfer = Transfer(rng.choice([0, 1, 50]), rng.choice([0, 10, 1000]))
        yield Ask(costs, enclaves, transfer, rng.choice(_OBJECTIVES), paging, rng.choice([None, None, 2]))


def _ties(rng: random.Random, n: int) -> Iterator[tuple[int, int, int]]:
    """Weights that two or three units share; never more than they have."""
    for _ in range(rng.choice([0, 0, 1, 2])):
        if n > 1:
            places = sorted(rng.sample(range(n), min(n, rng.choice([2, 3]))))
            yield from ((a, b, rng.randint(0, PAGE // 32)) for a, b in itertools.pairwise(places))


_Numbers = Callable[[random.Random, int, int], list[int]]
_SHAPES: dict[str, _Numbers] = {
    "any": lambda rng, n, scale: [rng.randint(0, scale) for _ in range(n)],
    "all alike": lambda rng, n, scale: [scale] * n,
    "nothing": lambda rng, n, scale: [0] * n,
    "one giant": lambda rng, n, scale: [scale * 40 if each == rng.randrange(n) else 1 for each in range(n)],
    "doubling": lambda rng, n, scale: [1 << (each % 12) for each in range(n)],
    "falling": lambda rng, n, scale: [scale * (n - each) for each in range(n)],
    "teeth": lambda rng, n, scale: [scale * (each % 2) for each in range(n)],
}
