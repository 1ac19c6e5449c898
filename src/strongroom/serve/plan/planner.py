"""The best plan there is, by dynamic programming over the cuts.

A stage is a run of units in an enclave of one kind, or in several alike (replicas), which take turns.

- Latency (`shortest`): the sum over stages of what they compute, paging included, and of all transfers. Replicas do not
  help.
- Throughput, each enclave with cores of its own (`fastest`): what an enclave computes, takes in and gives out goes on
  at once, so a stage's period is the longest of the three, divided by its replicas and rounded up; the plan's is that
  of its slowest stage.
- Throughput, all enclaves on the same cores: a stage that waits leaves them to another, so the period is the sum of all
  work, divided by how many runs the cores do at once. The best plan is that for latency.

Of equal plans the one with fewer enclaves counts, then the one with fewer stages. benchmarks/plan.py holds both against
exhaustive search.
"""

from __future__ import annotations

import numpy as np

from strongroom.errors import ServeError
from strongroom.serve.plan.costs import NEVER
from strongroom.serve.plan.fastest import fastest
from strongroom.serve.plan.shortest import shortest, without_counts
from strongroom.serve.plan.solution import Ask, Solution, Tables
from strongroom.serve.plan.words import size


def solve(ask: Ask, tables: Tables | None = None) -> Solution:
    """The best plan.

    Raises:
        ServeError: there is none; it says which unit does not fit, or how many enclaves it would take.
        UsageError: there are too many kinds and counts of enclaves to try them all.
    """
    tables = tables or Tables(ask)
    pick = shortest if ask.objective == "latency" or ask.shared is not None else fastest
    stages = pick(tables)
    if stages is None:
        raise _why_none(tables)
    return tables.judge(stages)


def _why_none(tables: Tables) -> ServeError:
    """The error that says what does not fit, and what would."""
    ask = tables.ask
    fits = np.min(tables.stage, axis=0) < NEVER
    fewest = without_counts([np.where(fits, 1, NEVER)], len(ask.costs))
    if fewest is not None:
        given = sum(kind.count or 0 for kind in ask.enclaves)
        reason = (
            f"wanted at least {len(fewest)} to hold the model"
            if len(fewest) > given
            else f"of which the larger are too few for the {len(fewest)} stages or more of the model"
        )
        return ServeError(
            f"enclaves: got {given}, {reason}",
            hint="more enclaves (--enclaves), more memory in each (--memory), or let them page (--paging allow)",
        )
    # The least memory of any run that holds a unit.
    least = np.minimum.accumulate(np.minimum.accumulate(tables.memory, axis=0)[:, ::-1], axis=1)[:, ::-1]
    takes = least.diagonal(1)
    unit, most = int(np.argmax(takes)), max(kind.memory for kind in ask.enclaves)
    needs = int(takes[unit])
    if needs <= most:  # each has a run that fits, but no such runs follow each other
        needs = int(tables.memory.diagonal(1).max())
        unit = int(np.argmax(tables.memory.diagonal(1)))
    hint = f"--memory {size(max(needs, int(takes.max())), up=True)} holds every unit, --paging allow lets it page"
    if ask.costs.weights[unit] > needs / 2:
        hint += ", --quantize int8 makes weights a quarter"
    return ServeError(
        f"{ask.costs.name(unit)}: takes {size(needs)}, wanted at most {size(most)} in an enclave", hint=hint
    )
