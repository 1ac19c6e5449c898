"""`cost`: what a model or a program will cost, counted without peers and without secrets."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NoReturn

import torch
from torch import nn
from torch.utils._pytree import tree_iter

from strongroom.errors import UsageError
from strongroom.mpc.costs.dry import DryMeter, DryParty, Stretch
from strongroom.mpc.costs.figures import HEAD, PARTIES, By, Figures, Operation, Row, Summed, cells, table
from strongroom.mpc.costs.network import NETWORKS, Network, simulate
from strongroom.mpc.costs.where import Modules
from strongroom.mpc.party import P0, P1
from strongroom.mpc.ring import Settings
from strongroom.mpc.tensor.shared_tensor import SharedTensor
from strongroom.mpc.tensor.sharing import own, reveal, share
from strongroom.mpc.tensor.world import World

Weights = Literal["own", "share", "public"]
Example = torch.Tensor | Sequence[int] | Sequence[Any]


@dataclass(frozen=True)
class Cost(Summed):
    """What a stretch of a program costs.

    Attributes:
        operations: in order.
        first: of a model, what its first call costs, which masks the weights; this is then the cost of each later one.
    """

    operations: tuple[Operation, ...]
    first: Cost | None = None

    @property
    def figures(self) -> Figures:
        return self.total.figures

    @property
    def seconds(self) -> dict[str, float]:
        """Predicted, by network."""
        return self.total.seconds

    def table(self, by: By = "module") -> str:
        """The sums of one kind, and what all of it costs."""
        lines = [*self.sums(by), self.total] + (
            [] if self.first is None else [_renamed(self.first.total, "first call")]
        )
        return table((*HEAD, *self.seconds), map(cells, lines))

    def __str__(self) -> str:
        return self.table()

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2)

    def to_dict(self) -> dict[str, object]:
        found: dict[str, object] = {
            "total": self.total.to_json(),
            "by_module": [each.to_json() for each in self.by_module],
            "by_line": [each.to_json() for each in self.by_line],
            "by_operation": [each.to_json() for each in self.by_operation],
        }
        if self.first is not None:
            found["first"] = self.first.to_dict()
        return found


def cost(
    program: nn.Module | Callable[[], Any],
    example: Example | None = None,
    *,
    weights: Weights = "own",
    classes: int | None = None,
    settings: Settings | None = None,
    networks: Sequence[Network] = NETWORKS,
) -> Cost:
    """What a model's call, or a program, costs: exactly in rounds and bytes, and about how long it takes.

    Each party's code runs here once, alone and without values: no source is asked for what it has, no key is made,
    everything received is zeros. So the program must not be steered by what it reveals.

    Seconds are those of `network.simulate`: what each party computes, timed here, and its frames on their way.

    Args:
        program: a module, or a function that would run in a world.
        example: of a module's input, from P0: a tensor, a shape, or a tuple of those for several inputs. Its values do
            not matter.
        weights: of a module: `own`, P1's in the clear; `share`, secret from both servers; `public`.
        classes: of inputs that are secret indices, `torch.int64`, how many there are.
        settings: of the parties.
        networks: to predict seconds for.

    Returns:
        for a module the cost of one call with its inputs shared and its results revealed to P0, once the weights are
        masked; `first` is that of the first.
    """
    if isinstance(program, nn.Module):
        if example is None:
            raise UsageError("example: got none, wanted an input of the model or its shape")
        run = _calls(program, _inputs(example), weights, classes)
    elif example is not None:
        raise UsageError("example: got one for a function, wanted none", hint="a program shares its own inputs")
    else:
        run = _once(program)
    _alone(P0, run, settings or Settings())  # what is imported and made once for all is no part of it
    stretches = [_alone(rank, run, settings or Settings()) for rank in range(PARTIES)]
    costs = [_joined(each, networks) for each in zip(*stretches, strict=True)]
    return costs[0] if len(costs) == 1 else Cost(costs[-1].operations, first=costs[-2])


Run = Callable[[Callable[[], None]], None]


def _once(program: Callable[[], Any]) -> Run:
    def run(cut: Callable[[], None]) -> None:
        program()
        cut()

    return run


def _calls(model: nn.Module, inputs: Sequence[torch.Tensor], weights: Weights, classes: int | None) -> Run:
    """Prepare a model, then call it twice: a cut after each."""
    makers: dict[str, Callable[..., nn.Module]] = {"own": own, "share": share}
    if weights != "public" and weights not in makers:
        raise UsageError(f"weights: got {weights!r}, wanted own, share or public")

    def run(cut: Callable[[], None]) -> None:
        prepared = model if weights == "public" else makers[weights](dict, source=P1, like=model)
        cut()
        for _ in range(2):
            secrets = [share(_nothing, source=P0, **_described(each, classes)) for each in inputs]
            for each in tree_iter(prepared(*secrets)):
                if isinstance(each, SharedTensor):
                    reveal(each, to=P0)
            cut()

    return run


def _nothing() -> NoReturn:
    raise AssertionError("a dry party asks no source")


def _described(tensor: torch.Tensor, classes: int | None) -> dict[str, Any]:
    """An input as `share` wants it."""
    index = {} if tensor.dtype != torch.int64 else {"classes": classes}
    return {"shape": tuple(tensor.shape), "dtype": tensor.dtype, **index}


def _inputs(example: Any) -> list[torch.Tensor]:
    """Tensors without elements, of an example's shapes."""
    if isinstance(example, torch.Tensor):
        return [example.to("meta")]
    if all(isinstance(each, int) for each in example):
        return [torch.empty(tuple(example), device="meta")]
    return [tensor for each in example for tensor in _inputs(each)]


def _alone(rank: int, run: Run, settings: Settings) -> list[Stretch]:
    """What one party does between the cuts."""
    found: list[Stretch] = []
    with Modules() as modules:
        meter = DryMeter(rank, modules)
        with World(DryParty(rank, settings, meter)):
            meter.cut()
            run(lambda: found.append(meter.cut()))
    return found


def _joined(parties: Sequence[Stretch], networks: Sequence[Network]) -> Cost:
    """The three parties' counts of one stretch, and when each operation is over on each network."""
    names = [[each.name for each in party.operations] for party in parties]
    if not names[0] == names[1] == names[2]:
        raise UsageError(
            "program: the parties do not run the same operations", hint="only what all three know may steer it"
        )
    steps, rest = [party.steps for party in parties], [party.rest for party in parties]
    over = {each.name: simulate(steps, rest, len(names[0]), each) for each in networks}
    operations = []
    for i, counted in enumerate(zip(*(party.operations for party in parties), strict=True)):
        p0, p1, dealer = (each.figures(rank) for rank, each in enumerate(counted))
        # Rounds and comparisons are the servers' together.
        figures = p0 + replace(p1, rounds=0, compared=0) + replace(dealer, rounds=0, compared=0)
        last = i == len(names[0]) - 1
        seconds = {name: ends[i + 1 if last else i] - (ends[i - 1] if i else 0.0) for name, ends in over.items()}
        operations.append(Operation(counted[0].name, counted[0].place, figures, seconds))
    return Cost(tuple(operations))


def _renamed(row: Row, label: str) -> Row:
    return Row(label, row.calls, row.figures, row.seconds)
