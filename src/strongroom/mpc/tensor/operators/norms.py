"""Norms of layers, batches, groups and channels."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray

from strongroom.errors import UsageError
from strongroom.mpc.functions.normalisation import inverse_rms, layer_norm
from strongroom.mpc.protocols.linear import multiply
from strongroom.mpc.protocols.truncate import truncate
from strongroom.mpc.shared import Shared
from strongroom.mpc.tensor.operators.arithmetic import add_bias
from strongroom.mpc.tensor.operators.registry import at_frac, aten, found, handles, plain, secret
from strongroom.mpc.tensor.shared_tensor import SharedTensor
from strongroom.mpc.tensor.storage import Folded

Three = tuple[Shared, None, None]


def _scaled(y: Shared, weight: torch.Tensor | None, bias: torch.Tensor | None) -> Shared:
    if isinstance(weight, SharedTensor):
        y = multiply(y, weight.read())
    elif weight is not None:
        y = y.times_public(plain(weight))
    return add_bias(y, bias)


@handles(aten.native_layer_norm.default)
def _layer_norm(
    x: torch.Tensor, shape: Sequence[int], weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float
) -> Three:
    value = secret(x, found(x, weight, bias))
    outer = value.shape[: len(value.shape) - len(shape)]
    y = layer_norm(value.reshape(*outer, prod(shape)), eps=eps).reshape(*value.shape)
    return _scaled(y, weight, bias), None, None


@handles(aten.rms_norm.default)
def _rms_norm(
    x: torch.Tensor, shape: Sequence[int], weight: torch.Tensor | None = None, eps: float | None = None
) -> Shared:
    value = secret(x, found(x, weight))
    outer = value.shape[: len(value.shape) - len(shape)]
    flat = value.reshape(*outer, prod(shape))
    least = torch.finfo(x.dtype).eps if eps is None else eps
    y = multiply(flat, inverse_rms(flat, eps=least)).reshape(*value.shape)
    if weight is None or (not isinstance(weight, SharedTensor) and (plain(weight) == 1).all()):
        return y
    return _scaled(truncate(y), weight, None)


@handles(aten.native_group_norm.default)
def _group_norm(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    n: int,
    channels: int,
    size: int,
    groups: int,
    eps: float,
) -> Three:
    value = secret(x, found(x, weight, bias))
    y = layer_norm(value.reshape(n, groups, channels // groups * size), eps=eps).reshape(*value.shape)
    each = (channels, *[1] * (len(value.shape) - 2))
    weight, bias = (part if part is None else part.reshape(each) for part in (weight, bias))
    return _scaled(y, weight, bias), None, None


@handles(aten.instance_norm.default)
def _instance_norm(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    mean: torch.Tensor | None,
    variance: torch.Tensor | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Shared:
    channels = x.shape[1]
    if not use_input_stats:
        return _batch_norm(x, weight, bias, mean, variance, False, momentum, eps)[0]
    return _group_norm(x, weight, bias, x.shape[0], channels, prod(x.shape[2:]), channels, eps)[0]


@handles(aten.native_batch_norm.default)
def _batch_norm(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    mean: torch.Tensor | None,
    variance: torch.Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> Three:
    if training or mean is None or variance is None:
        raise UsageError("batch norm: got a batch's own statistics, wanted the running ones", hint="call model.eval()")
    parts = [each for each in (weight, bias, mean) if each is not None]
    if isinstance(x, SharedTensor) and isinstance(variance, SharedTensor):
        done = x._storage.normalised(x.place, _given(parts, variance, eps))
        if done is not None:
            return done, None, None
    value = secret(x, found(x, *parts, variance))
    scale, shift = _folded(parts, weight, bias, mean, variance, eps)
    channels = (-1, *[1] * (len(value.shape) - 2))
    if isinstance(scale, Shared) and isinstance(shift, Shared):
        product = multiply(value, scale.reshape(*channels))
        return product + at_frac(shift, product.frac).reshape(*channels), None, None
    assert not isinstance(scale, Shared) and not isinstance(shift, Shared)  # noqa: S101  # both or neither
    return value.times_public(scale.reshape(channels)) + shift.reshape(channels), None, None


def _folded(
    parts: list[torch.Tensor],
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    mean: torch.Tensor,
    variance: torch.Tensor,
    eps: float,
) -> tuple[Shared | NDArray[np.float64], Shared | NDArray[np.float64]]:
    """A factor and a summand for each channel."""
    if isinstance(variance, SharedTensor):
        folded = _given(parts, variance, eps)
        return folded.scale, folded.shift
    if any(isinstance(each, SharedTensor) for each in parts):
        raise UsageError("batch norm: got public and secret parts, wanted all of one kind")
    return fold(
        None if weight is None else plain(weight),
        None if bias is None else plain(bias),
        plain(mean),
        plain(variance),
        eps,
    )


def _given(parts: list[torch.Tensor], variance: SharedTensor, eps: float) -> Folded:
    """What the source of all parts made of them; `parts` are those beside the variance."""
    world = variance._storage.world
    folded = world.folded.get(variance.rows())
    values = tuple(each.rows() for each in parts if isinstance(each, SharedTensor))
    if folded is None or not folded.holds(values, eps):
        raise UsageError(
            "batch norm: the root of a secret variance is not computed",
            hint="share the module whole, unchanged: who has it folds weight, bias and statistics into one",
        )
    return folded


def fold(
    weight: NDArray[np.float64] | None,
    bias: NDArray[np.float64] | None,
    mean: NDArray[np.float64],
    variance: NDArray[np.float64],
    eps: float,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Batch normalisation as y = x scale + shift."""
    scale = (1.0 if weight is None else weight) / np.sqrt(variance + eps)
    return scale, (0.0 if bias is None else bias) - mean * scale
