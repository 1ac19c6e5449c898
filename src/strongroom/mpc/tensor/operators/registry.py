"""How a function becomes an operator of secrets, and how it gets at its operands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from strongroom.errors import UsageError
from strongroom.mpc.functions.fixed import inner_frac
from strongroom.mpc.ring import Settings, Words
from strongroom.mpc.shared import Shared
from strongroom.mpc.tensor.shared_tensor import APART, DIRECT, DTYPES, HANDLERS, WRITES, Handler, SharedTensor, Typed
from strongroom.mpc.transcript import shapes

aten: Any = torch.ops.aten
Number = int | float
Operand = torch.Tensor | Number
H = TypeVar("H", bound=Handler)
Direct = Callable[..., tuple[Any, ...]]


def handles(*overloads: Any) -> Callable[[H], H]:
    """Make a function what these operators become.

    It takes the operator's arguments and returns a `Shared` or `Typed` for each result, None for one that is not
    computed, or a tensor that it made by other operators.
    """

    def register(handler: H) -> H:
        HANDLERS.update(dict.fromkeys(overloads, handler))
        return handler

    return register


def directly(*functions: Any) -> Callable[[Direct], Direct]:
    """Make a function say what calls of these functions of torch become: an operator and its operands."""

    def register(function: Direct) -> Direct:
        DIRECT.update(dict.fromkeys(functions, function))
        return function

    return register


def write_in_place() -> None:
    """Let the operators that write their first argument, like `add_`, write what those without the dash give."""
    for operator in (*HANDLERS, *APART):
        if not str(operator).startswith("aten."):
            continue
        packet, overload = str(operator).removeprefix("aten.").split(".")
        written = getattr(getattr(aten, packet + "_", None), overload, None)
        if written is not None and written._schema.arguments[0].alias_info is not None:
            WRITES.setdefault(written, operator)
    WRITES[aten.pow_.Scalar] = aten.pow.Tensor_Scalar
    WRITES[aten.pow_.Tensor] = aten.pow.Tensor_Tensor
    for name in ("copy_", "zero_", "fill_"):
        packet = getattr(aten, name)
        for overload in packet.overloads():
            operator = getattr(packet, overload)
            if operator in HANDLERS:
                WRITES[operator] = operator


# Operands


def plain(value: Operand) -> NDArray[np.float64]:
    """A public operand."""
    if isinstance(value, torch.Tensor):
        array: NDArray[np.float64] = value.detach().cpu().to(torch.float64).numpy()
        return array
    return np.asarray(value, np.float64)


def checked(value: Operand, settings: Settings) -> NDArray[np.float64]:
    """A public operand. Raises UsageError that names it, if it is one number of the program's and out of range."""
    if not isinstance(value, torch.Tensor) and not abs(value) < 2.0**settings.bound:  # a NaN is not either
        raise UsageError(
            f"operand: got {value:g}, wanted a number of magnitude below 2^{settings.bound}",
            hint="scale the values, or raise the bound in the settings",
        )
    return plain(value)


def bounded(value: Operand, settings: Settings) -> NDArray[np.float64]:
    """A public summand or choice, where what is below all values, as a mask before a softmax has it, is one of them."""
    values = plain(value)
    low = values <= -(2.0**settings.bound)
    # A quarter, so that a few such masks may be added to a value.
    return np.where(low, -(2.0 ** (settings.bound - 2)), values) if low.any() else checked(value, settings)


def secret(value: Operand, like: SharedTensor) -> Shared:
    """An operand as a shared number, at the settings' fractional bits."""
    if isinstance(value, SharedTensor):
        return value.read()
    party = like._storage.world.party
    return Shared.public(party, bounded(value, party.settings), party.settings.frac)


def found(*values: Any) -> SharedTensor:
    """The first secret among operands."""
    return next(each for each in values if isinstance(each, SharedTensor))


def factor(x: SharedTensor) -> Shared:
    """A number to multiply: with the fractional bits that it has, if there is room for as many again."""
    value = x.read(raw=True)
    return value if value.frac <= inner_frac(value.party) else x.read()


def at_frac(x: Shared, frac: int) -> Shared:
    return x if x.frac == frac else x.shifted(frac - x.frac, frac)


def is_float(*values: Any) -> bool:
    """Whether a result of these operands has a fraction."""
    tensors = [each for each in values if isinstance(each, torch.Tensor)]
    return any(isinstance(each, float) for each in values) or any(each.is_floating_point() for each in tensors)


def is_bool(value: Any) -> bool:
    return isinstance(value, bool) or (isinstance(value, torch.Tensor) and value.dtype == torch.bool)


# Rearrangements: whatever the elements are


def rearranged(
    x: SharedTensor, function: Callable[[Words], Words], name: str, *facts: object, public: Any = None
) -> Typed:
    """A function that moves, repeats or adds up words, whole rows of an index; no round.

    Args:
        facts, public: whatever else decides what it does.
    """
    rows = x.rows()
    return Typed(locally(rows, function, name, *facts, public=public), x._dtype, x.classes)


def locally(x: Shared, function: Callable[[Words], Words], name: str, *facts: object, public: Any = None) -> Shared:
    """As `rearranged`, of a shared value."""
    chosen = None if public is None else np.asarray(public).astype(np.int64).view(np.uint64)
    x.party.enter(name, shapes(x.shape), *facts, public=chosen)
    return Shared(x.party, function(x.words), x.frac)


def alike(*values: Operand) -> tuple[list[Shared], Callable[[Shared], Typed]]:
    """Operands as they are kept, all of one kind; and how a result made of their elements becomes a tensor.

    Indices have one more axis, the last. Public operands become shares.
    """
    like = found(*values)
    party = like._storage.world.party
    classes = next((each.classes for each in values if isinstance(each, SharedTensor) and each.classes), None)
    if classes is not None:
        if any(isinstance(each, SharedTensor) and each.classes != classes for each in values):
            given = [each.classes for each in values if isinstance(each, SharedTensor)]
            raise UsageError(f"indices: got classes {given}, wanted the same", hint="share them with the same classes=")
        kept = [each.rows() if isinstance(each, SharedTensor) else public_rows(each, classes, like) for each in values]
        return kept, lambda value: Typed(value, torch.int64, classes)
    dtype = like._dtype
    for each in values:
        if isinstance(each, torch.Tensor):
            dtype = torch.promote_types(dtype, each.dtype)
        elif isinstance(each, float) and dtype not in DTYPES:
            dtype = torch.float32
    least = 0 if dtype not in DTYPES else party.settings.frac
    frac = max(least, *(each.rows().frac for each in values if isinstance(each, SharedTensor)))
    kept = [
        at_frac(each.rows(), frac)
        if isinstance(each, SharedTensor)
        else Shared.public(party, bounded(each, party.settings), frac)
        for each in values
    ]
    return kept, lambda value: Typed(value, dtype)


def public_rows(value: Operand, classes: int, like: SharedTensor) -> Shared:
    """A public index as a secret one is kept."""
    numbers = plain(value)
    wrong = (numbers < 0) | (numbers >= classes) | (numbers != np.rint(numbers))
    if wrong.any():
        raise UsageError(f"index: got {numbers[wrong].flat[0]:g}, wanted one of 0 to {classes - 1}")
    return Shared.public(like._storage.world.party, numbers[..., None] == np.arange(classes), 0)


# Axes


def last(x: Shared, axes: Sequence[int] | int | None) -> tuple[Shared, list[int]]:
    """With these axes, all by default, as one axis at the end; and which they are."""
    count = len(x.shape)
    if not count:
        return x.reshape(1), []
    given = [axes] if isinstance(axes, int) else list(axes or range(count))
    chosen = sorted(axis % count for axis in given)
    others = [axis for axis in range(count) if axis not in chosen]
    size = prod(x.shape[axis] for axis in chosen)
    return x.transpose(*others, *chosen).reshape(*(x.shape[axis] for axis in others), size), chosen


def kept(x: Shared, shape: Sequence[int], axes: Sequence[int], keep: bool) -> Shared:
    """A result without these axes with an axis of one for each, where that is asked for."""
    return x.reshape(*(1 if axis in axes else n for axis, n in enumerate(shape))) if keep else x


def same_shape(*values: Shared) -> list[Shared]:
    shape = np.broadcast_shapes(*(value.shape for value in values))
    return [value if value.shape == shape else value.broadcast(shape) for value in values]
