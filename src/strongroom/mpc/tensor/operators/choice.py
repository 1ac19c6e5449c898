"""Comparisons, and what is chosen by them: bits that are as secret as what was compared.

A bit has no fractional bits, so a product with one needs no truncation. Nothing here lets a program branch on a bit:
`bool()` of it raises, and so does an index that is a secret mask.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from strongroom.errors import UsageError
from strongroom.mpc.protocols.compare import is_negative
from strongroom.mpc.protocols.linear import multiply
from strongroom.mpc.shared import Shared, concatenate
from strongroom.mpc.tensor.operators.registry import (
    Number,
    Operand,
    alike,
    at_frac,
    aten,
    bounded,
    found,
    handles,
    is_bool,
    is_float,
    locally,
    plain,
    same_shape,
    secret,
)
from strongroom.mpc.tensor.shared_tensor import DTYPES, HINTS, SharedTensor, Typed
from strongroom.mpc.transcript import shapes


def _bits(value: Shared) -> Typed:
    return Typed(value, torch.bool)


def _difference(x: Operand, y: Operand) -> Shared:
    """x - y, of whole numbers without fractional bits."""
    whole = all(
        each._dtype not in DTYPES
        if isinstance(each, SharedTensor)
        else bool(np.array_equal(plain(each), np.rint(plain(each))))
        for each in (x, y)
    )
    if not whole:
        like = found(x, y)
        return secret(x, like) - secret(y, like)
    if isinstance(x, SharedTensor):
        return x.read(raw=True) - (y.read(raw=True) if isinstance(y, SharedTensor) else plain(y))
    assert isinstance(y, SharedTensor)  # noqa: S101  # one operand is
    return -y.read(raw=True) + plain(x)


def _not(bits: Shared) -> Shared:
    return -bits + 1.0


def _less(x: Operand, y: Operand) -> Shared:
    return is_negative(_difference(x, y))


def _equal(x: Operand, y: Operand) -> Shared:
    if any(isinstance(each, SharedTensor) and each.classes for each in (x, y)) and all(
        not isinstance(each, SharedTensor) or each.classes for each in (x, y)
    ):
        (a, b), _ = alike(x, y)
        return multiply(a, b).sum()
    if is_bool(x) and is_bool(y):
        (a, b), _ = alike(x, y)
        return _not(a + b - _twice(multiply(a, b)))
    # One opening for both comparisons would need a protocol of its own.
    difference = _difference(x, y)
    shape = difference.shape
    both = is_negative(concatenate([each.reshape(1, *shape) for each in (difference, -difference)], 0))
    return -both[0] - both[1] + 1.0


def _of_index(x: SharedTensor, number: Number, holds: Callable[[Any, Any], Any]) -> Shared:
    """A comparison with a public number: the sum over the classes that it holds for; no message."""
    rows = x.rows()
    return rows.times_public(holds(np.arange(rows.shape[-1]), number).astype(float), frac=0).sum()


def _compares(name: str, holds: Callable[[Any, Any], Any], function: Callable[[Operand, Operand], Shared]) -> None:
    def compare(x: Operand, y: Operand) -> Typed:
        if isinstance(x, SharedTensor) and x.classes and isinstance(y, int | float):
            return _bits(_of_index(x, y, holds))
        return _bits(function(x, y))

    packet = getattr(aten, name)
    handles(packet.Tensor, packet.Scalar)(compare)


_compares("lt", operator.lt, _less)
_compares("gt", operator.gt, lambda x, y: _less(y, x))
_compares("le", operator.le, lambda x, y: _not(_less(y, x)))
_compares("ge", operator.ge, lambda x, y: _not(_less(x, y)))
_compares("eq", operator.eq, _equal)
_compares("ne", operator.ne, lambda x, y: _not(_equal(x, y)))


@handles(aten.sign.default, aten.sgn.default)
def _sign(x: SharedTensor) -> Shared:
    value = x.read()
    both = is_negative(concatenate([each.reshape(1, *value.shape) for each in (-value, value)], 0))
    return both[0] - both[1]


# Logic


def _twice(x: Shared) -> Shared:
    return x.shifted(1, x.frac)


def _as_bits(x: Operand) -> Operand:
    """A truth value; of a number, whether it is not 0."""
    if is_bool(x):
        return x
    if isinstance(x, SharedTensor):
        made: torch.Tensor = x.ne(0)
        return made
    return x.bool() if isinstance(x, torch.Tensor) else bool(x)


@handles(aten.logical_not.default, aten.bitwise_not.default)
def _logical_not(x: SharedTensor) -> Typed:
    bits = _as_bits(x)
    assert isinstance(bits, SharedTensor)  # noqa: S101  # x is
    return _bits(_not(bits.read(raw=True)))


@handles(aten.logical_and.default, aten.bitwise_and.Tensor)
def _both(x: Operand, y: Operand) -> Typed:
    a, b = _as_bits(x), _as_bits(y)
    if isinstance(a, SharedTensor) and isinstance(b, SharedTensor):
        return _bits(multiply(a.read(raw=True), b.read(raw=True)))
    bits = found(a, b)
    return _bits(bits.read(raw=True).times_public(plain(b if bits is a else a), frac=0))


@handles(aten.logical_or.default, aten.bitwise_or.Tensor)
def either(x: Operand, y: Operand) -> Typed:
    """Whether one of two holds, or both: a + b - a b."""
    (a, b), _ = alike(_as_bits(x), _as_bits(y))
    return _bits(a + b - _both(x, y).value)


@handles(aten.logical_xor.default, aten.bitwise_xor.Tensor)
def _one_of(x: Operand, y: Operand) -> Typed:
    (a, b), _ = alike(_as_bits(x), _as_bits(y))
    return _bits(a + b - _twice(_both(x, y).value))


# Choices


@handles(aten.where.self, aten.where.ScalarSelf, aten.where.ScalarOther, aten.where.Scalar)
def where(condition: torch.Tensor, x: Operand, y: Operand) -> Typed:
    """x where a bit is 1, else y: y + bit (x - y)."""
    if isinstance(condition, SharedTensor):
        if not is_bool(condition):
            raise UsageError(f"where: got a condition of {condition.dtype}, wanted one of torch.bool")
        bit = condition.read(raw=True)
        if not isinstance(x, SharedTensor) and not isinstance(y, SharedTensor):
            settings = bit.party.settings
            a, b = bounded(x, settings), bounded(y, settings)
            if not is_float(x, y):
                return Typed(bit.times_public(a - b, frac=0) + b, torch.bool if is_bool(x) else torch.int64)
            return Typed(bit.times_public(a - b) + b, torch.float32)
        (a_, b_), typed = alike(x, y)
        result = typed(b_)
        if result.classes is not None:
            bit = bit.reshape(*bit.shape, 1)
        a_, b_ = same_shape(a_, b_)
        return typed(b_ + multiply(bit, a_ - b_))
    (first, second), typed = alike(x, y)
    chosen = condition.numpy()
    if typed(first).classes is not None:
        chosen = chosen[..., None]
    return typed(select(chosen, first, second))


def select(chosen: np.ndarray[Any, Any], x: Shared, y: Shared) -> Shared:
    """x where something public holds, else y; no message."""
    y = at_frac(y, x.frac)
    return locally(
        x, lambda words: np.where(chosen, words, y.words), "select", shapes(y.shape, chosen.shape), public=chosen
    )


@handles(aten.masked_fill.Scalar, aten.masked_fill.Tensor)
def _masked_fill(x: Operand, mask: torch.Tensor, value: Operand) -> Typed:
    if isinstance(x, SharedTensor) and isinstance(value, float) and x._dtype not in DTYPES:
        value = int(value)
    return where(mask, value, x)


@handles(aten.masked_scatter.default)
def _masked_scatter(x: torch.Tensor, mask: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    if isinstance(mask, SharedTensor):
        raise UsageError("masked scatter: got a secret mask, wanted a public one", hint="where it holds would show")
    taken = mask.broadcast_to(x.shape).reshape(-1).cumsum(0) - 1
    values = source.reshape(-1)[taken.clamp(min=0)].reshape(x.shape)
    return torch.where(mask, values, x)


HINTS.update(
    dict.fromkeys(
        ("_local_scalar_dense", "equal", "is_nonzero", "item", "nonzero", "allclose", "any", "all", "masked_select"),
        "the program must not depend on a secret: reveal it first, to whom may know it",
    )
)
