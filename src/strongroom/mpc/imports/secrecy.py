"""Which constants of a graph are weights, and so secret; told in the same way by every party.

- A number by itself is architecture (an epsilon, a scale), unless a layer takes it as its weight or bias.
- Whole numbers are architecture (shapes, axes, indices), unless they stand for a quantised weight: those of 8 bits or
  fewer do, and with them what an operator that takes such weights is given to scale them.
- Any other constant is a weight, unless it is a mask (nothing but 0, 1 and one number of -2^14 or below), says what to
  do, or is said to be public.
"""

from __future__ import annotations

from collections.abc import Collection

import torch

from strongroom.errors import UsageError
from strongroom.mpc.imports.graph import Graph, Node

_MASKING = -(2.0**14)  # half of what fits at the default settings
_PRODUCTS = {"MatMul", "Gemm", "Conv", "ConvTranspose", "Conv2D", "Conv1D", "DepthwiseConv2dNative"}
_LAYERS = _PRODUCTS | {
    "BatchNormalization", "InstanceNormalization", "LayerNormalization", "GroupNormalization", "RMSNormalization",
    "SimplifiedLayerNormalization", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization",
    "LSTM", "GRU", "RNN", "PRelu", "FusedBatchNormV3", "FusedBatchNorm", "BiasAdd",
    "DequantizeLinear",
}  # fmt: skip
_SUMS = {"Add", "AddV2", "Sub", "Sum", "BiasAdd"}
# What is no data but says what to do, by the places of an operator's inputs; and through what it may come there.
_SETTINGS = {
    "Resize": {1, 2, 3}, "Upsample": {1}, "OneHot": {1, 2}, "Pad": {1, 2, 3}, "PadV2": {1, 2}, "Clip": {1, 2},
    "Pow": {1}, "Dropout": {1, 2}, "Range": {0, 1, 2}, "Reshape": {1}, "Tile": {1}, "Expand": {1},
}  # fmt: skip
_WAYS = {"Concat", "Cast", "Unsqueeze", "Squeeze", "Reshape", "Slice", "Gather", "Identity", "Mul", "Floor"}
_MOVES = {"Cast", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Identity", "Expand", "Flatten"}
_QUANTISED = {"DequantizeLinear", "MatMulInteger", "ConvInteger", "QLinearConv", "QLinearMatMul"}


def weights_among(graph: Graph, *, withheld: Collection[str] = (), public: Collection[str] = ()) -> set[str]:
    """The names of a graph's weights.

    Raises:
        UsageError: a name that is to be public is no constant of the graph.
    """
    if unknown := sorted(set(public) - graph.constants.keys()):
        raise UsageError(f"public: the model has no constant {unknown[0]!r:.120}")
    users, producers = graph.users(), graph.producers()

    def is_weight(name: str, value: torch.Tensor) -> bool:
        if name in public:
            return False
        if name in withheld:
            return True
        takers = users.get(name, [])
        if not value.is_floating_point():
            narrow = value.dtype in (torch.int8, torch.uint8) and value.numel() > 1
            return any(node.op in _QUANTISED for node in takers) or (narrow and not _is_setting(name, users))
        if value.numel() == 1:
            return _is_layers(name, users, producers)
        return not _is_mask(value) and not _is_setting(name, users)

    return {name for name, value in graph.constants.items() if is_weight(name, value)}


def _is_layers(name: str, users: dict[str, list[Node]], producers: dict[str, Node], depth: int = 8) -> bool:
    """Whether a single number is a layer's, as it is or moved: its operand, or what is added to its result."""
    for node in users.get(name, []):
        others = [producers[other].op for other in node.inputs if other != name and other in producers]
        if node.op in _LAYERS or (node.op in _SUMS and any(op in _PRODUCTS for op in others)):
            return True
        moved = depth > 0 and node.op in _MOVES and node.inputs[0] == name
        if moved and _is_layers(node.outputs[0], users, producers, depth - 1):
            return True
    return False


def _is_mask(value: torch.Tensor) -> bool:
    """Whether nothing was learned that a constant holds, as what is added to scores that are not to count."""
    low = value <= _MASKING
    return bool(low.any() and (low | (value == 0) | (value == 1)).all() and (value[low] == value[low][0]).all())


def _is_setting(name: str, users: dict[str, list[Node]], depth: int = 8) -> bool:
    """Whether nothing takes a value as data."""
    takers = users.get(name, [])

    def sets(node: Node) -> bool:
        places = {place for place, given in enumerate(node.inputs) if given == name}
        if places <= _SETTINGS.get(node.op, set()):
            return True
        return depth > 0 and node.op in _WAYS and all(_is_setting(each, users, depth - 1) for each in node.outputs)

    return bool(takers) and all(map(sets, takers))
