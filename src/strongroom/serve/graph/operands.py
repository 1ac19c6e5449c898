"""Weights as operators take them: as they are stored, or cast or dequantised first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from strongroom.serve.runtime import onnx


class Operands:
    """The weights of a graph.

    Args:
        graph: whose.
    """

    def __init__(self, graph: Any) -> None:
        self._stored = {each.name: each for each in graph.initializer}
        self._made: dict[str, Any] = {}
        for node in graph.node:
            if node.op_type in ("Cast", "DequantizeLinear") and all(map(self.stored, filter(None, node.input))):
                self._made[node.output[0]] = node

    def stored(self, name: str) -> Any:
        """The weight whose values, each by itself, an operand is made of, of the same shape; None if it is of none."""
        while name in self._made:
            name = self._made[name].input[0]
        return self._stored.get(name)

    def values(self, name: str) -> Any:
        """A stored weight as an array."""
        return onnx().numpy_helper.to_array(self._stored[name])

    def can_part(self, name: str, axis: int) -> bool:
        """Whether a part of an operand, along an axis, can be made of parts of what is stored."""
        node = self._made.get(name)
        if node is None:
            return name in self._stored
        if node.op_type == "Cast":
            return self.can_part(node.input[0], axis)
        said = {each.name: each.i for each in node.attribute}
        shape = self.stored(name).dims
        along = said.get("axis", 1) % max(1, len(shape))
        for scale in filter(None, node.input[1:]):
            # Pieces would share one scale for all, which ONNX Runtime's fusions do not take: they would multiply in 32
            # bits where the whole does in 8.
            if scale not in self._stored or along != axis or not self._by_channel(scale, shape, axis):
                return False
        return not said.get("block_size") and self.can_part(node.input[0], axis)

    def part(self, name: str, axis: int, start: int, end: int, new: Callable[[str], str]) -> Iterator[Any]:
        """What makes a part of an operand: weights, and operators that make it of them; the last is the part itself."""
        node = self._made.get(name)
        if node is None:
            array = self.values(name)[(*[slice(None)] * axis, slice(start, end))]
            yield onnx().numpy_helper.from_array(array, new(name))
            return
        other = type(node)()
        other.CopyFrom(node)
        other.name = ""
        for place, each in enumerate(node.input):
            if each and (place == 0 or self._by_channel(each, self.stored(name).dims, axis)):
                for made in self.part(each, axis if place == 0 else 0, start, end, new):
                    yield made
                    other.input[place] = name_of(made)
        other.output[0] = new(name)
        yield other

    def _by_channel(self, scale: str, shape: Sequence[int], axis: int) -> bool:
        return list(self._stored[scale].dims) == [shape[axis]]


def name_of(made: Any) -> str:
    """What `Operands.part` made is called."""
    return str(made.output[0] if hasattr(made, "op_type") else made.name)
