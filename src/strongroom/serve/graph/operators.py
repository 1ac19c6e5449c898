"""The operators that can be cut in pieces, and how each is.

What is cut is a weight that is an operand of its own: of Gemm, MatMul, Conv and their fused and quantised kinds, and
the table of Gather. A piece by output channels takes its part of the bias too, and of scales and zero points that
belong to channels.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from strongroom.serve.graph.model import tensor_bytes
from strongroom.serve.graph.operands import Operands, name_of
from strongroom.serve.graph.shapes import Tensor
from strongroom.serve.runtime import onnx

# By operator: which operand is the weight, and which go with its output channels.
_OPERANDS: Mapping[str, tuple[int, tuple[int, ...]]] = {
    "Gemm": (1, (2,)),
    "FusedGemm": (1, (2,)),
    "MatMul": (1, ()),
    "FusedMatMul": (1, ()),
    "MatMulInteger": (1, (3,)),
    "MatMulIntegerToFloat": (1, (3, 5, 6)),
    "DynamicQuantizeMatMul": (1, (2, 3, 4)),
    "QLinearMatMul": (3, (4, 5)),
    "Conv": (1, (2,)),
    "FusedConv": (1, (2,)),
    "ConvTranspose": (1, (2,)),
    "ConvInteger": (1, (3,)),
    "QLinearConv": (3, (4, 5, 8)),
    "Gather": (0, ()),
}
_CONVOLUTIONS = {"Conv", "FusedConv", "ConvTranspose", "ConvInteger", "QLinearConv"}
_BY_ROWS = {"Gemm", "FusedGemm", "MatMul", "FusedMatMul", "Conv", "FusedConv"}
# Activations without parameters, which can follow a sum of pieces as operators of their own.
_PLAIN = {"Relu", "Sigmoid", "Tanh"}
# Channels that processors work on at once: pieces of whole ones run in the kernels that the whole runs in. What is
# narrower, or of a single group, runs in others, whose sums differ in their last bit.
_WIDTH, _GROUPS = 16, 2


@dataclass(frozen=True)
class Cuttable:
    """An operator that can be cut.

    Attributes:
        bytes: of its weight.
        columns, rows: into how many pieces at most, by output channels and by rows; 0 where it cannot be.
    """

    node: Any = field(repr=False)
    opset: int
    weight: int  # its operands: the weight, and those that go with its output channels
    beside: tuple[int, ...]
    bytes: int
    columns: int
    rows: int
    column_axis: int  # of the weight
    row_axis: int
    output_axis: int
    input_axis: int  # of the input, that meets the weight's rows
    groups: int
    channels: int
    width: int  # pieces are multiples of so many channels, or groups

    def largest(self, pieces: int) -> int:
        """Bytes of the weight of the largest of so many pieces by output channels."""
        units = self.groups if self.groups > 1 else self.channels
        return max(self.bytes * (end - start) // units for start, end in pieces_of(units, pieces, self.width))

    def by_columns(self, pieces: int, weights: Operands, new: Callable[[str], str]) -> Iterator[Any]:
        """The operators that take its place, and their weights."""
        node, name = self.node, self.node.output[0]
        dims = weights.stored(node.input[self.weight]).dims
        channels = self.channels
        units = self.groups if self.groups > 1 else channels
        parts = []
        for start, end in pieces_of(units, pieces, self.width):
            piece = _like(node)
            first, last = start * channels // units, end * channels // units
            for operand in (self.weight, *self.beside):
                if operand >= len(node.input) or not node.input[operand]:
                    continue
                shape = weights.stored(node.input[operand]).dims
                axis = self.column_axis if operand == self.weight else len(shape) - 1
                if operand == self.weight or (shape and shape[axis] == channels):
                    for made in weights.part(node.input[operand], axis, first, last, new):
                        yield made
                        piece.input[operand] = name_of(made)
            if self.groups > 1:
                whole = piece.input[0]
                piece.input[0] = new(whole)
                width = dims[1]
                yield from self._slice(whole, piece.input[0], 1, start * width, end * width, new)
                _set(piece, "group", end - start)
            parts.append(new(name))
            piece.output[0] = parts[-1]
            yield piece
        yield onnx().helper.make_node("Concat", parts, [name], axis=self.output_axis)

    def by_rows(self, pieces: int, weights: Operands, new: Callable[[str], str]) -> Iterator[Any]:
        """The operators that take its place, and their weights."""
        helper = onnx().helper
        node, name = self.node, self.node.output[0]
        count = weights.stored(node.input[self.weight]).dims[self.row_axis]
        activation = next((each.s.decode() for each in node.attribute if each.name == "activation"), "")
        whole: str | None = None
        for start, end in pieces_of(count, pieces, 1):
            piece = _like(node)
            if activation:
                _unset(piece, "activation")
                piece.op_type, piece.domain = piece.op_type.removeprefix("Fused"), ""
            piece.input[0] = new(node.input[0])
            yield from self._slice(node.input[0], piece.input[0], self.input_axis, start, end, new)
            for made in weights.part(node.input[self.weight], self.row_axis, start, end, new):
                yield made
                piece.input[self.weight] = name_of(made)
            if start and len(piece.input) > 2:  # the bias is added once
                del piece.input[2:]
                if self.opset < 11 and piece.op_type == "Gemm":  # where it must have one
                    piece.input.append(new(name))
                    kind = weights.stored(node.input[2]).data_type
                    yield helper.make_tensor(piece.input[2], kind, [1], [0])
            last = end == count
            piece.output[0] = new(name)
            yield piece
            if whole is not None:
                total = name if last and not activation else new(name)
                yield helper.make_node("Add", [whole, piece.output[0]], [total])
                whole = total
            else:
                whole = piece.output[0]
        if activation:
            yield helper.make_node(activation, [whole], [name])

    def _slice(self, name: str, part: str, axis: int, start: int, end: int, new: Callable[[str], str]) -> Iterator[Any]:
        helper = onnx().helper
        if self.opset < 10:
            yield helper.make_node("Slice", [name], [part], starts=[start], ends=[end], axes=[axis])
            return
        operands = [new(part) for _ in range(3)]
        for operand, value in zip(operands, (start, end, axis), strict=True):
            yield helper.make_tensor(operand, onnx().TensorProto.INT64, [1], [value])
        yield helper.make_node("Slice", [name, *operands], [part])


def cuttable(node: Any, weights: Operands, tensors: Mapping[str, Tensor | None], opset: int) -> Cuttable | None:
    """How an operator can be cut; None where it cannot be.

    Args:
        weights: of its graph.
        tensors: what is known of all others.
        opset: of the model.
    """
    if node.op_type not in _OPERANDS or len(node.output) != 1 or node.domain not in ("", "ai.onnx", "com.microsoft"):
        return None
    at, beside = _OPERANDS[node.op_type]
    output, said = tensors.get(node.output[0]), {each.name: each for each in node.attribute}
    turned = any(said[name].i for name in ("transA", "transBatchA", "transBatchB") if name in said)
    if node.op_type == "MatMul" and weights.stored(node.input[0]) and not weights.stored(node.input[1]):
        at = 0
    names = [node.input[each] for each in (at, *beside) if each < len(node.input) and node.input[each]]
    if output is None or not output.ranked or not output.shape or not names or not all(map(weights.stored, names)):
        return None
    weight = weights.stored(node.input[at])
    rank = len(weight.dims)
    other = tensors.get(node.input[1 if at == 0 else 0])
    convolution, axes, groups, last = node.op_type in _CONVOLUTIONS, None, 1, len(output.shape) - 1
    if node.op_type == "Gather":
        if rank > 1 and not ("axis" in said and said["axis"].i not in (0, -rank)):
            axes = (rank - 1, 0, last)
    elif convolution:
        groups = said["group"].i if "group" in said else 1
        added = node.op_type == "FusedConv" and len(node.input) > 3  # a tensor that is added before it is activated
        if rank > 2 and not added and not (groups > 1 and node.op_type in ("ConvTranspose", "QLinearConv")):
            axes = (1, 0, 1) if node.op_type == "ConvTranspose" else (0, 1, 1)
    elif at == 0:
        if rank > 1 and other is not None and other.shape:
            axes = (rank - 2, rank - 1, last if len(other.shape) == 1 else last - 1)
    elif rank > 1 and not any(name in said and said[name].i for name in ("transBatchA", "transBatchB")):
        flipped = "transB" in said and said["transB"].i
        axes = (rank - 2, rank - 1, last) if flipped else (rank - 1, rank - 2, last)
    if axes is None or axes[2] < 0:
        return None
    column, row, out = axes
    if not weights.can_part(node.input[at], column):
        return None
    for each in names[1:]:
        shape = weights.stored(each).dims
        if shape and not weights.can_part(each, len(shape) - 1):
            return None
    activation = said["activation"].s.decode() if "activation" in said else ""
    rows = 0
    if node.op_type in _BY_ROWS and at == 1 and groups == 1 and activation in {"", *_PLAIN} and other is not None:
        can = weights.can_part(node.input[at], row)
        rows = 0 if not can or (turned and node.op_type != "Gemm") else weight.dims[row]
    channels = weight.dims[column]
    width = _GROUPS if 1 < groups < channels else 1 if node.op_type == "Gather" else _WIDTH
    meets = 1 if convolution else 0 if turned else (len(other.shape) - 1 if other is not None else 0)
    return Cuttable(
        node=node,
        opset=opset,
        weight=at,
        beside=beside if at else (),
        bytes=tensor_bytes(weight),
        columns=(groups if groups > 1 else channels) // width,
        rows=rows,
        column_axis=column,
        row_axis=row,
        output_axis=out,
        input_axis=meets,
        groups=groups,
        channels=channels,
        width=width,
    )


def pieces_of(count: int, pieces: int, width: int) -> list[tuple[int, int]]:
    """Where each piece of `count` starts and ends: as equal as they can be, all but the last multiples of `width`."""
    steps = count // width
    places = [width * (steps * piece // pieces) for piece in range(pieces)]
    return list(itertools.pairwise([*places, count]))


def _like(node: Any) -> Any:
    other = type(node)()
    other.CopyFrom(node)
    other.name = ""
    return other


def _unset(node: Any, name: str) -> None:
    for place, each in enumerate(node.attribute):
        if each.name == name:
            del node.attribute[place]
            return


def _set(node: Any, name: str, value: int) -> None:
    _unset(node, name)
    node.attribute.append(onnx().helper.make_attribute(name, value))
