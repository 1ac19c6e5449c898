"""Shapes, and elements that go elsewhere. What says where is public, though the elements may be secret."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from strongroom.mpc.imports.graph import Node, operator
from strongroom.mpc.imports.operators.common import Tensor, axes_of, ints, is_secret, limited, number, numbers, plain


@operator("Shape")
def _shape(node: Node, x: Tensor) -> Tensor:
    shape = list(x.shape)
    start, end = node.get("start", 0), node.get("end")
    return torch.tensor(shape[start:end], dtype=torch.int64)


@operator("Size")
def _size(node: Node, x: Tensor) -> Tensor:
    return torch.tensor(x.numel())


@operator("Reshape")
def _reshape(node: Node, x: Tensor, shape: Tensor | None = None) -> Tensor:
    wanted = list(node.get("shape", ())) if shape is None else ints(node, shape, "shape")
    if not node.get("allowzero", 0):
        wanted = [x.shape[i] if n == 0 and i < x.ndim else n for i, n in enumerate(wanted)]
    return x.reshape(wanted)


@operator("Flatten")
def _flatten(node: Node, x: Tensor) -> Tensor:
    axis = node.get("axis", 1)
    before = x.shape[:axis] if axis else ()
    return x.reshape(math.prod(before), -1)


@operator("Squeeze")
def _squeeze(node: Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
    chosen = axes_of(node, axes)
    if chosen is None:
        chosen = [axis for axis, n in enumerate(x.shape) if n == 1]
    return x.squeeze(tuple(axis % x.ndim for axis in chosen)) if chosen else x


@operator("Unsqueeze")
def _unsqueeze(node: Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
    chosen = axes_of(node, axes) or []
    rank = x.ndim + len(chosen)
    for axis in sorted(axis % rank for axis in chosen):
        x = x.unsqueeze(axis)
    return x


@operator("Transpose")
def _transpose(node: Node, x: Tensor) -> Tensor:
    return x.permute(node.get("perm") or list(range(x.ndim))[::-1])


@operator("Concat")
def _concat(node: Node, *values: Tensor) -> Tensor:
    return torch.cat(values, node.get("axis", 1))


@operator("Split")
def _split(node: Node, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
    axis, count = node.get("axis", 0), node.get("num_outputs") or len(node.outputs)
    parts = node.get("split") if sizes is None else ints(node, sizes, "sizes")
    if parts is None:
        each = -(-x.shape[axis] // count)
        parts = [min(each, x.shape[axis] - each * i) for i in range(count)]
    return tuple(torch.split(x, list(parts), axis))


@operator("Slice")
def _slice(
    node: Node,
    x: Tensor,
    starts: Tensor | None = None,
    ends: Tensor | None = None,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    first = node.get("starts") if starts is None else ints(node, starts, "starts")
    last = node.get("ends") if ends is None else ints(node, ends, "ends")
    where = axes_of(node, axes) or list(range(len(first)))
    paces = [1] * len(first) if steps is None else ints(node, steps, "steps")
    key = [slice(None)] * x.ndim
    for axis, start, end, step in zip(where, first, last, paces, strict=True):
        n = x.shape[axis]
        if step < 0:
            begin, stop, pace = slice(start, None if end < -n else end, step).indices(n)
            taken = range(begin, stop, pace)
            if taken:
                x = torch.flip(x, [axis]) if len(taken) == n else x.index_select(axis, torch.arange(begin, stop, pace))
                continue
            start, end, step = 0, 0, 1
        key[axis % x.ndim] = slice(*slice(start, end, step).indices(n))
    return x[tuple(key)]


@operator("Gather")
def _gather(node: Node, x: Tensor, indices: Tensor) -> Tensor:
    axis = node.get("axis", 0) % x.ndim
    if is_secret(indices):
        if axis or x.ndim != 2:
            raise node.refuse("secret indices into other than the rows of a table")
        return functional.embedding(indices, x)
    places = indices.to(torch.int64)
    places = torch.where(places < 0, places + x.shape[axis], places)
    if places.numel() == 1:
        picked = x.select(axis, int(places))
        return picked.reshape([*x.shape[:axis], *places.shape, *x.shape[axis + 1 :]])
    if is_secret(x) and axis == 0 and x.ndim == 2:
        return functional.embedding(places, x)
    shape = [*x.shape[:axis], *places.shape, *x.shape[axis + 1 :]]
    return x.index_select(axis, places.reshape(-1)).reshape(shape)


@operator("GatherElements")
def _gather_elements(node: Node, x: Tensor, indices: Tensor) -> Tensor:
    axis = node.get("axis", 0)
    return torch.gather(x, axis, torch.where(indices < 0, indices + x.shape[axis], indices))


@operator("GatherND")
def _gather_nd(node: Node, x: Tensor, indices: Tensor) -> Tensor:
    if node.get("batch_dims", 0):
        raise node.refuse("batch_dims, wanted none")
    return x[tuple(plain(node, indices, "indices").movedim(-1, 0))]


@operator("ScatterND")
def _scatter_nd(node: Node, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    if node.get("reduction", "none") != "none":
        raise node.refuse(f"reduction {node.get('reduction')}, wanted none")
    places = tuple(plain(node, indices, "indices").movedim(-1, 0))
    if is_secret(updates) and not is_secret(x):
        x = x + torch.zeros_like(updates).sum()
    result = x.clone()
    result[places] = updates
    return result


@operator("Expand")
def _expand(node: Node, x: Tensor, shape: Tensor) -> Tensor:
    wanted = np.broadcast_shapes(tuple(x.shape), tuple(limited(node, ints(node, shape, "shape"))))
    return x.expand(wanted)


@operator("Tile")
def _tile(node: Node, x: Tensor, repeats: Tensor) -> Tensor:
    times = ints(node, repeats, "repeats")
    limited(node, [n * count for n, count in zip(x.shape, times, strict=True)])
    return x.repeat(times)


@operator("ConstantOfShape")
def _constant_of_shape(node: Node, shape: Tensor) -> Tensor:
    value = node.get("value")
    size = list(limited(node, ints(node, shape, "shape")))
    return torch.zeros(size) if value is None else value.reshape(()).expand(size).clone()


@operator("Range")
def _range(node: Node, start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    first, last, step = (plain(node, each, "bound").reshape(()).item() for each in (start, limit, delta))
    limited(node, [int((last - first) / step) + 1])
    return torch.arange(first, last, step, dtype=start.dtype)


@operator("Pad")
def _pad(
    node: Node,
    x: Tensor,
    pads: Tensor | None = None,
    value: Tensor | None = None,
    axes: Tensor | None = None,
) -> Tensor:
    widths = list(node.get("pads", ())) if pads is None else ints(node, pads, "widths")
    where = list(range(x.ndim)) if axes is None else ints(node, axes, "axes")
    half = len(widths) // 2
    both = {axis % x.ndim: (widths[i], widths[half + i]) for i, axis in enumerate(where)}
    fill = node.get("value", 0.0) if value is None else number(node, value, "value")
    return padded(x, [both.get(axis, (0, 0)) for axis in range(x.ndim)], node.get("mode", "constant"), fill)


def padded(x: Tensor, both: Sequence[tuple[int, int]], mode: str = "constant", value: float = 0.0) -> Tensor:
    """With borders before and after, for each axis from the first on; a negative one takes away."""
    cut = tuple(slice(max(-before, 0), n - max(-after, 0)) for (before, after), n in zip(both, x.shape, strict=True))
    if any(before < 0 or after < 0 for before, after in both):
        x = x[cut]
    widths = [max(width, 0) for before, after in reversed(both) for width in (before, after)]
    while widths and not any(widths[-2:]):
        del widths[-2:]
    if not widths:
        return x
    if mode == "constant":
        return functional.pad(x, widths, value=value)
    return _mirrored(x, both, mode)


def _mirrored(x: Tensor, both: Sequence[tuple[int, int]], mode: str) -> Tensor:
    for axis, (before, after) in enumerate(both):
        n = x.shape[axis]
        places = torch.arange(-before, n + after)
        if mode == "edge":
            places = places.clamp(0, n - 1)
        elif mode == "wrap":
            places = places % n
        else:
            period = max(2 * (n - 1), 1)
            places = (places % period).minimum(period - places % period)
        if before or after:
            x = x.index_select(axis, places)
    return x


@operator("OneHot")
def _one_hot(node: Node, indices: Tensor, depth: Tensor, values: Tensor) -> Tensor:
    count, (off, on) = int(number(node, depth, "depth")), numbers(node, values, "values")
    limited(node, [*indices.shape, count])
    axis = node.get("axis", -1)
    if is_secret(indices):
        hot = torch.eq(indices.unsqueeze(-1), torch.arange(count)).to(torch.float32)
    else:
        places = indices.to(torch.int64)
        hot = torch.eq(torch.where(places < 0, places + count, places).unsqueeze(-1), torch.arange(count)).to(
            torch.float32
        )
    scaled = hot if (off, on) == (0, 1) else hot * (on - off) + off
    return scaled.movedim(-1, axis) if axis not in (-1, scaled.ndim - 1) else scaled


@operator("Trilu")
def _trilu(node: Node, x: Tensor, k: Tensor | None = None) -> Tensor:
    diagonal = 0 if k is None else int(number(node, k, "diagonal"))
    if is_secret(x):
        ones = torch.ones(tuple(x.shape[-2:]))
        return x * (torch.triu(ones, diagonal) if node.get("upper", 1) else torch.tril(ones, diagonal))
    return torch.triu(x, diagonal) if node.get("upper", 1) else torch.tril(x, diagonal)


@operator("EyeLike")
def _eye_like(node: Node, x: Tensor) -> Tensor:
    rows, columns = x.shape
    distance = torch.arange(columns)[None] - torch.arange(rows)[:, None]
    return torch.eq(distance, node.get("k", 0)).to(torch.float32)


@operator("DepthToSpace")
def _depth_to_space(node: Node, x: Tensor) -> Tensor:
    n, (batch, channels, height, width) = node.get("blocksize"), x.shape
    if node.get("mode", "DCR") == "DCR":
        parts = x.reshape(batch, n, n, channels // n**2, height, width).permute(0, 3, 4, 1, 5, 2)
    else:
        parts = x.reshape(batch, channels // n**2, n, n, height, width).permute(0, 1, 4, 2, 5, 3)
    return parts.reshape(batch, channels // n**2, height * n, width * n)


@operator("SpaceToDepth")
def _space_to_depth(node: Node, x: Tensor) -> Tensor:
    n, (batch, channels, height, width) = node.get("blocksize"), x.shape
    parts = x.reshape(batch, channels, height // n, n, width // n, n).permute(0, 3, 5, 1, 2, 4)
    return parts.reshape(batch, channels * n**2, height // n, width // n)


@operator("NonZero")
def _non_zero(node: Node, x: Tensor) -> Tensor:
    return torch.nonzero(plain(node, x, "values")).t()


@operator("Resize", "Upsample")
def _resize(node: Node, x: Tensor, *settings: Tensor | None) -> Tensor:
    names = ("scales",) if node.op == "Upsample" or node.version < 11 else ("roi", "scales", "sizes")
    given = dict(zip(names, settings, strict=False))
    sizes, scales = given.get("sizes"), given.get("scales")
    where = node.get("axes") or list(range(x.ndim))
    if sizes is not None and sizes.numel():
        wanted = ints(node, sizes, "sizes")
        factors = [size / x.shape[axis] for size, axis in zip(wanted, where, strict=True)]
    else:
        factors = list(node.get("scales", ())) if scales is None else numbers(node, scales, "scales")
        wanted = [int(x.shape[axis] * factor) for factor, axis in zip(factors, where, strict=True)]
    if node.get("keep_aspect_ratio_policy", "stretch") != "stretch" or node.get("antialias", 0):
        raise node.refuse("keep_aspect_ratio_policy or antialias, wanted neither")
    mode = node.get("mode", "nearest")
    default = "half_pixel" if node.op == "Resize" and node.version >= 11 else "asymmetric"
    how = node.get("coordinate_transformation_mode", default)
    for axis, size, factor in zip(where, wanted, factors, strict=True):
        if size != x.shape[axis] or factor != 1:
            x = _resized(node, x, axis, size, factor, mode, how)
    return x


def _resized(node: Node, x: Tensor, axis: int, size: int, factor: float, mode: str, how: str) -> Tensor:
    """Along one axis: elements picked, or each one a public mixture of others."""
    n, out = x.shape[axis], torch.arange(size, dtype=torch.float64)
    if how in ("half_pixel", "pytorch_half_pixel"):
        at = (out + 0.5) / factor - 0.5
        if how == "pytorch_half_pixel" and size == 1:
            at = torch.zeros(1, dtype=torch.float64)
    elif how == "half_pixel_symmetric":
        adjusted = size / (factor * n)
        at = n / 2 * (1 - adjusted) + (out + 0.5) / factor - 0.5
    elif how == "align_corners":
        at = out * ((n - 1) / (factor * n - 1)) if size > 1 else out
    elif how == "asymmetric":
        at = out / factor
    else:
        raise node.refuse(f"coordinate_transformation_mode {how}")
    if mode == "nearest":
        rounding = node.get("nearest_mode", "round_prefer_floor" if node.version >= 11 else "floor")
        rounds: dict[str, Any] = {
            "round_prefer_floor": lambda v: torch.ceil(v - 0.5),
            "round_prefer_ceil": lambda v: torch.floor(v + 0.5),
            "floor": torch.floor,
            "ceil": torch.ceil,
        }
        return x.index_select(axis, rounds[rounding](at).clamp(0, n - 1).to(torch.int64))
    mixture = torch.zeros(size, n, dtype=torch.float64)
    if mode == "linear":
        points = [(torch.floor(at) + i, (1 - (at - torch.floor(at) - i).abs()).clamp(min=0)) for i in (0, 1)]
    elif mode == "cubic":
        a = node.get("cubic_coeff_a", -0.75)
        points = [(torch.floor(at) + i, _cubic((at - torch.floor(at) - i).abs(), a)) for i in (-1, 0, 1, 2)]
    else:
        raise node.refuse(f"mode {mode}")
    if node.get("exclude_outside", 0):
        points = [(place, part * ((place >= 0) & (place < n))) for place, part in points]
        total = torch.stack([part for _, part in points]).sum(0)
        points = [(place, part / total) for place, part in points]
    for place, part in points:
        mixture[out.long(), place.clamp(0, n - 1).long()] += part
    return torch.movedim(torch.matmul(torch.movedim(x, axis, -1), mixture.t().to(x.dtype)), -1, axis)


def _cubic(t: Tensor, a: float) -> Tensor:
    near = ((a + 2) * t - (a + 3)) * t * t + 1
    far = ((a * t - 5 * a) * t + 8 * a) * t - 4 * a
    return torch.where(t <= 1, near, torch.where(t < 2, far, torch.zeros_like(t)))
