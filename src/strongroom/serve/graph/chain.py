"""A model's units in a row, and what crosses each cut."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from strongroom.errors import UsageError, printable
from strongroom.serve.graph.cuts import cut_places
from strongroom.serve.graph.model import Model
from strongroom.serve.graph.row import Row, names_in
from strongroom.serve.graph.shapes import Tensor
from strongroom.serve.graph.split import splits

_PER_TENSOR = 4096  # what a tensor costs at a cut besides its bytes, in bytes
_MOST_TENSORS = 64  # that may cross a cut
# Operators with a state or a flow of their own: what goes on inside them is never cut.
WHOLE = {"If", "Loop", "Scan", "SequenceMap", "LSTM", "GRU", "RNN"}


@dataclass(frozen=True)
class Unit:
    """The smallest piece that is placed: some operators in a row.

    Attributes:
        index: its place in the chain, from 0.
        nodes: places of its operators in the model's graph, in the order in which they run.
        operators: what these are: ``("Conv", "Relu")``.
        inputs, outputs: names of the tensors that it takes from frontiers, and gives to later units or as answers.
        weights: bytes of each weight that it needs, by name; weights of several units are in each.
        flops: multiplications and additions of its large operators, for the sizes that the model was cut for. A guess.
        splits: operators of it that `split` can cut, by name: into how many pieces at most.
    """

    index: int
    nodes: tuple[int, ...] = field(repr=False)
    operators: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weights: Mapping[str, int] = field(repr=False)
    flops: int
    splits: Mapping[str, int]

    @property
    def weight_bytes(self) -> int:
        return sum(self.weights.values())


@dataclass(frozen=True)
class Chain:
    """A model as a row of units. ``chain[i]`` is a unit, ``len(chain)`` how many there are.

    Attributes:
        model: that was cut.
        units: from its inputs to its outputs.
        notes: what could not be cut, and why; one line each.
    """

    model: Model
    units: tuple[Unit, ...]
    notes: tuple[str, ...]
    row: Row = field(repr=False)
    places: tuple[int, ...] = field(repr=False)  # of the cuts, in the row

    def __len__(self) -> int:
        return len(self.units)

    def __getitem__(self, index: int) -> Unit:
        return self.units[index]

    def __iter__(self) -> Iterator[Unit]:
        return iter(self.units)

    def frontier(self, cut: int) -> tuple[Tensor, ...]:
        """The tensors alive between units ``cut - 1`` and ``cut``; at 0 the model's inputs, at the end its outputs."""
        if not 0 <= cut <= len(self.units):
            raise UsageError(f"cut: got {cut}, wanted 0 to {len(self.units)}")
        return self._frontiers[cut]

    def frontier_bytes(self, cut: int, dims: Mapping[str, int] | None = None) -> int:
        """Bytes of the frontier where the model's inputs have these sizes; what `dims` does not name is 1."""
        sizes = self.sizes(dims)
        return sum(tensor.bytes_of(sizes) for tensor in self.frontier(cut))

    def sizes(self, dims: Mapping[str, int] | None = None) -> Mapping[str, int]:
        """What `Tensor.bytes_of` takes, where the model's inputs have these sizes.

        Sizes without a name in the model (``?...``) are there too, as they were when it ran once on zeros: they are
        for estimates, and no stage declares them.
        """
        return self.row.sizes(dims or {})

    def unnamed(self, start: int, end: int) -> tuple[str, ...]:
        """Of what a stage gives, names of tensors with a size that is not made of the inputs': values may decide it."""
        known = {size for each in self.frontier(0) for size in each.shape if isinstance(size, str)}

        def told(size: int | str) -> bool:
            if isinstance(size, int) or size in known:
                return True
            return not size.startswith("?") and names_in(size) <= known

        return tuple(each.name for each in self.outputs(start, end) if not all(map(told, each.shape)))

    def weight_bytes(self, start: int, end: int) -> int:
        """Bytes of the weights of units ``start`` to ``end - 1`` as one stage: what several of them use counts once."""
        weights: dict[str, int] = {}
        for unit in self.run(start, end):
            weights.update(unit.weights)
        return sum(weights.values())

    def alive_bytes(self, start: int, end: int, dims: Mapping[str, int] | None = None) -> int:
        """The most bytes of tensors that are alive at once while these units run as a stage.

        Args:
            dims: as `frontier_bytes` has them.
        """
        self.run(start, end)
        return self.row.alive(self.places[start], self.places[end], dims or {})

    def inputs(self, start: int, end: int) -> tuple[Tensor, ...]:
        """What a stage of these units takes, of ``frontier(start)``."""
        taken = {name for unit in self.run(start, end) for name in unit.inputs}
        return tuple(tensor for tensor in self.frontier(start) if tensor.name in taken)

    def outputs(self, start: int, end: int) -> tuple[Tensor, ...]:
        """What a stage of these units gives, to ``frontier(end)``."""
        given = {name for unit in self.run(start, end) for name in unit.outputs}
        return tuple(tensor for tensor in self.frontier(end) if tensor.name in given)

    def passed(self, start: int, end: int) -> tuple[Tensor, ...]:
        """What of ``frontier(end)`` was alive before the stage: handed on around it."""
        given = {tensor.name for tensor in self.outputs(start, end)}
        return tuple(tensor for tensor in self.frontier(end) if tensor.name not in given)

    def run(self, start: int, end: int) -> tuple[Unit, ...]:
        """Units ``start`` to ``end - 1``.

        Raises:
            UsageError: there is no such run of units, or it is empty.
        """
        if not 0 <= start < end <= len(self.units):
            raise UsageError(f"units: got {start} to {end}, wanted a run of the {len(self.units)} that there are")
        return self.units[start:end]

    @functools.cached_property
    def _frontiers(self) -> list[tuple[Tensor, ...]]:
        return self.row.frontiers(self.places)


def units(model: Model, *, dims: Mapping[str, int] | None = None, most: int = 1000) -> Chain:
    """Cut a model at frontiers of few tensors.

    Args:
        dims: sizes of its inputs that the model only names, such as ``{"batch": 4}``, for weighing what crosses; what
            it does not name counts as 1. The same units can be run with other sizes.
        most: units at most.

    Raises:
        ModelFormatError: ONNX Runtime cannot load it.
        UsageError: `most` is below 1.
    """
    if most < 1:
        raise UsageError(f"units: at most {most}, wanted at least 1")
    row = Row(model, dims)
    count = len(row.order)
    held = [row.weights(place) for place in range(count)]
    work = [row.flops(place) for place in range(count)]
    places = cut_places([sum(each.values()) for each in held], work, _costs(row), most=most) if count else [0, 0]
    can = splits(model, row)
    made_units = []
    for index, (start, end) in enumerate(itertools.pairwise(places)):
        weights: dict[str, int] = {}
        for place in range(start, end):
            weights.update(held[place])
        nodes = [row.nodes[row.order[place]] for place in range(start, end)]
        made_units.append(
            Unit(
                index,
                tuple(row.order[start:end]),
                tuple(node.op_type for node in nodes),
                row.taken(start, end),
                row.given(start, end),
                weights,
                sum(work[start:end]),
                {node.output[0]: can[node.output[0]] for node in nodes if node.output[0] in can},
            )
        )
    return Chain(model, tuple(made_units), tuple(_notes(row, places)), row, tuple(places))


def _costs(row: Row) -> list[int | None]:
    """What it costs to cut before each operator: bytes, and a little for each tensor; None where no cut can be."""
    count = len(row.order)
    cost, tensors, stuck = ([0] * (count + 2) for _ in range(3))
    for name, (first, last) in row.lives.items():
        tensor = row.tensors[name]
        for rises, by in (
            (cost, 0 if tensor is None else row.bytes_of(tensor) + _PER_TENSOR),
            (tensors, 1),
            (stuck, tensor is None),
        ):
            rises[first + 1] += by
            rises[last + 1] -= by
    sums = zip(*(itertools.accumulate(rises) for rises in (cost, tensors, stuck)), strict=True)
    return [None if no or many > _MOST_TENSORS else total for total, many, no in sums][:count]


def _notes(row: Row, places: list[int]) -> Iterator[str]:
    """What could not be cut, and why."""
    for start, end in itertools.pairwise(places):
        kept = sorted({node.op_type for node in (row.nodes[place] for place in row.order[start:end])} & WHOLE)
        if kept:
            yield f"unit {places.index(start)}: {', '.join(kept)} is kept whole"
    stuck = [name for name, tensor in row.tensors.items() if tensor is None and name in row.lives]
    if stuck:
        yield f"not cut where {printable(stuck[0])[:80]!r} is alive, which is no tensor of numbers"
    if len(places) == 2:
        yield "one unit: there is nowhere to cut" if len(row.order) != 1 else "one unit: there is one operator"
