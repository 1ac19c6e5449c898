"""A model's operators in the row in which they run: what each needs, and what is alive between two of them.

Operators that depend on no input, and so on weights alone, stand in no place of the row: whatever stage needs what they
make has them and their weights. A tensor that crosses a cut is therefore never a weight in disguise.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import re
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from strongroom.serve.graph.model import Model, tensor_bytes
from strongroom.serve.graph.nodes import bodies, made, uses
from strongroom.serve.graph.shapes import Tensor, see_sizes, shapes

# Operators that draw numbers: two stages that each had one would draw different ones.
_RANDOM = {
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
    "Multinomial",
    "Bernoulli",
    "Dropout",
}
_NAMES, _FUNCTIONS = re.compile(r"[^\W\d]\w*"), {"floor", "ceil", "ceiling", "max", "Max", "min", "Min", "Mod"}
_ATTRIBUTES = 1024  # an operator's own attributes of more bytes than this are weights, as trees are
_LINEAR = {"Gemm", "FusedGemm", "MatMul", "FusedMatMul", "MatMulInteger", "QLinearMatMul"}
_CONVOLUTIONS = {"Conv", "FusedConv", "ConvInteger", "QLinearConv", "ConvTranspose"}


class Row:
    """Attributes:

    nodes: all operators of the model.
    order: places in `nodes` of those in the row. A cut has a place here: before the operator of that number.
    tensors: what crosses cuts, by name; None where it could not.
    """

    def __init__(self, model: Model, dims: Mapping[str, int] | None = None) -> None:
        """Raises ModelFormatError: ONNX Runtime cannot load the model. `dims` are sizes of its inputs by name."""
        graph = model.proto.graph
        self.nodes: list[Any] = list(graph.node)
        self._uses = [uses(node) for node in self.nodes]
        self._answers = [each.name for each in graph.output]
        self._inputs = [each.name for each in graph.input]
        self._weights = {each.name: tensor_bytes(each) for each in graph.initializer}
        for sparse in graph.sparse_initializer:
            self._weights[sparse.values.name] = sparse.ByteSize()
        self._shapes = {each.name: tuple(each.dims) for each in graph.initializer}
        self._constant = self._of_weights_alone()
        self.order = [place for place in range(len(self.nodes)) if place not in self._constant]
        self.tensors = shapes(model.proto)
        self._seen = see_sizes(model.proto, self.tensors, dims or {})
        self._dims = self.sizes(dims or {})

    def sizes(self, dims: Mapping[str, int]) -> dict[str, int]:
        """Sizes by name: of the inputs, as given, and those without a name, as they were seen to follow from these."""
        return {name: size.value(dims) for name, size in self._seen.items()} | dict(dims)

    def bytes_of(self, tensor: Tensor) -> int:
        """Bytes of a tensor where the inputs have the sizes that were given."""
        return tensor.bytes_of(self._dims)

    def frontiers(self, cuts: Sequence[int]) -> list[tuple[Tensor, ...]]:
        """What is alive at each of these cuts, ascending, in the order in which it was made."""
        alive: list[list[str]] = [[] for _ in cuts]
        for name, (first, last) in self.lives.items():
            for place in range(bisect.bisect_right(cuts, first), bisect.bisect_right(cuts, last)):
                alive[place].append(name)
        for place, cut in enumerate(cuts):
            if cut in (0, len(self.order)):
                alive[place] = self._answers if cut else self._inputs
        return [tuple(tensor for name in names if (tensor := self.tensors[name]) is not None) for names in alive]

    @functools.cached_property
    def lives(self) -> dict[str, tuple[int, int]]:
        """Of each input and each tensor made: the first place before which it is alive, less one, and the last."""
        lives = dict.fromkeys(self._inputs, (-1, -1))
        for place, node in enumerate(self.order):
            for name in self._uses[node]:
                if name in lives:
                    lives[name] = (lives[name][0], place)
            lives.update((name, (place, place)) for name in made(self.nodes[node]))
        for name in self._answers:
            lives[name] = (lives[name][0], len(self.order))
        return lives

    def taken(self, start: int, end: int) -> tuple[str, ...]:
        """Names of what the operators in these places take and do not make themselves."""
        names = {name: None for place in range(start, end) for name in self._uses[self.order[place]]}
        return tuple(name for name in names if name in self.lives and self.lives[name][0] < start)

    def given(self, start: int, end: int) -> tuple[str, ...]:
        """Names of what they make that is alive behind them."""
        names = [name for place in range(start, end) for name in made(self.nodes[self.order[place]])]
        return tuple(name for name in names if self.lives[name][1] >= end)

    def alive(self, start: int, end: int, dims: Mapping[str, int]) -> int:
        """The most bytes of tensors that are alive at once while the operators in these places run as a stage.

        With what they take and give; of what is no tensor of numbers, and of what goes on in bodies, nothing. A size
        that the model computes of others counts as their product.
        """
        sizes, change = self.sizes(dims), [0] * (end - start + 1)
        for name in self._computed:
            sizes[name] = prod(sizes.get(each, 1) for each in names_in(name))
        held = dict.fromkeys(self.taken(start, end), (start, end - 1))
        for place in range(start, end):
            held |= {name: (place, min(self.lives[name][1], end - 1)) for name in made(self.nodes[self.order[place]])}
        for name, (first, last) in held.items():
            tensor = self.tensors.get(name)
            if tensor is not None:
                change[first - start] += tensor.bytes_of(sizes)
                change[last - start + 1] -= tensor.bytes_of(sizes)
        return max(itertools.accumulate(change))

    @functools.cached_property
    def _computed(self) -> list[str]:
        """Names of sizes that are made of others'."""
        named = {size for each in self.tensors.values() if each is not None for size in each.shape}
        return [each for each in named if isinstance(each, str) and each[0] != "?" and names_in(each) != {each}]

    def behind(self, place: int) -> list[int]:
        """Places in `nodes` of the operators on weights alone that the operator in a place of the row needs."""
        found: set[int] = set()
        pending = [self.order[place]]
        while pending:
            for name in self._uses[pending.pop()]:
                node = self._makers.get(name)
                if node is not None and node not in found:
                    found.add(node)
                    pending.append(node)
        return sorted(found)

    def weights(self, place: int) -> dict[str, int]:
        """Bytes of each weight that the operator in a place needs."""
        held: dict[str, int] = {}
        for node in [self.order[place], *self.behind(place)]:
            held.update((name, self._weights[name]) for name in self._uses[node] if name in self._weights)
            if (size := self.nodes[node].ByteSize()) > _ATTRIBUTES:
                held[f"{made(self.nodes[node])[0]} attributes"] = size
        return held

    def flops(self, place: int) -> int:
        """Multiplications and additions of the operator in a place; a guess."""
        node = self.nodes[self.order[place]]
        elements = sum(_elements(self._shape(name)) for name in made(node))
        if node.op_type in _CONVOLUTIONS and len(node.input) > 1:
            kernel = self._shape(node.input[3 if node.op_type == "QLinearConv" else 1])
            # Of a transposed one, each element of the input meets the kernel.
            meets = _elements(self._shape(node.input[0])) if node.op_type == "ConvTranspose" else elements
            return 2 * meets * prod(kernel[1:])
        if node.op_type in _LINEAR:
            inner = self._shape(node.input[0])
            transposed = any(each.name == "transA" and each.i for each in node.attribute)
            return 2 * elements * (inner[0 if transposed else -1] if inner else 1)
        return elements

    def _shape(self, name: str) -> tuple[int, ...]:
        if name in self._shapes:
            return self._shapes[name]
        tensor = self.tensors.get(name)
        return (
            ()
            if tensor is None
            else tuple(size if isinstance(size, int) else self._dims.get(size, 1) for size in tensor.shape)
        )

    @functools.cached_property
    def _makers(self) -> dict[str, int]:
        return {name: node for node in self._constant for name in made(self.nodes[node])}

    def _of_weights_alone(self) -> set[int]:
        known = set(self._weights)
        found: set[int] = set()
        for place, node in enumerate(self.nodes):
            drawn = node.op_type in _RANDOM or any(True for _ in bodies(node))
            if drawn or not known.issuperset(self._uses[place]) or not set(self._answers).isdisjoint(node.output):
                continue
            found.add(place)
            known.update(made(node))
        return found


def names_in(size: str) -> set[str]:
    """The names that a size is computed of, as exporters write it: ``floor(h/2) + 1``."""
    return set(_NAMES.findall(size)) - _FUNCTIONS


def _elements(shape: tuple[int, ...]) -> int:
    return prod(max(size, 0) for size in shape)
