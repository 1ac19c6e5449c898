"""TensorFlow's operators that ONNX says otherwise: images with channels last, slices by masks, axes as inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch.nn import functional

from strongroom.mpc.imports.graph import TENSORFLOW, Node, operator
from strongroom.mpc.imports.operators.common import Tensor, ints, is_secret, limited, plain
from strongroom.mpc.imports.operators.layers import convolve, folded
from strongroom.mpc.imports.operators.pooling import average_pool, max_pool
from strongroom.mpc.imports.operators.rearrange import padded


def _op(*names: str) -> Callable[[Callable[..., object]], Callable[..., object]]:
    return operator(*names, domain=TENSORFLOW)


def _last(node: Node) -> bool:
    return str(node.get("data_format", "NHWC")).endswith("C")


def _image(node: Node, x: Tensor) -> Tensor:
    """With channels before height and width."""
    return x.permute(0, x.ndim - 1, *range(1, x.ndim - 1)) if _last(node) else x


def _back(node: Node, x: Tensor) -> Tensor:
    return x.permute(0, *range(2, x.ndim), 1) if _last(node) else x


def _sides(node: Node, name: str, count: int) -> list[int]:
    """Of an attribute for all axes, those of height and width."""
    given = node.get(name) or [1] * (count + 2)
    return list(given[1:-1] if _last(node) else given[2:])


def _borders(node: Node, sides: Sequence[int], spans: Sequence[int], steps: Sequence[int]) -> list[tuple[int, int]]:
    how = node.get("padding", "VALID")
    if how == "EXPLICIT":
        flat = node.get("explicit_paddings")
        pairs = list(zip(flat[::2], flat[1::2], strict=True))
        return pairs[1:-1] if _last(node) else pairs[2:]
    if how == "VALID":
        return [(0, 0)] * len(sides)
    totals = [max((-(-n // step) - 1) * step + span - n, 0) for n, span, step in zip(sides, spans, steps, strict=True)]
    return [(total // 2, total - total // 2) for total in totals]


@_op("Conv2D", "DepthwiseConv2dNative")
def _conv(node: Node, x: Tensor, w: Tensor) -> Tensor:
    steps, gaps = _sides(node, "strides", 2), _sides(node, "dilations", 2)
    x, groups = _image(node, x), 1
    if node.op == "DepthwiseConv2dNative":
        rows, columns, groups, times = w.shape
        kernel = w.permute(2, 3, 0, 1).reshape(groups * times, 1, rows, columns)
    else:
        kernel = w.permute(3, 2, 0, 1)
        groups = x.shape[1] // kernel.shape[1]
    spans = [(k - 1) * gap + 1 for k, gap in zip(kernel.shape[2:], gaps, strict=True)]
    both = _borders(node, x.shape[2:], spans, steps)
    return _back(node, convolve(node, x, kernel, None, steps, gaps, both, groups))


@_op("Conv2DBackpropInput")
def _conv_transpose(node: Node, shape: Tensor, w: Tensor, x: Tensor) -> Tensor:
    wanted = ints(node, shape, "shape")
    sides = wanted[1:3] if _last(node) else wanted[2:4]
    steps, kernel = _sides(node, "strides", 2), w.permute(3, 2, 0, 1)
    both = _borders(node, sides, kernel.shape[2:], steps)
    whole = functional.conv_transpose2d(_image(node, x), kernel, None, steps)
    ends = [side + before for side, (before, _) in zip(sides, both, strict=True)]
    more = [end - n for end, n in zip(ends, whole.shape[2:], strict=True)]
    borders = [(-before, extra) for (before, _), extra in zip(both, more, strict=True)]
    return _back(node, padded(whole, [(0, 0), (0, 0), *borders]))


@_op("MaxPool", "AvgPool")
def _pool(node: Node, x: Tensor) -> Tensor:
    x, kernel, steps = _image(node, x), _sides(node, "ksize", 2), _sides(node, "strides", 2)
    both = _borders(node, x.shape[2:], kernel, steps)
    if node.op == "AvgPool":
        return _back(node, average_pool(node, x, kernel, steps, both))
    return _back(node, max_pool(node, x, kernel, steps, [1, 1], both))


@_op("BiasAdd")
def _bias_add(node: Node, x: Tensor, bias: Tensor) -> Tensor:
    return x + (bias if _last(node) else bias.reshape(-1, *[1] * (x.ndim - 2)))


@_op("FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3")
def _batch_norm(node: Node, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    if node.get("is_training", True):
        raise node.refuse("is_training, wanted the running statistics")
    scale, shift = folded(weight, bias, mean, variance, node.get("epsilon", 1e-4))
    return _back(node, _image(node, x) * scale.reshape(-1, 1, 1) + shift.reshape(-1, 1, 1))


@_op("MatMul", "BatchMatMul", "BatchMatMulV2", "BatchMatMulV3")
def _matmul(node: Node, x: Tensor, w: Tensor) -> Tensor:
    first, second = node.get("transpose_a") or node.get("adj_x"), node.get("transpose_b") or node.get("adj_y")
    return torch.matmul(x.transpose(-2, -1) if first else x, w.transpose(-2, -1) if second else w)


@_op("Einsum")
def _einsum(node: Node, *values: Tensor) -> Tensor:
    return torch.einsum(node.get("equation"), *values)


@_op("Relu6")
def _relu6(node: Node, x: Tensor) -> Tensor:
    return functional.relu6(x)


@_op("IdentityN")
def _identities(node: Node, *values: Tensor) -> tuple[Tensor, ...]:
    return values


@_op("SquaredDifference")
def _squared_difference(node: Node, x: Tensor, y: Tensor) -> Tensor:
    return (x - y) * (x - y)


@_op("FloorDiv")
def _floor_div(node: Node, x: Tensor, y: Tensor) -> Tensor:
    return torch.div(x, y, rounding_mode="floor")


@_op("ArgMax")
def _arg_max(node: Node, x: Tensor, axis: Tensor) -> Tensor:
    return torch.argmax(x, ints(node, axis, "axis")[0])


# Shapes


@_op("Shape")
def _shape(node: Node, x: Tensor) -> Tensor:
    return torch.tensor(list(x.shape))


@_op("Reshape")
def _reshape(node: Node, x: Tensor, shape: Tensor) -> Tensor:
    return x.reshape(ints(node, shape, "shape"))


@_op("Transpose")
def _transpose(node: Node, x: Tensor, order: Tensor) -> Tensor:
    return x.permute(ints(node, order, "order"))


@_op("ExpandDims")
def _expand_dims(node: Node, x: Tensor, axis: Tensor) -> Tensor:
    return x.unsqueeze(ints(node, axis, "axis")[0])


@_op("Squeeze")
def _squeeze(node: Node, x: Tensor) -> Tensor:
    axes = node.get("squeeze_dims") or [axis for axis, n in enumerate(x.shape) if n == 1]
    return x.squeeze(tuple(axes)) if axes else x


@_op("Pack")
def _pack(node: Node, *values: Tensor) -> Tensor:
    return torch.stack(values, node.get("axis") or 0)


@_op("Unpack")
def _unpack(node: Node, x: Tensor) -> tuple[Tensor, ...]:
    return tuple(torch.unbind(x, node.get("axis") or 0))


@_op("ConcatV2")
def _concat(node: Node, *values: Tensor) -> Tensor:
    return torch.cat(values[:-1], ints(node, values[-1], "axis")[0])


@_op("Split")
def _split(node: Node, axis: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    where = ints(node, axis, "axis")[0]
    return tuple(torch.split(x, x.shape[where] // node.get("num_split"), where))


@_op("SplitV")
def _split_sizes(node: Node, x: Tensor, sizes: Tensor, axis: Tensor) -> tuple[Tensor, ...]:
    return tuple(torch.split(x, ints(node, sizes, "sizes"), ints(node, axis, "axis")[0]))


@_op("Slice")
def _slice(node: Node, x: Tensor, begin: Tensor, size: Tensor) -> Tensor:
    pairs = zip(ints(node, begin, "begin"), ints(node, size, "size"), x.shape, strict=True)
    return x[tuple(slice(start, n if count < 0 else start + count) for start, count, n in pairs)]


@_op("StridedSlice")
def _strided_slice(node: Node, x: Tensor, begin: Tensor, end: Tensor, strides: Tensor) -> Tensor:
    def has(mask: str, i: int) -> bool:
        return bool((node.get(mask) or 0) >> i & 1)

    key: list[Any] = []
    triples = zip(*(ints(node, each, "bounds") for each in (begin, end, strides)), strict=True)
    for i, (first, last, step) in enumerate(triples):
        if has("ellipsis_mask", i):
            key.append(...)
        elif has("new_axis_mask", i):
            key.append(None)
        elif has("shrink_axis_mask", i):
            key.append(first)
        elif step < 0:
            raise node.refuse("a slice backwards")
        else:
            key.append(slice(None if has("begin_mask", i) else first, None if has("end_mask", i) else last, step))
    return x[tuple(key)]


@_op("GatherV2")
def _gather(node: Node, x: Tensor, indices: Tensor, axis: Tensor) -> Tensor:
    if node.get("batch_dims"):
        raise node.refuse("batch_dims, wanted none")
    where = ints(node, axis, "axis")[0] % x.ndim
    if is_secret(indices) and (where or x.ndim != 2):
        raise node.refuse("secret indices into other than the rows of a table")
    if where == 0 and x.ndim == 2:
        return functional.embedding(indices if is_secret(indices) else indices.to(torch.int64), x)
    shape = [*x.shape[:where], *indices.shape, *x.shape[where + 1 :]]
    return x.index_select(where, indices.reshape(-1).to(torch.int64)).reshape(shape)


@_op("Pad", "PadV2", "MirrorPad")
def _pad(node: Node, x: Tensor, widths: Tensor, value: Tensor | None = None) -> Tensor:
    both = [(int(before), int(after)) for before, after in plain(node, widths, "widths").tolist()]
    if node.op == "MirrorPad" and node.get("mode") != "REFLECT":
        raise node.refuse(f"mode {node.get('mode')}, wanted REFLECT")
    return padded(x, both, "reflect" if node.op == "MirrorPad" else "constant", 0.0 if value is None else float(value))


@_op("Fill")
def _fill(node: Node, shape: Tensor, value: Tensor) -> Tensor:
    return value.reshape(()).expand(list(limited(node, ints(node, shape, "shape"))))


@_op("Range")
def _range(node: Node, start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    first, last, step = (plain(node, each, "bound").item() for each in (start, limit, delta))
    limited(node, [int((last - first) / step) + 1])
    return torch.arange(first, last, step, dtype=start.dtype)


@_op("Tile")
def _tile(node: Node, x: Tensor, repeats: Tensor) -> Tensor:
    times = ints(node, repeats, "repeats")
    limited(node, [n * count for n, count in zip(x.shape, times, strict=True)])
    return x.repeat(times)


@_op("BroadcastTo")
def _broadcast(node: Node, x: Tensor, shape: Tensor) -> Tensor:
    return x.expand(list(limited(node, ints(node, shape, "shape"))))


@_op("ResizeNearestNeighbor")
def _resize(node: Node, x: Tensor, size: Tensor) -> Tensor:
    half = bool(node.get("half_pixel_centers"))
    for axis, wanted in zip((1, 2), ints(node, size, "size"), strict=True):
        n = x.shape[axis]
        at = (torch.arange(wanted) + (0.5 if half else 0)) * (n / wanted)
        x = x.index_select(axis, at.floor().clamp(0, n - 1).to(torch.int64))
    return x


@_op("SpaceToBatchND")
def _space_to_batch(node: Node, x: Tensor, block: Tensor, widths: Tensor) -> Tensor:
    blocks = ints(node, block, "block")
    both = [(int(before), int(after)) for before, after in plain(node, widths, "widths").tolist()]
    x = padded(x, [(0, 0), *both, *[(0, 0)] * (x.ndim - 1 - len(both))])
    n, rest = len(blocks), list(x.shape[1 + len(blocks) :])
    parts = [size for side, b in zip(x.shape[1 : 1 + n], blocks, strict=True) for size in (side // b, b)]
    order = [*range(2, 2 * n + 1, 2), 0, *range(1, 2 * n, 2), *range(2 * n + 1, 2 * n + 1 + len(rest))]
    spread = x.reshape(x.shape[0], *parts, *rest).permute(order)
    return spread.reshape(x.shape[0] * prod(blocks), *parts[::2], *rest)


@_op("BatchToSpaceND")
def _batch_to_space(node: Node, x: Tensor, block: Tensor, crops: Tensor) -> Tensor:
    blocks = ints(node, block, "block")
    n, rest, batch = len(blocks), list(x.shape[1 + len(blocks) :]), x.shape[0] // prod(blocks)
    sides = list(x.shape[1 : 1 + n])
    order = [n, *(axis for i in range(n) for axis in (n + 1 + i, i)), *range(2 * n + 1, 2 * n + 1 + len(rest))]
    joined = x.reshape(*blocks, batch, *sides, *rest).permute(order)
    whole = joined.reshape(batch, *(side * b for side, b in zip(sides, blocks, strict=True)), *rest)
    both = [(-int(before), -int(after)) for before, after in plain(node, crops, "crops").tolist()]
    return padded(whole, [(0, 0), *both, *[(0, 0)] * len(rest)])
