"""Pooling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

from strongroom.mpc.imports.graph import Node, operator
from strongroom.mpc.imports.operators.common import Tensor, is_secret
from strongroom.mpc.imports.operators.layers import borders
from strongroom.mpc.imports.operators.rearrange import padded
from strongroom.mpc.protocols.pool import lowest

_MAX_POOLS: dict[int, Any] = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}
_AVERAGE_POOLS: dict[int, Any] = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}


@operator("MaxPool")
def _max_pool(node: Node, x: Tensor) -> Tensor:
    kernel = node.get("kernel_shape")
    steps, gaps = node.get("strides") or [1] * len(kernel), node.get("dilations") or [1] * len(kernel)
    both = borders(node, x.shape[2:], kernel, steps, gaps)
    return max_pool(node, x, kernel, steps, gaps, both, ceil=bool(node.get("ceil_mode", 0)))


def max_pool(
    node: Node,
    x: Tensor,
    kernel: Sequence[int],
    steps: Sequence[int],
    gaps: Sequence[int],
    both: Sequence[tuple[int, int]],
    *,
    ceil: bool = False,
) -> Tensor:
    """The largest of each window; borders never are."""
    if len(kernel) not in _MAX_POOLS:
        raise node.refuse(f"windows over {len(kernel)} axes, wanted 1 to 3")
    if ceil:
        both = [_rounded_up(*each) for each in zip(x.shape[2:], kernel, steps, gaps, both, strict=True)]
    inner = [
        before if before == after and 2 * before <= k else 0 for (before, after), k in zip(both, kernel, strict=True)
    ]
    outer = [(0, 0) if n else pair for pair, n in zip(both, inner, strict=True)]
    x = padded(x, [(0, 0), (0, 0), *outer], value=_below_all(x))
    result: Tensor = _MAX_POOLS[len(kernel)](x, list(kernel), list(steps), inner, list(gaps))
    return result


def _below_all(x: Tensor) -> float:
    """What no value of a tensor is below."""
    if not is_secret(x):
        return -math.inf
    settings = x._storage.world.party.settings  # type: ignore[attr-defined]  # a SharedTensor's
    return lowest(settings, settings.frac)


def _rounded_up(n: int, kernel: int, step: int, gap: int, both: tuple[int, int]) -> tuple[int, int]:
    """Borders with which the windows that reach past the end are whole."""
    before, after = both
    span = gap * (kernel - 1) + 1
    count = -(-(n + before + after - span) // step) + 1
    if (count - 1) * step >= n + before:  # a window that lies past the end altogether is none
        count -= 1
    return before, max(after, (count - 1) * step + span - n - before)


@operator("AveragePool")
def _average_pool(node: Node, x: Tensor) -> Tensor:
    kernel = node.get("kernel_shape")
    steps, gaps = node.get("strides") or [1] * len(kernel), node.get("dilations") or [1] * len(kernel)
    if any(gap != 1 for gap in gaps):
        raise node.refuse("dilations, wanted none")
    both = borders(node, x.shape[2:], kernel, steps, gaps)
    whole = bool(node.get("count_include_pad", 0))
    return average_pool(node, x, kernel, steps, both, whole=whole, ceil=bool(node.get("ceil_mode", 0)))


def average_pool(
    node: Node,
    x: Tensor,
    kernel: Sequence[int],
    steps: Sequence[int],
    both: Sequence[tuple[int, int]],
    *,
    whole: bool = False,
    ceil: bool = False,
) -> Tensor:
    """The mean of each window; of what is not border, unless `whole` counts that too."""
    if len(kernel) not in _AVERAGE_POOLS:
        raise node.refuse(f"windows over {len(kernel)} axes, wanted 1 to 3")
    pool = _AVERAGE_POOLS[len(kernel)]
    counted = list(both)
    if ceil:
        both = [_rounded_up(*each) for each in zip(x.shape[2:], kernel, steps, [1] * len(kernel), both, strict=True)]
    borders = [(0, 0), (0, 0), *both]
    means: Tensor = pool(padded(x, borders), list(kernel), list(steps))
    ones = torch.ones(1, 1, *x.shape[2:])
    if whole:
        ones = padded(ones, [(0, 0), (0, 0), *counted], value=1.0)
        borders = [
            (0, 0),
            (0, 0),
            *[(before - b, after - a) for (before, after), (b, a) in zip(both, counted, strict=True)],
        ]
    parts = pool(padded(ones, borders), list(kernel), list(steps))
    return means if bool((parts == 1).all()) else means * (1 / parts).to(means.dtype)


@operator("GlobalAveragePool")
def _global_average(node: Node, x: Tensor) -> Tensor:
    return torch.mean(x, list(range(2, x.ndim)), keepdim=True)


@operator("GlobalMaxPool")
def _global_max(node: Node, x: Tensor) -> Tensor:
    return torch.amax(x, list(range(2, x.ndim)), keepdim=True)
