"""Sums, means, variances, norms and maxima along axes."""

from __future__ import annotations

from math import ceil, inf, log2
from typing import Any

import numpy as np
import torch

from strongroom.errors import UsageError
from strongroom.mpc.functions.activation import softmax
from strongroom.mpc.functions.fixed import drop, inner_frac
from strongroom.mpc.protocols.compare import amax
from strongroom.mpc.protocols.linear import multiply
from strongroom.mpc.protocols.place import one_hot_largest
from strongroom.mpc.protocols.pool import absolute
from strongroom.mpc.shared import Shared
from strongroom.mpc.tensor.operators.functions import along
from strongroom.mpc.tensor.operators.registry import (
    Number,
    aten,
    handles,
    is_bool,
    kept,
    last,
    rearranged,
)
from strongroom.mpc.tensor.shared_tensor import HINTS, SharedTensor, Typed

Axes = list[int] | int | None


# Sums


@handles(aten.sum.default, aten.sum.dim_IntList)
def _sum(x: SharedTensor, dim: Axes = None, keepdim: bool = False, *, dtype: Any = None) -> Shared:
    value = x.read(raw=True)
    flat, axes = last(value, dim)
    return kept(flat.sum(), value.shape, axes, keepdim)


@handles(aten.mean.default, aten.mean.dim)
def _mean(x: SharedTensor, dim: Axes = None, keepdim: bool = False, *, dtype: Any = None) -> Shared:
    value = x.read(raw=True)
    flat, axes = last(value, dim)
    return kept(mean_of(flat), value.shape, axes, keepdim)


def mean_of(x: Shared) -> Shared:
    """Along the last axis; the sum may leave the settings' bound."""
    total, inner, count = x.sum(), inner_frac(x.party), x.shape[-1]
    if total.frac > inner:
        total = drop(total, inner, bits=x.party.settings.bound + ceil(log2(max(count, 1))))
    return total if count == 1 else total.times_public(1 / count, frac=inner)


@handles(aten.var.correction)
def _var(x: SharedTensor, dim: Axes = None, *, correction: Number | None = None, keepdim: bool = False) -> Shared:
    flat, axes = last(x.read(), dim)
    settings, inner, count = flat.party.settings, inner_frac(flat.party), flat.shape[-1]
    total = flat.sum(keep=True).times_public(1 / count, frac=inner)
    apart = flat - drop(total, settings.frac, bits=settings.bound)
    squares = drop(multiply(apart, apart).sum(), inner, bits=settings.bound + ceil(log2(count)))
    by = count - (1 if correction is None else correction)
    if by <= 0:
        raise UsageError(f"variance: got {count} values and a correction of {correction}, wanted more values")
    return kept(squares.times_public(1 / by, frac=inner), x.place.size, axes, keepdim)


@handles(aten.std.correction)
def _std(x: torch.Tensor, dim: Axes = None, *, correction: Number | None = None, keepdim: bool = False) -> torch.Tensor:
    return torch.var(x, dim, correction=correction, keepdim=keepdim).sqrt()


@handles(aten.var_mean.correction)
def _var_mean(
    x: torch.Tensor, dim: Axes = None, *, correction: Number | None = None, keepdim: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    by = range(x.ndim) if dim is None else dim
    mean = x.mean(by if isinstance(by, int) else list(by), keepdim=keepdim)
    return torch.var(x, dim, correction=correction, keepdim=keepdim), mean


@handles(aten.std_mean.correction)
def _std_mean(
    x: torch.Tensor, dim: Axes = None, *, correction: Number | None = None, keepdim: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    variance, mean = _var_mean(x, dim, correction=correction, keepdim=keepdim)
    return variance.sqrt(), mean


@handles(aten.linalg_vector_norm.default)
def _norm(
    x: SharedTensor, order: Number = 2, dim: Axes = None, keepdim: bool = False, *, dtype: Any = None
) -> Shared | torch.Tensor:
    if order == 2:
        by = list(range(x.ndim)) if dim is None else dim
        return (x * x).sum(by, keepdim=keepdim).sqrt()
    flat, axes = last(x.read(), dim)
    if order not in (1, inf):
        raise UsageError(f"norm: got an order of {order}, wanted 1, 2 or infinity")
    return kept(absolute(flat).sum() if order == 1 else amax(absolute(flat)), x.place.size, axes, keepdim)


@handles(aten.norm.ScalarOpt_dim, aten.norm.Scalar)
def _old_norm(x: torch.Tensor, p: Number | None = 2, dim: Axes = None, keepdim: bool = False) -> torch.Tensor:
    found: torch.Tensor = torch.linalg.vector_norm(x, 2 if p is None else p, dim, keepdim)
    return found


@handles(aten.trace.default)
def _trace(x: torch.Tensor) -> torch.Tensor:
    return x.diagonal().sum()


@handles(aten.cumsum.default)
def _cumsum(x: SharedTensor, dim: int, *, dtype: Any = None) -> Shared:
    axis = dim % max(x.ndim, 1)
    result = rearranged(x, lambda words: np.cumsum(words, axis, dtype=np.uint64), "cumsum", axis).value
    if x.classes is not None:
        raise UsageError("cumsum: got an index, wanted numbers", hint="use .float()")
    return result


# Products of bits


@handles(aten.any.dim, aten.any.default, aten.any.dims)
def _any(x: torch.Tensor, dim: Axes = None, keepdim: bool = False) -> torch.Tensor:
    bits = x if is_bool(x) else x.ne(0)
    by = list(range(x.ndim)) if dim is None else dim
    return bits.sum(by, keepdim=keepdim) > 0


@handles(aten.all.dim, aten.all.default, aten.all.dims)
def _all(x: torch.Tensor, dim: Axes = None, keepdim: bool = False) -> torch.Tensor:
    bits = x if is_bool(x) else x.ne(0)
    return ~_any(~bits, dim, keepdim)


@handles(aten.prod.default)
def _prod(x: torch.Tensor, *, dtype: Any = None) -> torch.Tensor:
    return _prod_along(x.reshape(-1), 0)


@handles(aten.prod.dim_int)
def _prod_along(x: torch.Tensor, dim: int, keepdim: bool = False, *, dtype: Any = None) -> torch.Tensor:
    while x.shape[dim] > 1:
        half = x.shape[dim] // 2
        pairs = x.narrow(dim, 0, half) * x.narrow(dim, half, half)
        x = torch.cat([pairs, x.narrow(dim, 2 * half, 1)], dim) if x.shape[dim] % 2 else pairs
    return x if keepdim else x.squeeze(dim)


# The largest


@handles(aten._softmax.default)
def _softmax(x: SharedTensor, dim: int, half_to_float: bool) -> Shared:
    return along(x, dim, softmax)


@handles(aten.logsumexp.default)
def _logsumexp(x: torch.Tensor, dim: list[int], keepdim: bool = False) -> torch.Tensor:
    largest = x.amax(dim, keepdim=True)
    total = (x - largest).exp().sum(dim, keepdim=True).log() + largest
    return total if keepdim else total.squeeze(dim)


@handles(aten.amax.default)
def _amax(x: SharedTensor, dim: Axes = None, keepdim: bool = False) -> Shared:
    value = x.read()
    flat, axes = last(value, dim)
    return kept(amax(flat), value.shape, axes, keepdim)


@handles(aten.amin.default)
def _amin(x: SharedTensor, dim: Axes = None, keepdim: bool = False) -> Shared:
    value = x.read()
    flat, axes = last(value, dim)
    return kept(-amax(-flat), value.shape, axes, keepdim)


handles(aten.max.default)(lambda x: _amax(x))
handles(aten.min.default)(lambda x: _amin(x))


def _found(x: SharedTensor, dim: int | None, keepdim: bool, *, least: bool) -> tuple[Shared, Typed]:
    """The largest or least along an axis, and its index."""
    value = x.read()
    flat, axes = last(value, dim)
    best, rows = one_hot_largest(-flat if least else flat)
    index = rows
    if keepdim:
        index = rows.reshape(*(1 if axis in axes else n for axis, n in enumerate(value.shape)), rows.shape[-1])
    best = kept(-best if least else best, value.shape, axes, keepdim)
    return best, Typed(index, torch.int64, rows.shape[-1])


@handles(aten.max.dim)
def _max(x: SharedTensor, dim: int, keepdim: bool = False) -> tuple[Shared, Typed]:
    return _found(x, dim, keepdim, least=False)


@handles(aten.min.dim)
def _min(x: SharedTensor, dim: int, keepdim: bool = False) -> tuple[Shared, Typed]:
    return _found(x, dim, keepdim, least=True)


@handles(aten.argmax.default)
def _argmax(x: SharedTensor, dim: int | None = None, keepdim: bool = False) -> Typed:
    return _found(x, dim, keepdim, least=False)[1]


@handles(aten.argmin.default)
def _argmin(x: SharedTensor, dim: int | None = None, keepdim: bool = False) -> Typed:
    return _found(x, dim, keepdim, least=True)[1]


@handles(aten.topk.default)
def _topk(x: SharedTensor, k: int, dim: int = -1, largest: bool = True, in_order: bool = True) -> tuple[Shared, Typed]:
    if k != 1:
        raise UsageError(f"topk: got k = {k}, wanted 1", hint="reveal the values to whom may know their order")
    return _found(x, dim, True, least=not largest)


HINTS.update(
    dict.fromkeys(("sort", "argsort", "msort", "kthvalue", "median"), "reveal the values to whom may know their order")
)
