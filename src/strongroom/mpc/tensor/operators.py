"""What PyTorch's general operators become: views, sums, products, element-wise functions, rearrangements."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from strongroom.errors import UsageError
from strongroom.mpc.functions.activation import gelu, sigmoid, silu
from strongroom.mpc.functions.division import reciprocal, rsqrt
from strongroom.mpc.functions.exponential import exp
from strongroom.mpc.functions.fixed import inner_frac
from strongroom.mpc.protocols.compare import amax, argmax, maximum
from strongroom.mpc.protocols.linear import matmul, multiply
from strongroom.mpc.protocols.owned import matmul_owned
from strongroom.mpc.protocols.pool import absolute, clamp
from strongroom.mpc.protocols.public import matmul_public
from strongroom.mpc.protocols.relu import relu
from strongroom.mpc.shared import Shared, concatenate
from strongroom.mpc.tensor.shared_tensor import HANDLERS, HINTS, VIEWS, WRITES, Handler, SharedTensor
from strongroom.mpc.transcript import shapes

aten: Any = torch.ops.aten
Number = int | float
Operand = torch.Tensor | Number
H = TypeVar("H", bound=Handler)


def handles(*overloads: Any) -> Callable[[H], H]:
    """Make a function what these operators become.

    It takes the operator's arguments and returns a `Shared` for each result, or None for one that is not computed.
    """

    def register(handler: H) -> H:
        HANDLERS.update(dict.fromkeys(overloads, handler))
        return handler

    return register


def plain(value: Operand) -> NDArray[np.float64]:
    """A public operand."""
    if isinstance(value, torch.Tensor):
        array: NDArray[np.float64] = value.detach().to(torch.float64).numpy()
        return array
    return np.asarray(value, np.float64)


def secret(value: Operand, like: SharedTensor) -> Shared:
    """An operand as a shared value, at the settings' fractional bits."""
    if isinstance(value, SharedTensor):
        return value.read()
    party = like._storage.world.party
    return Shared.public(party, plain(value), party.settings.frac)


def found(*values: Any) -> SharedTensor:
    """The first secret among operands."""
    return next(each for each in values if isinstance(each, SharedTensor))


def at_frac(x: Shared, frac: int) -> Shared:
    return x if x.frac == frac else x.shifted(frac - x.frac, frac)


# Views

VIEWS.update(
    {
        aten.alias.default,
        aten.as_strided.default,
        aten.detach.default,
        aten.diagonal.default,
        aten.expand.default,
        aten.lift_fresh.default,
        aten.permute.default,
        aten.select.int,
        aten.slice.Tensor,
        aten.split.Tensor,
        aten.split_with_sizes.default,
        aten.squeeze.default,
        aten.squeeze.dim,
        aten.squeeze.dims,
        aten.t.default,
        aten.transpose.int,
        aten.unbind.int,
        aten.unfold.default,
        aten.unsqueeze.default,
        aten.view.default,
        aten._reshape_alias.default,
        aten._unsafe_view.default,
    }
)

# Sums and differences


@handles(aten.add.Tensor, aten.add.Scalar)
def _add(x: Operand, y: Operand, alpha: Number = 1) -> Shared:
    if not isinstance(x, SharedTensor):
        return _plus(_times(y, alpha), plain(x))
    if alpha != 1:
        return _plus(x.read(raw=True), plain(y) * alpha if not isinstance(y, SharedTensor) else _times(y, alpha))
    return _plus(x.read(raw=True), y.read(raw=True) if isinstance(y, SharedTensor) else plain(y))


@handles(aten.sub.Tensor, aten.sub.Scalar)
def _sub(x: Operand, y: Operand, alpha: Number = 1) -> Shared:
    return _add(x, y, -alpha)


@handles(aten.rsub.Tensor, aten.rsub.Scalar)
def _rsub(x: Operand, y: Operand, alpha: Number = 1) -> Shared:
    return _add(y, x, -alpha)


@handles(aten.neg.default)
def _neg(x: SharedTensor) -> Shared:
    return -x.read(raw=True)


def _plus(x: Shared, y: Shared | NDArray[np.float64]) -> Shared:
    if not isinstance(y, Shared):
        return x + y
    frac = max(x.frac, y.frac)
    return at_frac(x, frac) + at_frac(y, frac)


# Products


def _times(x: Operand, factor: Number) -> Shared:
    """The product with a public number; an integer keeps the fractional bits."""
    assert isinstance(x, SharedTensor)  # noqa: S101  # one operand is
    return times(x, np.asarray(factor, np.float64))


def times(x: SharedTensor, factor: NDArray[np.float64]) -> Shared:
    """The product with public numbers, at as many of their fractional bits as there is room for."""
    if np.array_equal(factor, np.rint(factor)):
        value = x.read(raw=True)
        if (factor == 1).all() and factor.ndim <= len(value.shape):
            return value.broadcast(np.broadcast_shapes(value.shape, factor.shape))
        return value.times_public(factor, frac=0)
    value = x.read()
    return value.times_public(factor, frac=inner_frac(value.party))


@handles(aten.mul.Tensor, aten.mul.Scalar)
def _mul(x: Operand, y: Operand) -> Shared:
    if not isinstance(x, SharedTensor):
        x, y = y, x
    assert isinstance(x, SharedTensor)  # noqa: S101  # one operand is
    if isinstance(y, SharedTensor):
        return multiply(x.read(), y.read())
    return times(x, plain(y))


@handles(aten.div.Tensor, aten.div.Scalar)
def _div(x: Operand, y: Operand) -> Shared:
    if isinstance(y, SharedTensor):
        raise UsageError("division: got a secret divisor, wanted a public one", hint="x * y.reciprocal(), in its range")
    assert isinstance(x, SharedTensor)  # noqa: S101  # one operand is
    return times(x, 1 / plain(y))


@handles(aten.pow.Tensor_Scalar)
def _pow(x: SharedTensor, exponent: Number) -> Shared:
    if exponent != 2:
        raise UsageError(f"power: got {exponent}, wanted 2")
    value = x.read()
    return multiply(value, value)


@handles(aten.mm.default, aten.bmm.default)
def mm(x: torch.Tensor, w: torch.Tensor) -> Shared:
    """The matrix product, of stacks too; with the fractional bits of both."""
    if not isinstance(w, SharedTensor):
        assert isinstance(x, SharedTensor)  # noqa: S101  # one operand is
        return matmul_public(x.read(), plain(w))
    if not isinstance(x, SharedTensor):
        return matmul_public(plain(x), w.read())
    if w._storage.holder is not None:
        return matmul_owned(x.read(), w._storage.read_owned(w.place))
    return matmul(x.read(), w.read())


@handles(aten.matmul.default)
def _matmul(x: torch.Tensor, w: torch.Tensor) -> Shared:
    """Also of vectors: a row on the left, a column on the right."""
    row, column = x.ndim == 1, w.ndim == 1
    result = mm(x.unsqueeze(0) if row else x, w.unsqueeze(1) if column else w)
    shape = result.shape[: -2 if row or column else None]
    if row or column:
        shape += result.shape[-1:] * (not column) + result.shape[-2:-1] * (not row)
        result = result.reshape(*shape)
    return result


@handles(aten.linear.default)
def _linear(x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor | None = None) -> Shared:
    return add_bias(_matmul(x, w.t()), bias)


@handles(aten.addmm.default, aten.baddbmm.default)
def _addmm(bias: torch.Tensor, x: torch.Tensor, w: torch.Tensor, beta: Number = 1, alpha: Number = 1) -> Shared:
    if alpha != 1 or beta != 1:
        raise UsageError(f"addmm: got beta {beta} and alpha {alpha}, wanted 1 and 1")
    if not isinstance(x, SharedTensor) and not isinstance(w, SharedTensor):
        value = plain(x) @ plain(w)
        assert isinstance(bias, SharedTensor)  # noqa: S101  # one operand is
        return _plus(bias.read(), value)
    return add_bias(mm(x, w), bias)


def add_bias(value: Shared, bias: torch.Tensor | None) -> Shared:
    """The sum with a bias, secret or public, that broadcasts."""
    if bias is None:
        return value
    return _plus(value, bias.read() if isinstance(bias, SharedTensor) else plain(bias))


@handles(aten.mv.default)
def _mv(x: torch.Tensor, v: torch.Tensor) -> Shared:
    result = mm(x, v.unsqueeze(1))
    return result.reshape(result.shape[0])


@handles(aten.dot.default)
def _dot(x: torch.Tensor, y: torch.Tensor) -> Shared:
    return mm(x.unsqueeze(0), y.unsqueeze(1)).reshape()


# Functions of each element


@handles(aten.relu.default)
def _relu(x: SharedTensor) -> Shared:
    return relu(x.read(raw=True))


@handles(aten.leaky_relu.default)
def _leaky_relu(x: SharedTensor, slope: Number = 0.01) -> Shared:
    value = x.read()
    frac = inner_frac(value.party)
    return relu(value, 0).times_public(1 - slope, frac=frac) + value.times_public(slope, frac=frac)


@handles(aten.hardtanh.default)
def _hardtanh(x: SharedTensor, low: Number = -1, high: Number = 1) -> Shared:
    return clamp(x.read(), low, high)


@handles(aten.clamp.default, aten.clamp_min.default)
def _clamp(x: SharedTensor, low: Number | None = None, high: Number | None = None) -> Shared:
    value = x.read()
    width = value.party.settings.opening(value.frac) + 1  # of a difference
    if low is not None and high is not None:
        return clamp(value, low, high)
    if low is not None:
        return relu(value - low, 0, width=width) + low
    if high is None:
        raise UsageError("clamp: got no bound, wanted one or two")
    return -(relu(-(value - high), 0, width=width) - high)


@handles(aten.gelu.default)
def _gelu(x: SharedTensor, *, approximate: str = "none") -> Shared:
    # The two differ by less than 5e-4, so that one stands for both would show.
    if approximate != "none":
        raise UsageError(f"gelu: got approximate={approximate!r}, wanted 'none'")
    return gelu(x.read())


@handles(aten.tanh.default)
def _tanh(x: SharedTensor) -> Shared:
    value = x.read()
    s = sigmoid(value + value)
    return s + s - 1.0


def _of_elements(overload: Any, function: Callable[[Shared], Shared]) -> None:
    handles(overload)(lambda x: function(x.read()))


_of_elements(aten.sigmoid.default, sigmoid)
_of_elements(aten.silu.default, silu)
_of_elements(aten.exp.default, exp)
_of_elements(aten.reciprocal.default, reciprocal)
_of_elements(aten.rsqrt.default, rsqrt)
_of_elements(aten.abs.default, absolute)


@handles(aten.maximum.default)
def _maximum(x: torch.Tensor, y: torch.Tensor) -> Shared:
    like = found(x, y)
    return maximum(*_alike(secret(x, like), secret(y, like)))


@handles(aten.minimum.default)
def _minimum(x: torch.Tensor, y: torch.Tensor) -> Shared:
    like = found(x, y)
    a, b = _alike(secret(x, like), secret(y, like))
    return -maximum(-a, -b)


def _alike(*values: Shared) -> list[Shared]:
    shape = np.broadcast_shapes(*(value.shape for value in values))
    return [value.broadcast(shape) for value in values]


# Along axes


def last(x: Shared, axes: Sequence[int] | int | None) -> tuple[Shared, list[int]]:
    """With these axes, all by default, as one axis at the end; and which they are."""
    count = len(x.shape)
    given = [axes] if isinstance(axes, int) else list(axes or range(count))
    chosen = sorted(axis % count for axis in given) if count else []
    others = [axis for axis in range(count) if axis not in chosen]
    size = prod(x.shape[axis] for axis in chosen)
    return x.transpose(*others, *chosen).reshape(*(x.shape[axis] for axis in others), size) if count else x.reshape(
        1
    ), chosen


def kept(x: Shared, shape: Sequence[int], axes: Sequence[int], keep: bool) -> Shared:
    """A result without these axes with an axis of one for each, where that is asked for."""
    return x.reshape(*(1 if axis in axes else n for axis, n in enumerate(shape))) if keep else x


@handles(aten.sum.default, aten.sum.dim_IntList)
def _sum(x: SharedTensor, dim: Sequence[int] | None = None, keepdim: bool = False, *, dtype: Any = None) -> Shared:
    value = x.read(raw=True)
    flat, axes = last(value, dim)
    return kept(flat.sum(), value.shape, axes, keepdim)


@handles(aten.mean.default, aten.mean.dim)
def _mean(x: SharedTensor, dim: Sequence[int] | None = None, keepdim: bool = False, *, dtype: Any = None) -> Shared:
    value = x.read()
    flat, axes = last(value, dim)
    return kept(mean_of(flat), value.shape, axes, keepdim)


def mean_of(x: Shared) -> Shared:
    """Along the last axis."""
    return x.sum().times_public(1 / x.shape[-1], frac=inner_frac(x.party))


@handles(aten.amax.default)
def _amax(x: SharedTensor, dim: Sequence[int] = (), keepdim: bool = False) -> Shared:
    value = x.read()
    flat, axes = last(value, dim)
    return kept(amax(flat), value.shape, axes, keepdim)


@handles(aten.max.default)
def _max(x: SharedTensor) -> Shared:
    return _amax(x)


@handles(aten.argmax.default)
def _argmax(x: SharedTensor, dim: int | None = None, keepdim: bool = False) -> Shared:
    value = x.read()
    flat, axes = last(value, dim)
    return kept(argmax(flat), value.shape, axes, keepdim)


# Copies and rearrangements


@handles(aten.clone.default, aten._to_copy.default)
def _clone(x: SharedTensor, *, memory_format: Any = None, dtype: Any = None, device: Any = None, **more: Any) -> Shared:
    if dtype not in (None, x._meta.dtype) or device not in (None, torch.device("cpu")):
        raise UsageError(
            f"to: got {dtype or x._meta.dtype} on {device or 'cpu'}, wanted {x._meta.dtype} on cpu",
            hint="a secret is a fixed-point number in the ring, whatever dtype a revealed value has",
        )
    return x._storage.read(x.place, raw=True)


@handles(aten.copy_.default)
def _copied(x: Operand, y: Operand, non_blocking: bool = False) -> Shared:
    return secret(y, found(x, y))


@handles(aten.fill_.Scalar, aten.fill_.Tensor)
def _filled(x: SharedTensor, value: Operand) -> Shared:
    return secret(value, x)


@handles(aten.zero_.default)
def _zeroed(x: SharedTensor) -> Shared:
    return secret(0, x)


@handles(aten.zeros_like.default, aten.empty_like.default)
def _zeros_like(x: SharedTensor, **more: Any) -> Shared:
    return secret(0, x).broadcast(x.place.size)


@handles(aten.ones_like.default)
def _ones_like(x: SharedTensor, **more: Any) -> Shared:
    return secret(1, x).broadcast(x.place.size)


@handles(aten.cat.default)
def _cat(tensors: Sequence[torch.Tensor], dim: int = 0) -> Shared:
    like = found(*tensors)
    return concatenate([secret(each, like) for each in tensors], dim)


@handles(aten.stack.default)
def _stack(tensors: Sequence[torch.Tensor], dim: int = 0) -> Shared:
    return _cat([each.unsqueeze(dim) for each in tensors], dim)


@handles(aten.constant_pad_nd.default)
def _pad(x: SharedTensor, pad: Sequence[int], value: Number = 0) -> Shared:
    return padded(x.read(), pad, value)


def padded(x: Shared, pad: Sequence[int], value: Number = 0) -> Shared:
    """With a border of a public value: before and after, from the last axis on."""
    if min(pad) < 0:
        raise UsageError(f"padding: got {list(pad)}, wanted none that is negative")
    for i in range(len(pad) // 2):
        axis = len(x.shape) - 1 - i
        borders = [
            Shared.public(x.party, value, x.frac).broadcast([*x.shape[:axis], size, *x.shape[axis + 1 :]])
            for size in pad[2 * i : 2 * i + 2]
        ]
        x = concatenate([borders[0], x, borders[1]], axis)
    return x


@handles(aten.index.Tensor)
def _index(x: SharedTensor, indices: Sequence[torch.Tensor | None]) -> Shared:
    if not isinstance(x, SharedTensor) or any(isinstance(each, SharedTensor) for each in indices):
        raise UsageError("index: got a secret, wanted a public one", hint="which element is taken would show")
    return picked(x, tuple(slice(None) if each is None else each.numpy() for each in indices))


@handles(aten.embedding.default)
def _embedding(weight: torch.Tensor, indices: torch.Tensor, *more: Any) -> Shared:
    if isinstance(indices, SharedTensor) or not isinstance(weight, SharedTensor):
        raise UsageError("embedding: got a secret index, wanted a public one", hint="which row is taken would show")
    return picked(weight, (indices.numpy(),))


def picked(x: SharedTensor, key: tuple[Any, ...]) -> Shared:
    """The elements at public indices."""
    value = x.read()
    for each in key:
        if not isinstance(each, slice):
            value.party.enter("picked", shapes(value.shape, each.shape), public=each.astype(np.int64).view(np.uint64))
    return Shared(value.party, value.words[key], value.frac)


# Operators that write

_IN_PLACE = (
    "add_.Tensor add_.Scalar sub_.Tensor sub_.Scalar mul_.Tensor mul_.Scalar div_.Tensor div_.Scalar neg_.default "
    "relu_.default leaky_relu_.default clamp_.default hardtanh_.default sigmoid_.default silu_.default gelu_.default "
    "tanh_.default exp_.default abs_.default reciprocal_.default rsqrt_.default pow_.Scalar"
)
for _name in _IN_PLACE.split():
    _packet, _overload = _name.split(".")
    _function = getattr(aten, _packet[:-1])
    _wanted = "Tensor_Scalar" if _packet == "pow_" else _overload
    WRITES[getattr(getattr(aten, _packet), _overload)] = getattr(_function, _wanted)
for _written in (aten.copy_.default, aten.fill_.Scalar, aten.fill_.Tensor, aten.zero_.default):
    WRITES[_written] = _written

HINTS.update(
    dict.fromkeys(
        ("_local_scalar_dense", "equal", "is_nonzero", "item", "nonzero"),
        "the program must not depend on a secret: reveal it first, to whom may know it",
    )
)
HINTS.update(
    dict.fromkeys(
        ("lt", "le", "gt", "ge", "eq", "ne", "where", "masked_fill", "sign"),
        "what a comparison gives is secret too; relu, clamp, maximum and argmax compare without showing it",
    )
)
