"""Every plan there is, tried one after another: what the planner is held against. For chains of some 12 units."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from strongroom.errors import UsageError
from strongroom.serve.plan.solution import Ask, Placed, Solution, Tables


def search(ask: Ask) -> Solution | None:
    """The best of all plans; None if there is none."""
    tables = Tables(ask)
    n = len(ask.costs)
    best: tuple[tuple[int, int, int], Solution] | None = None
    for cuts in itertools.chain.from_iterable(itertools.combinations(range(1, n), k) for k in range(n)):
        bounds = list(itertools.pairwise((0, *cuts, n)))
        for placed in _placements(ask, bounds):
            try:
                found = tables.judge(placed)
            except UsageError:  # more enclaves than there are, or one that does not fit
                continue
            rank = _rank(ask, found)
            if best is None or rank < best[0]:
                best = rank, found
    return None if best is None else best[1]


def rank(ask: Ask, solution: Solution) -> tuple[int, int, int]:
    """What a plan is judged by: less is better."""
    return _rank(ask, solution)


def _rank(ask: Ask, solution: Solution) -> tuple[int, int, int]:
    value = solution.latency_ns if ask.objective == "latency" or ask.shared is not None else solution.period_ns
    return value, sum(each.replicas for each in solution.stages), len(solution.stages)


def _placements(ask: Ask, bounds: Sequence[tuple[int, int]]) -> Iterator[list[Placed]]:
    """Every choice of kinds and replicas for these stages, of enclaves as there are."""
    alone = ask.objective == "latency" or ask.shared is not None
    left = [len(bounds) if kind.count is None else kind.count for kind in ask.enclaves]

    def choose(stage: int) -> Iterator[list[Placed]]:
        if stage == len(bounds):
            yield []
            return
        for kind, count in enumerate(list(left)):
            single = alone or ask.enclaves[kind].count is None
            for replicas in range(1, min(1, count) + 1 if single else count + 1):
                left[kind] -= replicas
                for rest in choose(stage + 1):
                    yield [Placed(*bounds[stage], kind, replicas), *rest]
                left[kind] += replicas

    yield from choose(0)
