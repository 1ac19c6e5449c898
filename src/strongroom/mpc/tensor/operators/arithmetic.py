"""Sums, products, matrices, quotients and powers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from strongroom.errors import UsageError
from strongroom.mpc.functions.fixed import inner_frac
from strongroom.mpc.functions.roots import signed_reciprocal
from strongroom.mpc.protocols.linear import matmul, multiply
from strongroom.mpc.protocols.owned import matmul_owned
from strongroom.mpc.protocols.public import matmul_public
from strongroom.mpc.protocols.truncate import truncate
from strongroom.mpc.shared import Shared
from strongroom.mpc.tensor.operators.choice import either
from strongroom.mpc.tensor.operators.registry import (
    Number,
    Operand,
    at_frac,
    aten,
    bounded,
    checked,
    directly,
    factor,
    found,
    handles,
    is_bool,
    is_float,
    plain,
)
from strongroom.mpc.tensor.shared_tensor import HINTS, SharedTensor, Typed

_POWERS = range(2, 9)

# Sums and differences


@handles(aten.add.Tensor, aten.add.Scalar)
def _add(x: Operand, y: Operand, alpha: Number = 1) -> Shared | Typed:
    if is_bool(x) and is_bool(y):
        return either(x, y)
    if not isinstance(x, SharedTensor):
        return plus(_times(y, alpha), bounded(x, found(y)._storage.world.party.settings))
    value = x.read(raw=True)
    if isinstance(y, SharedTensor):
        return plus(value, y.read(raw=True) if alpha == 1 else _times(y, alpha))
    summand = bounded(y, value.party.settings) * alpha
    return plus(x.read() if not value.frac and is_float(y, alpha) else value, summand)


@handles(aten.sub.Tensor, aten.sub.Scalar)
def _sub(x: Operand, y: Operand, alpha: Number = 1) -> Shared | Typed:
    return _add(x, y, -alpha)


@handles(aten.rsub.Tensor, aten.rsub.Scalar)
def _rsub(x: Operand, y: Operand, alpha: Number = 1) -> Shared | Typed:
    return _add(y, x, -alpha)


@handles(aten.neg.default)
def _neg(x: SharedTensor) -> Shared:
    return -x.read(raw=True)


def plus(x: Shared, y: Shared | NDArray[np.float64]) -> Shared:
    """The sum, at the larger number of fractional bits."""
    if not isinstance(y, Shared):
        return x + y
    frac = max(x.frac, y.frac)
    return at_frac(x, frac) + at_frac(y, frac)


def add_bias(value: Shared, bias: torch.Tensor | None) -> Shared:
    """The sum with a bias, secret or public, that broadcasts."""
    if bias is None:
        return value
    if isinstance(bias, SharedTensor):
        return plus(value, bias.read_at(value.frac))
    return plus(value, bounded(bias, value.party.settings))


# Products


def _times(x: Operand, number: Number) -> Shared:
    assert isinstance(x, SharedTensor)  # noqa: S101  # one operand is
    return times(x, np.asarray(number, np.float64))


def times(x: SharedTensor, number: NDArray[np.float64]) -> Shared:
    """The product with public numbers, at as many of their fractional bits as there is room for."""
    if np.array_equal(number, np.rint(number)):
        value = x.read(raw=True)
        if (number == 1).all() and number.ndim <= len(value.shape):
            return value.broadcast(np.broadcast_shapes(value.shape, number.shape))
        return value.times_public(number, frac=0)
    value = factor(x)
    return value.times_public(number, frac=inner_frac(value.party))


@handles(aten.mul.Tensor, aten.mul.Scalar)
def _mul(x: Operand, y: Operand) -> Shared:
    if not isinstance(x, SharedTensor):
        x, y = y, x
    assert isinstance(x, SharedTensor)  # noqa: S101  # one operand is
    if isinstance(y, SharedTensor):
        return multiply(factor(x), factor(y))
    return times(x, checked(y, x._storage.world.party.settings))


@handles(aten.div.Tensor, aten.div.Scalar)
def _div(x: Operand, y: Operand) -> Shared:
    if not isinstance(y, SharedTensor):
        assert isinstance(x, SharedTensor)  # noqa: S101  # one operand is
        divisor = plain(y)
        if not divisor.all():
            raise UsageError("division: got a divisor of 0, wanted others")
        if isinstance(y, torch.Tensor):
            return times(x, 1 / divisor)
        return times(x, checked(1 / y, x._storage.world.party.settings))
    inverse = signed_reciprocal(y.read(raw=True), frac=inner_frac(y._storage.world.party))
    if isinstance(x, SharedTensor):
        return multiply(factor(x), inverse)
    return inverse.times_public(plain(x), frac=inner_frac(inverse.party))


@handles(aten.reciprocal.default)
def _reciprocal(x: SharedTensor) -> Shared:
    value = x.read(raw=True)
    return signed_reciprocal(value, frac=inner_frac(value.party))


@handles(aten.addcmul.default)
def _addcmul(x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, *, value: Number = 1) -> torch.Tensor:
    return x + a * b * value


@handles(aten.addcdiv.default)
def _addcdiv(x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, *, value: Number = 1) -> torch.Tensor:
    return x + a / b * value


@handles(aten.lerp.Scalar, aten.lerp.Tensor)
def _lerp(x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor | Number) -> torch.Tensor:
    return x + (y - x) * weight


@handles(aten.pow.Tensor_Scalar)
def _pow(x: SharedTensor, exponent: Number) -> Shared | torch.Tensor:
    if exponent == 0:
        return torch.ones_like(x)
    if exponent == 1:
        return x.read(raw=True)
    if exponent in (-0.5, 0.5):
        return x.rsqrt() if exponent < 0 else x.sqrt()
    if exponent == -1:
        return x.reciprocal()
    if exponent in (0.25, 0.75, 1.5):
        root = x.sqrt()
        return {0.25: lambda: root.sqrt(), 0.75: lambda: root * root.sqrt(), 1.5: lambda: x * root}[exponent]()
    if exponent in _POWERS:
        return power(x.read(), int(exponent))
    if -exponent in _POWERS:
        return x.pow(-exponent).reciprocal()
    raise UsageError(f"power: got {exponent}, wanted an integer of -8 to 8, or one of -0.5, 0.25, 0.5, 0.75 and 1.5")


@handles(aten.pow.Tensor_Tensor)
def _pow_tensor(x: Operand, exponent: Operand) -> torch.Tensor:
    if isinstance(exponent, torch.Tensor) and not isinstance(exponent, SharedTensor) and exponent.ndim == 0:
        assert isinstance(x, SharedTensor)  # noqa: S101  # one operand is
        return x.pow(exponent.item())
    raise UsageError("power: got a tensor of exponents, wanted one public number")


def _short(x: Shared) -> Shared:
    return truncate(x) if x.frac > x.party.settings.frac else x


def power(x: Shared, exponent: int) -> Shared:
    """x^exponent for 2 or more, where no power up to it leaves the settings' bound; by squares."""
    result, square = None, x
    while True:
        if exponent & 1:
            result = (
                square if result is None else multiply(truncate(result) if result.frac > x.frac else result, square)
            )
        exponent >>= 1
        if not exponent:
            assert result is not None  # noqa: S101  # the exponent was not 0
            return result
        square = multiply(square, square)
        if exponent > 1 or result is not None:
            square = _short(square)


# Matrices


@handles(aten.mm.default, aten.bmm.default)
def mm(x: torch.Tensor, w: torch.Tensor) -> Shared:
    """The matrix product, of stacks too; with the fractional bits of both."""
    if not isinstance(w, SharedTensor):
        assert isinstance(x, SharedTensor)  # noqa: S101  # one operand is
        return matmul_public(factor(x), plain(w))
    if not isinstance(x, SharedTensor):
        return matmul_public(plain(x), factor(w))
    if w._storage.holder is not None:
        return matmul_owned(factor(x), w._storage.read_owned(w.place))
    return matmul(factor(x), factor(w))


@handles(aten.matmul.default)
def matmul_any(x: torch.Tensor, w: torch.Tensor) -> Shared:
    """Also of vectors: a row on the left, a column on the right."""
    if x.ndim > 1 < w.ndim:
        return mm(x, w)
    row, column = x.ndim == 1, w.ndim == 1
    result = mm(x.unsqueeze(0) if row else x, w.unsqueeze(1) if column else w)
    shape = result.shape[: -2 if row or column else None]
    if row or column:
        shape += result.shape[-1:] * (not column) + result.shape[-2:-1] * (not row)
        result = result.reshape(*shape)
    return result


@handles(aten.linear.default)
def _linear(x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor | None = None) -> Shared:
    return add_bias(matmul_any(x, w.turned() if isinstance(w, SharedTensor) else w.t()), bias)


@directly(torch.nn.functional.linear)
def _linear_called(input: Any, weight: Any, bias: Any = None) -> tuple[Any, ...]:  # noqa: A002  # torch's name
    return (aten.linear.default, input, weight) if bias is None else (aten.linear.default, input, weight, bias)


@handles(aten.addmm.default, aten.baddbmm.default)
def _addmm(
    bias: torch.Tensor, x: torch.Tensor, w: torch.Tensor, beta: Number = 1, alpha: Number = 1
) -> Shared | torch.Tensor:
    if alpha != 1 or beta != 1:
        product = x @ w * alpha
        return product + bias * beta if beta else product
    if not isinstance(x, SharedTensor) and not isinstance(w, SharedTensor):
        assert isinstance(bias, SharedTensor)  # noqa: S101  # one operand is
        return plus(bias.read(), plain(x) @ plain(w))
    return add_bias(mm(x, w), bias)


@handles(aten.mv.default)
def _mv(x: torch.Tensor, v: torch.Tensor) -> Shared:
    result = mm(x, v.unsqueeze(1))
    return result.reshape(result.shape[0])


@handles(aten.dot.default, aten.vdot.default)
def _dot(x: torch.Tensor, y: torch.Tensor) -> Shared:
    return mm(x.unsqueeze(0), y.unsqueeze(1)).reshape()


@handles(aten._trilinear.default)
def _trilinear(
    a: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    expand1: Sequence[int],
    expand2: Sequence[int],
    expand3: Sequence[int],
    sumdim: Sequence[int],
    unroll_dim: int = 1,
) -> torch.Tensor:
    """sum of a b c, each with axes of one where it says: what `Bilinear` is made of."""
    for axis in expand1:
        a = a.unsqueeze(axis)
    for axis in expand2:
        b = b.unsqueeze(axis)
    for axis in expand3:
        c = c.unsqueeze(axis)
    return (a * b * c).sum(list(sumdim))


HINTS.update(
    dict.fromkeys(
        ("native_dropout", "bernoulli", "bernoulli_", "rrelu_with_noise", "rrelu_with_noise_functional"),
        "no protocol: nothing is drawn on secrets; a dropout does nothing after model.eval()",
    )
    | dict.fromkeys(
        ("normal_", "uniform_", "exponential_", "rand_like", "randn_like", "randint_like", "multinomial", "poisson"),
        "no protocol: nothing is drawn on secrets; share what was drawn",
    )
    | dict.fromkeys(
        ("round", "floor", "ceil", "trunc", "frac", "remainder", "fmod", "floor_divide", "div"),
        "no protocol: nothing rounds a secret to an integer; reveal it first, to whom may know it",
    )
    | dict.fromkeys(
        ("sin", "cos", "tan", "asin", "acos", "atan", "atan2", "sinh", "cosh", "erfinv", "lgamma", "digamma"),
        "no protocol: write it with exp, log, tanh, erf, sqrt or a polynomial, or have its source share the result",
    )
    | dict.fromkeys(("cumprod", "cummax", "cummin", "logcumsumexp"), "no protocol: loop over the slices instead")
    | dict.fromkeys(
        (
            *("linalg_inv_ex", "linalg_cholesky_ex", "linalg_qr", "linalg_pinv", "linalg_eig", "linalg_lu_factor_ex"),
            *("_linalg_det", "_linalg_slogdet", "_linalg_solve_ex", "_linalg_svd", "_linalg_eigh"),
        ),
        "no protocol: decompositions branch on values; reveal the matrix first, to whom may know it",
    )
)
