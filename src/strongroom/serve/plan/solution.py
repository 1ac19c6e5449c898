"""What is asked of a planner, and what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from strongroom.errors import UsageError
from strongroom.serve.plan.costs import NEVER, Costs, Enclaves, Matrix, Transfer
from strongroom.serve.plan.paging import Paging

Objective = Literal["latency", "throughput"]


@dataclass(frozen=True)
class Ask:
    """What a plan is wanted for.

    Attributes:
        costs: of the model's units.
        enclaves: one entry for each kind.
        transfer: between enclaves, and to and from whoever asks.
        objective: what is to be least: the time of one answer, or the time between answers.
        paging: what paging costs; None refuses it.
        shared: runs that the cores do at once, where all enclaves are on the same cores; None where each has its own.
    """

    costs: Costs
    enclaves: Sequence[Enclaves]
    transfer: Transfer
    objective: Objective = "latency"
    paging: Paging | None = None
    shared: int | None = None


@dataclass(frozen=True)
class Placed:
    """A stage of a solution: units `first` to `last - 1` in `replicas` enclaves of the kind `kind`."""

    first: int
    last: int
    kind: int
    replicas: int = 1


@dataclass(frozen=True)
class Solution:
    """A plan in numbers, its stages in order.

    Attributes:
        latency_ns: of one request, with nothing else under way.
        period_ns: between two answers when there are always requests.
    """

    stages: tuple[Placed, ...]
    latency_ns: int
    period_ns: int


class Tables:
    """What every run costs in every kind of enclave, worked out once for an `Ask`.

    Attributes:
        memory: of each run. stage: for each kind, nanoseconds of each run. moved: nanoseconds of each cut's transfer.
    """

    def __init__(self, ask: Ask) -> None:
        if not ask.enclaves:
            raise UsageError("enclaves: none were given, wanted at least one kind")
        if ask.shared is not None and ask.shared < 1:
            raise UsageError(f"shared cores: got {ask.shared} runs at once, wanted at least 1")
        self.ask = ask
        self.memory = ask.costs.memory()
        self.moved = ask.transfer.nanoseconds(ask.costs.frontiers)
        self.stage = [kind.nanoseconds(ask.costs, self.memory, ask.paging) for kind in ask.enclaves]

    def periods(self) -> list[Matrix]:
        """For each kind, the period of each run in one enclave with cores of its own."""
        wire = np.maximum(self.moved[:, None], self.moved[None, :])
        return [np.maximum(stage, wire) for stage in self.stage]

    def judge(self, stages: Sequence[Placed]) -> Solution:
        """A solution with these stages.

        Raises:
            UsageError: they are no plan of this model in these enclaves.
        """
        self._require_plan(stages)
        times = [int(self.stage[each.kind][each.first, each.last]) for each in stages]
        if max(times) >= NEVER:
            raise UsageError("stages: one does not fit its enclave, and paging is refused")
        latency = sum(times) + int(sum(self.moved[cut] for cut in (0, *(each.last for each in stages))))
        if self.ask.shared is not None:
            return Solution(tuple(stages), latency, -(-latency // self.ask.shared))
        slowest = max(
            -(-max(time, int(self.moved[each.first]), int(self.moved[each.last])) // each.replicas)
            for each, time in zip(stages, times, strict=True)
        )
        return Solution(tuple(stages), latency, slowest)

    def _require_plan(self, stages: Sequence[Placed]) -> None:
        n, used = len(self.ask.costs), [0] * len(self.ask.enclaves)
        at = 0
        for each in stages:
            if each.first != at or not at < each.last <= n or each.replicas < 1:
                raise UsageError(f"stages: got units {each.first} to {each.last}, wanted a run that begins at {at}")
            at = each.last
            used[each.kind] += each.replicas
        if at != n:
            raise UsageError(f"stages: end at unit {at}, wanted {n}")
        for kind, count in zip(self.ask.enclaves, used, strict=True):
            if kind.count is None:
                count = max(each.replicas for each in stages) - 1  # without a count there are no replicas
            if count > (kind.count or 0):
                raise UsageError(f"stages: take {count} of {kind.name}, wanted at most {kind.count}")
