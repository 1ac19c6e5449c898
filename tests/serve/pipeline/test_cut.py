"""What cutting a model says of the parts."""

from __future__ import annotations

import itertools

from strongroom.serve.graph import load, units
from strongroom.serve.pipeline.cut import telling_sizes
from strongroom.serve.plan import StagePlan
from tests.serve.graph.world import INT64, info, model, node, weight
from tests.serve.pipeline import world


class Cut:
    """A plan, of which only the stages are looked at."""

    def __init__(self, chain):
        self.stages = [StagePlan(a, b, 0, 1, 0, 1, 1, 1) for a, b in itertools.pairwise(range(len(chain) + 1))]


def test_what_may_tell_of_values_by_its_size_is_named():
    nodes = [
        node("MatMul", "x w", "rows"),
        node("Relu", "rows", "positive"),
        node("NonZero", "positive", "found"),
        node("Neg", "found", "y"),
    ]
    proto = model(nodes, [info("x")], [info("y", (2, "K"), INT64)], [weight("w", 8, 8)])
    chain = units(load(proto.SerializeToString()))
    said = list(telling_sizes(chain, Cut(chain)))
    place = next(unit.index for unit in chain if "NonZero" in unit.operators)
    behind = f"part {place + 1}: the host sees how large 'found' is,"
    assert len(chain) > place + 1 and len(said) == len(chain) - place and said[0].startswith(behind)
    assert not list(telling_sizes(world.chain(), world.plan(3)))
