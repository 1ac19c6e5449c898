"""Functions of each element."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from strongroom.errors import UsageError
from strongroom.mpc.functions.activation import gelu, sigmoid, silu
from strongroom.mpc.functions.error import erf, gelu_tanh
from strongroom.mpc.functions.exponential import exp_negative
from strongroom.mpc.functions.fixed import inner_frac
from strongroom.mpc.functions.logarithm import exp_clipped, log, log_softmax, softplus
from strongroom.mpc.functions.roots import inverse_root, sqrt
from strongroom.mpc.protocols.compare import maximum
from strongroom.mpc.protocols.linear import multiply
from strongroom.mpc.protocols.pool import absolute, clamp
from strongroom.mpc.protocols.relu import relu
from strongroom.mpc.shared import Shared
from strongroom.mpc.tensor.operators.registry import (
    Number,
    aten,
    directly,
    found,
    handles,
    plain,
    same_shape,
    secret,
)
from strongroom.mpc.tensor.shared_tensor import SharedTensor

_SELU = 1.0507009873554805, 1.6732632423543772  # scale and alpha


def _of_elements(overload: object, function: Callable[[Shared], Shared]) -> None:
    handles(overload)(lambda x: function(x.read()))


def _precise(overload: object, function: Callable[..., Shared]) -> None:
    """Of more fractional bits than a value has, as it mostly goes into a product."""
    handles(overload)(lambda x: function(x.read(), frac=inner_frac(x._storage.world.party)))


_of_elements(aten.silu.default, silu)
_of_elements(aten.abs.default, absolute)
_precise(aten.sigmoid.default, sigmoid)
_precise(aten.exp.default, exp_clipped)
_precise(aten.erf.default, erf)


@handles(aten.sqrt.default)
def _sqrt(x: SharedTensor) -> Shared:
    value = x.read(raw=True)
    return sqrt(value, frac=inner_frac(value.party))


@handles(aten.rsqrt.default)
def _rsqrt(x: SharedTensor) -> Shared:
    return inverse_root(x.read(raw=True))


@handles(aten.log.default)
def _log(x: SharedTensor) -> Shared:
    return log(x.read(raw=True))


@handles(aten.log1p.default)
def _log1p(x: SharedTensor) -> Shared:
    return log(x.read(raw=True) + 1.0)


@handles(aten.log2.default)
def _log2(x: torch.Tensor) -> torch.Tensor:
    return x.log() * (1 / math.log(2))


@handles(aten.log10.default)
def _log10(x: torch.Tensor) -> torch.Tensor:
    return x.log() * (1 / math.log(10))


@handles(aten.exp2.default)
def _exp2(x: torch.Tensor) -> torch.Tensor:
    return torch.exp(x * math.log(2))


@handles(aten.pow.Scalar)
def _power_of(base: Number, x: torch.Tensor) -> torch.Tensor:
    if base <= 0:
        raise UsageError(f"power: got {base} to a secret, wanted a positive number")
    return torch.exp(x * math.log(base))


@handles(aten.erfc.default)
def _erfc(x: torch.Tensor) -> torch.Tensor:
    return 1 - torch.erf(x)


@handles(aten.isnan.default, aten.isinf.default)
def _is_no_number(x: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(x, dtype=torch.bool)  # there are no others in the ring


@handles(aten.nan_to_num.default)
def _numbers(x: SharedTensor, *more: Number | None) -> Shared:
    return x.read(raw=True)


@handles(aten.expm1.default)
def _expm1(x: SharedTensor) -> Shared:
    return exp_clipped(x.read(), frac=inner_frac(x._storage.world.party)) - 1.0


@handles(aten.relu.default)
def _relu(x: SharedTensor) -> Shared:
    return x.rectified()


@directly(torch.relu, torch.nn.functional.relu)
def _relu_called(input: Any, inplace: bool = False) -> tuple[Any, ...]:  # noqa: A002  # torch's name
    return (aten.relu_.default if inplace else aten.relu.default), input


@handles(aten.leaky_relu.default)
def _leaky_relu(x: SharedTensor, slope: Number = 0.01) -> Shared:
    value = x.read()
    frac = inner_frac(value.party)
    return relu(value, 0).times_public(1 - slope, frac=frac) + value.times_public(slope, frac=frac)


@handles(aten._prelu_kernel.default)
def _prelu(x: torch.Tensor, weight: torch.Tensor) -> Shared:
    like = found(x, weight)
    value = secret(x, like)
    positive = relu(value, 0)
    negative = value - positive
    frac = inner_frac(value.party)
    if isinstance(weight, SharedTensor):
        scaled = multiply(negative, weight.read())
    else:
        scaled = negative.times_public(plain(weight), frac=frac)
    return scaled + positive.shifted(scaled.frac - positive.frac, scaled.frac)


@handles(aten.elu.default)
def _elu(x: SharedTensor, alpha: Number = 1, scale: Number = 1, input_scale: Number = 1) -> Shared:
    if input_scale != 1:
        raise UsageError(f"elu: got an input_scale of {input_scale}, wanted 1")
    value = x.read()
    frac = inner_frac(value.party)
    positive = relu(value, 0)
    e = exp_negative(value - positive, frac=value.frac)
    return (e - 1.0).times_public(alpha * scale, frac=frac) + positive.times_public(scale, frac=frac)


@handles(aten.celu.default)
def _celu(x: torch.Tensor, alpha: Number = 1) -> torch.Tensor:
    return torch.nn.functional.elu(x / alpha) * alpha


@handles(aten.selu.default)
def _selu(x: SharedTensor) -> Shared:
    return _elu(x, _SELU[1], _SELU[0])


@handles(aten.softplus.default)
def _softplus(x: SharedTensor, beta: Number = 1, threshold: Number = 20) -> Shared | torch.Tensor:
    if beta != 1:
        return torch.nn.functional.softplus(x * beta) / beta
    return softplus(x.read())


@handles(aten.log_sigmoid_forward.default)
def _log_sigmoid(x: SharedTensor) -> tuple[Shared, None]:
    return -softplus(-x.read()), None


@handles(aten.mish.default)
def _mish(x: torch.Tensor) -> torch.Tensor:
    return x * torch.tanh(torch.nn.functional.softplus(x))


@handles(aten.tanh.default)
def _tanh(x: SharedTensor) -> Shared:
    value = x.read()
    s = sigmoid(value + value, frac=inner_frac(value.party))
    return s + s - 1.0


@handles(aten.gelu.default)
def _gelu(x: SharedTensor, *, approximate: str = "none") -> Shared:
    return (gelu if approximate == "none" else gelu_tanh)(x.read())


@handles(aten.hardtanh.default)
def _hardtanh(x: SharedTensor, low: Number = -1, high: Number = 1) -> Shared:
    return clamp(x.read(), low, high)


@handles(aten.hardsigmoid.default)
def _hardsigmoid(x: SharedTensor) -> Shared:
    value = clamp(x.read(), -3, 3) + 3.0
    return value.times_public(1 / 6, frac=inner_frac(value.party))


@handles(aten.hardswish.default)
def _hardswish(x: torch.Tensor) -> torch.Tensor:
    return x * (x + 3).clamp(0, 6) / 6


@handles(aten.threshold.default)
def _threshold(x: torch.Tensor, threshold: Number, value: Number) -> torch.Tensor:
    return torch.where(x > threshold, x, value)


@handles(aten.softshrink.default)
def _softshrink(x: torch.Tensor, size: Number = 0.5) -> torch.Tensor:
    return x - x.clamp(-size, size)


@handles(aten.clamp.default, aten.clamp_min.default, aten.clamp_max.default)
def _clamp(x: SharedTensor, low: Number | None = None, high: Number | None = None) -> Shared:
    value = x.read()
    settings = value.party.settings
    width = settings.opening(value.frac) + 1  # of a difference
    # A bound that no value reaches is none.
    low = None if low is None or low <= -(2**settings.bound) else low
    high = None if high is None or high >= 2**settings.bound else high
    if low is not None and high is not None:
        return clamp(value, low, high)
    if low is not None:
        return relu(value - low, 0, width=width) + low
    return value if high is None else -(relu(-(value - high), 0, width=width) - high)


handles(aten.clamp_max.default)(lambda x, high: _clamp(x, None, high))


@handles(aten.clamp.Tensor, aten.clamp_min.Tensor, aten.clamp_max.Tensor)
def _clamp_tensor(x: torch.Tensor, low: torch.Tensor | None = None, high: torch.Tensor | None = None) -> torch.Tensor:
    x = x if low is None else torch.maximum(x, low)
    return x if high is None else torch.minimum(x, high)


handles(aten.clamp_max.Tensor)(lambda x, high: torch.minimum(x, high))


@handles(aten.maximum.default)
def _maximum(x: torch.Tensor, y: torch.Tensor) -> Shared:
    like = found(x, y)
    return maximum(*same_shape(secret(x, like), secret(y, like)))


@handles(aten.minimum.default)
def _minimum(x: torch.Tensor, y: torch.Tensor) -> Shared:
    like = found(x, y)
    a, b = same_shape(secret(x, like), secret(y, like))
    return -maximum(-a, -b)


@handles(aten._log_softmax.default)
def _log_softmax(x: SharedTensor, dim: int, half_to_float: bool) -> Shared:
    return along(x, dim, log_softmax)


def along(x: SharedTensor, dim: int, function: Callable[[Shared], Shared]) -> Shared:
    """A function along the last axis, along another."""
    value = x.read()
    axes = list(range(len(value.shape)))
    if not axes:
        return function(value.reshape(1)).reshape()
    axes.append(axes.pop(dim))
    back = sorted(range(len(axes)), key=axes.__getitem__)
    return function(value.transpose(*axes)).transpose(*back)
