"""A small model and plans that cut it, without measuring anything."""

from __future__ import annotations

import functools
import itertools

from strongroom.serve.graph import Chain, load, optimise, units
from strongroom.serve.pipeline.cut import Pieces, cut
from strongroom.serve.pipeline.document import Pipeline
from strongroom.serve.plan import Enclaves, Plan, StagePlan
from strongroom.serve.plan.profile import chain_digest
from tests.serve.plan.world import network


@functools.cache
def model() -> bytes:
    return bytes(network(64, 6).SerializeToString())


@functools.cache
def chain() -> Chain:
    return units(optimise(load(model())))


def plan(parts: int = 2, batch: int = 1) -> Plan:
    """Of stages of about as many units each."""
    whole, count = chain(), len(chain())
    ends = [count * part // parts for part in range(parts + 1)]
    stages = tuple(
        StagePlan(first, last, 0, 1, whole.weight_bytes(first, last), 1 << 20, 1000, whole.frontier_bytes(last))
        for first, last in itertools.pairwise(ends)
    )
    return Plan(
        model=whole.model.digest,
        chain=chain_digest(whole),
        units=count,
        change=None,
        splits=(),
        batch=batch,
        dims={},
        objective="latency",
        enclaves=(Enclaves(1 << 30, None),),
        paging=None,
        stages=stages,
        takes=whole.frontier_bytes(0),
        shared=None,
        latency_ns=1000 * parts,
        period_ns=1000,
    )


@functools.cache
def pieces(parts: int = 2, batch: int = 1) -> Pieces:
    return cut(model(), plan(parts, batch))


def pipeline(parts: int = 2, batch: int = 1, **options: int) -> Pipeline:
    policies = tuple(f"acme/digits-part-{number}" for number in range(1, parts + 1))
    return pieces(parts, batch).pipeline("digits", front="acme/digits-front", policies=policies, **options)
