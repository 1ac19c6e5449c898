"""Along axes: sums, means, extremes, and where these are."""

from __future__ import annotations

from collections.abc import Callable

import torch

from strongroom.mpc.imports.graph import Node, operator
from strongroom.mpc.imports.operators.common import Tensor, axes_of, is_secret

Reduction = Callable[[Tensor, list[int], bool], Tensor]


def _reduction(name: str, function: Reduction) -> None:
    @operator(name)
    def reduced(node: Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
        chosen = axes_of(node, axes)
        if not chosen:
            if node.get("noop_with_empty_axes", 0):
                return x
            chosen = list(range(x.ndim))
        return function(x, [axis % x.ndim for axis in chosen], bool(node.get("keepdims", 1)))


def _prod(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = torch.prod(x, axis, keepdim=keep)
    return x


def _sum(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    result = torch.sum(x, axes, keepdim=keep)
    return result if is_secret(x) else result.to(x.dtype)


def _log_sum_exp(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    most = torch.amax(x, axes, keepdim=True)
    total = torch.log(torch.sum(torch.exp(x - most), axes, keepdim=True)) + most
    return total if keep else total.squeeze(axes)


_reduction("ReduceSum", _sum)
_reduction("ReduceMean", lambda x, axes, keep: torch.mean(x, axes, keepdim=keep))
_reduction("ReduceMax", lambda x, axes, keep: torch.amax(x, axes, keepdim=keep))
_reduction("ReduceMin", lambda x, axes, keep: -torch.amax(-x, axes, keepdim=keep))
_reduction("ReduceProd", _prod)
_reduction("ReduceL1", lambda x, axes, keep: torch.sum(torch.abs(x), axes, keepdim=keep))
_reduction("ReduceL2", lambda x, axes, keep: torch.sqrt(torch.sum(x * x, axes, keepdim=keep)))
_reduction("ReduceSumSquare", lambda x, axes, keep: torch.sum(x * x, axes, keepdim=keep))
_reduction("ReduceLogSum", lambda x, axes, keep: torch.log(torch.sum(x, axes, keepdim=keep)))
_reduction("ReduceLogSumExp", _log_sum_exp)


@operator("ArgMax", "ArgMin")
def _arg_max(node: Node, x: Tensor) -> Tensor:
    values = x if node.op == "ArgMax" else -x
    if node.get("select_last_index", 0):
        raise node.refuse("select_last_index, wanted the first of equals")
    return torch.argmax(values, node.get("axis", 0), keepdim=bool(node.get("keepdims", 1)))


@operator("CumSum")
def _cumulative(node: Node, x: Tensor, axis: Tensor) -> Tensor:
    if node.get("exclusive", 0):
        raise node.refuse("exclusive, wanted inclusive sums")
    where = int(axis)
    if node.get("reverse", 0):
        return torch.flip(torch.cumsum(torch.flip(x, [where]), where), [where])
    return torch.cumsum(x, where)


@operator("TopK")
def _top(node: Node, x: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    axis, count, largest = node.get("axis", -1), int(k), bool(node.get("largest", 1))
    if is_secret(x):
        values, indices = torch.topk(x, count, axis, largest=largest)
        return values, indices
    values, indices = torch.sort(x, dim=axis, descending=largest, stable=True)  # of equals, the first
    return values.narrow(axis, 0, count), indices.narrow(axis, 0, count)
