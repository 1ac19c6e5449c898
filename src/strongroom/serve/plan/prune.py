"""Whole channels taken out of a model, so that it is smaller in memory and in time.

Where a convolution or product leads to one other by operators that treat each channel alone (activations, pooling,
batch normalisation), its output channels with the least sum of absolute weights go: rows of its weight and of its bias,
of the normalisation's parameters, and what the other operator has for them. All else stays: channels that are added to
others, as in residual blocks, or are answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from strongroom.serve.runtime import onnx
from strongroom.serve.tensors import Array

_ALONE: Final = {
    "Relu", "LeakyRelu", "Elu", "Selu", "Sigmoid", "Tanh", "Softplus", "HardSigmoid", "HardSwish", "Gelu", "Mish",
    "Clip", "Identity", "Dropout", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "BatchNormalization",
}  # fmt: skip
_FLAT: Final = {"Flatten", "Squeeze"}
_POOLS: Final = {"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"}
_POOLED: Final = {"GlobalAveragePool", "GlobalMaxPool"}


@dataclass
class _Way:
    """From one operator's channels to the other that takes them in.

    Attributes:
        along: names of what has a number for each channel on the way.
    """

    maker: Any
    taker: Any
    along: list[str] = field(default_factory=list)


def prune(proto: Any, share: float) -> int:
    """Take away this share of the channels of every operator where they can be taken; how many were, in all."""
    numpy = onnx().numpy_helper
    graph = proto.graph
    weights = {each.name: each for each in graph.initializer}
    users: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    bodies = any(each.g.node or each.graphs for node in graph.node for each in node.attribute)
    if bodies:  # they may use any tensor by its name
        return 0
    answers = {each.name for each in graph.output}
    taken = 0
    for node in graph.node:
        way = _way(node, users, weights, answers)
        if way is None:
            continue
        changed = _thinner(way, {name: numpy.to_array(weights[name]) for name in _names(way)}, share)
        for name, value in changed.items():
            weights[name].CopyFrom(numpy.from_array(value, name))
        if changed:
            taken += 1
    if taken:
        del graph.value_info[:]
    return taken


def _way(node: Any, users: Mapping[str, list[Any]], weights: Mapping[str, Any], answers: set[str]) -> _Way | None:
    """The way from this operator's channels to the one that takes them in; None if there is no such."""
    if not _owns(node, users, weights) or _attribute(node, "group", 1) != 1:
        return None
    way = _Way(node, None)
    name, flat, pooled, convolved = node.output[0], False, False, node.op_type == "Conv"
    while name not in answers and len(users.get(name, ())) == 1:
        after = users[name][0]
        if len([output for output in after.output if output]) > 1:
            return None
        if after.op_type == "Add" and not convolved:  # a bias; of a convolution it would have another shape
            other = [each for each in after.input if each != name]
            if len(other) != 1 or not _is_own(other[0], users, weights):
                return None
            way.along.append(other[0])
        elif after.input[0] != name:
            return None
        elif after.op_type in _ALONE:
            if after.op_type == "BatchNormalization":
                if node.op_type == "MatMul" or not all(_is_own(each, users, weights) for each in after.input[1:]):
                    return None
                way.along.extend(after.input[1:])
            elif after.op_type in _POOLS and not convolved:
                return None
            pooled = pooled or after.op_type in _POOLED
        elif after.op_type in _FLAT and convolved and pooled:
            flat = True
        elif after.op_type in ("Conv", "Gemm", "MatMul"):
            fits = (after.op_type == "Conv") == (convolved and not flat)
            if not fits or not _owns(after, users, weights) or _attribute(after, "group", 1) != 1:
                return None
            way.taker = after
            return way
        else:
            return None
        name = after.output[0]
    return None


def _owns(node: Any, users: Mapping[str, list[Any]], weights: Mapping[str, Any]) -> bool:
    """Whether it is an operator with weights of its own, of 32-bit numbers."""
    if node.op_type not in ("Conv", "Gemm", "MatMul") or len(node.input) < 2:
        return False
    if node.op_type == "Gemm" and _attribute(node, "transA", 0):
        return False
    return all(_is_own(name, users, weights) for name in node.input[1:] if name)


def _is_own(name: str, users: Mapping[str, list[Any]], weights: Mapping[str, Any]) -> bool:
    return name in weights and len(users[name]) == 1 and weights[name].data_type == 1


def _attribute(node: Any, name: str, default: int) -> int:
    return next((int(each.i) for each in node.attribute if each.name == name), default)


def _names(way: _Way) -> list[str]:
    return [name for name in (*way.maker.input[1:], *way.taker.input[1:], *way.along) if name]


def _thinner(way: _Way, arrays: Mapping[str, Array], share: float) -> dict[str, Array]:
    """The weights without the least channels; nothing where shapes are not as they should be."""
    maker, taker = way.maker, way.taker
    made, into = arrays[maker.input[1]], arrays[taker.input[1]]
    out, in_ = _out_axis(maker), _in_axis(taker)
    if made.ndim < 2 or into.ndim < 2 or made.shape[out] != into.shape[in_]:
        return {}
    channels = made.shape[out]
    go = min(int(channels * share), channels - 1)
    sums = np.abs(made).sum(axis=tuple(axis for axis in range(made.ndim) if axis != out))
    keep = np.sort(np.argsort(sums, kind="stable")[go:])
    if not go:
        return {}
    changed = {
        maker.input[1]: np.take(made, keep, axis=out),
        taker.input[1]: np.take(into, keep, axis=in_),
    }
    for name in (*maker.input[2:3], *way.along):
        if name:
            value = arrays[name]
            if value.shape[-1:] == (channels,) and value.size == channels:
                changed[name] = np.take(value, keep, axis=-1)
            elif value.size != 1:
                return {}
    return changed


def _out_axis(node: Any) -> int:
    if node.op_type == "Conv":
        return 0
    return 0 if node.op_type == "Gemm" and _attribute(node, "transB", 0) else 1


def _in_axis(node: Any) -> int:
    if node.op_type == "Conv":
        return 1
    return 1 if node.op_type == "Gemm" and _attribute(node, "transB", 0) else 0
