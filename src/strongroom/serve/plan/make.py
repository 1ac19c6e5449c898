"""From a model to a plan: cut, profiled, planned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from strongroom.errors import StrongroomError
from strongroom.serve.graph import Chain, Model, Split, optimise, split, splits, units
from strongroom.serve.plan.costs import Costs, Enclaves, Transfer
from strongroom.serve.plan.document import Change, Cut, Plan, StagePlan
from strongroom.serve.plan.paging import Paging
from strongroom.serve.plan.planner import solve
from strongroom.serve.plan.profile import Profile, chain_digest
from strongroom.serve.plan.solution import Ask, Objective, Placed, Solution, Tables

# An operator is cut in pieces of at most this share of an enclave, so that three fit into one.
_LARGEST = 0.3
_SMALLEST = 1 << 20  # a stage takes more than this whatever is in it


@dataclass(frozen=True)
class Prepared:
    """A model cut into units.

    Attributes:
        chain: the units.
        splits: operators that were cut in pieces.
        change: what was done to the model before; None for nothing.
    """

    chain: Chain
    splits: tuple[Cut, ...]
    change: Change | None = None


@dataclass(frozen=True)
class Wanted:
    """What a plan is wanted for, besides the model.

    Attributes:
        as `Ask` has them.
    """

    enclaves: tuple[Enclaves, ...]
    transfer: Transfer
    objective: Objective = "latency"
    shared: int | None = None
    dims: Mapping[str, int] | None = None


def prepare(
    model: Model, *, memory: int, dims: Mapping[str, int] | None = None, change: Change | None = None
) -> Prepared:
    """Optimise a model and cut it into units.

    Args:
        memory: of the largest enclave; what an operator's weights take much of is cut in pieces, if the whole does
            not fit.
    """
    optimised = optimise(model)
    whole = units(optimised, dims=dims)
    if whole.weight_bytes(0, len(whole)) <= memory * 0.9:
        return Prepared(whole, (), change)
    can, large = splits(optimised), max(_SMALLEST, int(memory * _LARGEST))
    cuts = tuple(
        Cut(name, min(most, -(-size // large)))
        for name, most, size in ((name, can[name], _made_by(whole, name)) for name in can)
        if size > large and most > 1
    )
    if not cuts:
        return Prepared(whole, (), change)
    return Prepared(units(split_as(optimised, cuts), dims=dims), cuts, change)


def split_as(model: Model, cuts: Sequence[Cut]) -> Model:
    """The optimised model with operators cut in pieces as a plan says."""
    return split(model, {each.output: Split(each.pieces, each.rows) for each in cuts}) if cuts else model


def make(prepared: Prepared, profile: Profile, wanted: Wanted, paging: Paging | None) -> Plan:
    """The best plan.

    Args:
        paging: what it costs; None refuses it.

    Raises:
        ServeError: there is none.
    """
    tables = Tables(_ask(profile.costs, wanted, paging))
    return _written(prepared, profile, wanted, tables, solve(tables.ask, tables))


def in_one(prepared: Prepared, profile: Profile, wanted: Wanted, paging: Paging) -> Plan:
    """The plan of one stage, in an enclave of the kind with most memory, however much that pages."""
    kind = max(range(len(wanted.enclaves)), key=lambda index: wanted.enclaves[index].memory)
    tables = Tables(_ask(profile.costs, wanted, paging))
    return _written(prepared, profile, wanted, tables, tables.judge([Placed(0, len(profile.costs), kind)]))


def compare(prepared: Prepared, profile: Profile, wanted: Wanted, paging: Paging) -> dict[str, Plan | StrongroomError]:
    """One stage, stages that never page, and stages that may, by name; an error where there is no such plan."""
    found: dict[str, Plan | StrongroomError] = {"one stage": in_one(prepared, profile, wanted, paging)}
    for name, cost in (("never paging", None), ("paging allowed", paging)):
        try:
            found[name] = make(prepared, profile, wanted, cost)
        except StrongroomError as error:
            found[name] = error
    return found


def _ask(costs: Costs, wanted: Wanted, paging: Paging | None) -> Ask:
    return Ask(costs, wanted.enclaves, wanted.transfer, wanted.objective, paging, wanted.shared)


def _written(prepared: Prepared, profile: Profile, wanted: Wanted, tables: Tables, solution: Solution) -> Plan:
    chain, frontiers = prepared.chain, profile.costs.frontiers
    stages = tuple(
        StagePlan(
            each.first,
            each.last,
            each.kind,
            each.replicas,
            chain.weight_bytes(each.first, each.last),
            int(tables.memory[each.first, each.last]),
            int(tables.stage[each.kind][each.first, each.last]),
            frontiers[each.last],
        )
        for each in solution.stages
    )
    return Plan(
        model=chain.model.digest,
        chain=chain_digest(chain),
        units=len(chain),
        change=prepared.change,
        splits=prepared.splits,
        batch=profile.batch,
        dims=dict(wanted.dims or {}),
        objective=wanted.objective,
        enclaves=wanted.enclaves,
        paging=tables.ask.paging,
        stages=stages,
        takes=frontiers[0],
        shared=wanted.shared,
        latency_ns=solution.latency_ns,
        period_ns=solution.period_ns,
    )


def _made_by(chain: Chain, output: str) -> int:
    """Bytes of the weights of the operator that makes a tensor."""
    for place, node in enumerate(chain.row.nodes):
        if output in node.output:
            return sum(chain.row.weights(chain.row.order.index(place)).values()) if place in chain.row.order else 0
    return 0
