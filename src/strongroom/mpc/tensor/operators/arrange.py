"""Views, copies and rearrangements: no protocol is needed where the places are public."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from strongroom.errors import UsageError
from strongroom.mpc.shared import Shared, concatenate
from strongroom.mpc.tensor.operators.registry import (
    Number,
    Operand,
    alike,
    aten,
    bounded,
    handles,
    public_rows,
    rearranged,
)
from strongroom.mpc.tensor.shared_tensor import DTYPES, VIEWS, WHOLE, SharedTensor, Typed

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

# Copies


def _copies() -> None:
    """A copy of each view, where torch has an operator for that."""
    for view in sorted(VIEWS, key=str):
        packet, overload = str(view).removeprefix("aten.").split(".")
        copies = getattr(getattr(aten, f"{packet}_copy", None), overload, None)
        if copies is not None:
            handles(copies)(lambda *args, view=view, **more: _copy_of(view(*args, **more)))


def _copy_of(result: Any) -> Any:
    return tuple(each.clone() for each in result) if isinstance(result, tuple | list) else result.clone()


_copies()


@handles(aten.clone.default, aten._to_copy.default)
def _clone(
    x: SharedTensor, *, memory_format: Any = None, dtype: Any = None, device: Any = None, **more: Any
) -> Shared | Typed | torch.Tensor:
    wanted, has = dtype or x._dtype, x._dtype
    if wanted == torch.int32 and has in WHOLE:
        wanted = torch.int64  # the one kind of whole numbers that are secret
    if device is not None and torch.device(device) != x.device:
        if torch.device(device).type == "meta":
            raise UsageError("to: got the device meta, which keeps no values")
        moved = x.on(torch.device(device))
        return moved if wanted == has else aten._to_copy(moved, dtype=dtype)
    if wanted != has and (has in DTYPES or wanted not in (*DTYPES, *WHOLE)):
        raise UsageError(
            f"to: got {wanted}, wanted {has}",
            hint="a secret is a fixed-point number in the ring, whatever dtype a revealed value has",
        )
    if wanted == has:
        return Typed(x.rows(), has, x.classes)
    if wanted == torch.bool:
        return x.ne(0)
    return Typed(x.read(raw=wanted not in DTYPES), wanted)


@handles(torch.ops.prims.copy_strided.default)
def _laid_out(x: SharedTensor, strides: Sequence[int]) -> Typed:
    """What torch's decompositions end with; a result lies here as it comes."""
    return Typed(x.rows(), x._dtype, x.classes)


@handles(aten.copy_.default)
def _copied(x: SharedTensor, y: Operand, non_blocking: bool = False) -> Typed:
    if isinstance(y, SharedTensor):
        return Typed(y.rows(), y._dtype, y.classes)
    if x.classes is not None:
        return Typed(public_rows(y, x.classes, x), torch.int64, x.classes)
    party = x._storage.world.party
    frac = party.settings.frac if x._dtype in DTYPES else 0
    return Typed(Shared.public(party, bounded(y, party.settings), frac), x._dtype)


@handles(aten.fill_.Scalar, aten.fill_.Tensor)
def _filled(x: SharedTensor, value: Operand) -> Typed:
    return _copied(x, value)


@handles(aten.zero_.default)
def _zeroed(x: SharedTensor) -> Typed:
    return _copied(x, 0)


def _full(x: SharedTensor, size: Sequence[int], value: Number, dtype: Any) -> Typed:
    wanted = dtype or x._dtype
    if wanted not in (*DTYPES, *WHOLE):
        raise UsageError(f"dtype: got {wanted}, wanted one of {', '.join(map(str, (*DTYPES, *WHOLE)))}")
    party = x._storage.world.party
    frac = party.settings.frac if wanted in DTYPES else 0
    return Typed(Shared.public(party, value, frac).broadcast(tuple(size)), wanted)


@handles(aten.zeros_like.default, aten.empty_like.default)
def _zeros_like(x: SharedTensor, *, dtype: Any = None, **more: Any) -> Typed:
    return _full(x, x.place.size, 0, dtype)


@handles(aten.ones_like.default)
def _ones_like(x: SharedTensor, *, dtype: Any = None, **more: Any) -> Typed:
    return _full(x, x.place.size, 1, dtype)


@handles(aten.full_like.default)
def _full_like(x: SharedTensor, value: Number, *, dtype: Any = None, **more: Any) -> Typed:
    return _full(x, x.place.size, value, dtype)


@handles(aten.new_zeros.default, aten.new_empty.default)
def _new_zeros(x: SharedTensor, size: Sequence[int], *, dtype: Any = None, **more: Any) -> Typed:
    return _full(x, size, 0, dtype)


@handles(aten.new_ones.default)
def _new_ones(x: SharedTensor, size: Sequence[int], *, dtype: Any = None, **more: Any) -> Typed:
    return _full(x, size, 1, dtype)


@handles(aten.new_full.default)
def _new_full(x: SharedTensor, size: Sequence[int], value: Number, *, dtype: Any = None, **more: Any) -> Typed:
    return _full(x, size, value, dtype)


# Together


@handles(aten.cat.default)
def _cat(tensors: Sequence[torch.Tensor], dim: int = 0) -> Typed:
    some = [each for each in tensors if each.shape != (0,)]  # which torch allows beside any shape
    values, typed = alike(*some)
    return typed(concatenate(values, dim % some[0].ndim))


@handles(aten.stack.default)
def _stack(tensors: Sequence[torch.Tensor], dim: int = 0) -> Typed:
    axis = dim % (tensors[0].ndim + 1)
    return _cat([each.unsqueeze(axis) for each in tensors], axis)


@handles(aten.repeat.default)
def _repeat(x: SharedTensor, times: Sequence[int]) -> Typed:
    tail = () if x.classes is None else (1,)
    return rearranged(x, lambda words: np.tile(words, (*times, *tail)), "repeat", tuple(times))


# Moved


@handles(aten.flip.default)
def _flip(x: SharedTensor, dims: Sequence[int]) -> Typed:
    axes = tuple(axis % x.ndim for axis in dims)
    return rearranged(x, lambda words: np.flip(words, axes), "flip", axes)


@handles(aten.roll.default)
def _roll(x: SharedTensor, shifts: Sequence[int], dims: Sequence[int] = ()) -> Typed | torch.Tensor:
    if not dims:
        return x.reshape(-1).roll(list(shifts), [0]).reshape(x.shape)
    axes = tuple(axis % x.ndim for axis in dims)
    return rearranged(x, lambda words: np.roll(words, tuple(shifts), axes), "roll", tuple(shifts), axes)


@handles(aten.tril.default)
def _tril(x: torch.Tensor, diagonal: int = 0) -> torch.Tensor:
    return torch.where(torch.ones(x.shape[-2:], dtype=torch.bool).tril(diagonal), x, 0)


@handles(aten.triu.default)
def _triu(x: torch.Tensor, diagonal: int = 0) -> torch.Tensor:
    return torch.where(torch.ones(x.shape[-2:], dtype=torch.bool).triu(diagonal), x, 0)


# Borders


@handles(aten.constant_pad_nd.default)
def _pad(x: SharedTensor, pad: Sequence[int], value: Number = 0) -> Typed | torch.Tensor:
    if min(pad, default=0) >= 0:
        return Typed(padded(x.rows(), pad, value, classes=x.classes), x._dtype, x.classes)
    for i in range(len(pad) // 2):  # what is negative cuts off
        axis, (before, after) = x.ndim - 1 - i, pad[2 * i : 2 * i + 2]
        start, stop = max(-before, 0), x.shape[axis] - max(-after, 0)
        x = x.narrow(axis, start, stop - start)  # type: ignore[assignment]
    return torch.nn.functional.pad(x, [max(each, 0) for each in pad], value=value)


def padded(x: Shared, pad: Sequence[int], value: Number = 0, *, classes: int | None = None) -> Shared:
    """With a border of a public value: before and after, from the last axis on; of an index, the last but one."""
    low = -(2.0**x.party.settings.bound)
    value = low / 4 if value <= low else value
    inside = np.asarray(value, np.float64) if classes is None else (np.arange(classes) == value).astype(np.float64)
    border = Shared.public(x.party, inside, x.frac)
    for i in range(len(pad) // 2):
        axis = len(x.shape) - len(border.shape) - 1 - i
        before, after = (
            border.broadcast((*x.shape[:axis], size, *x.shape[axis + 1 :])) for size in pad[2 * i : 2 * i + 2]
        )
        x = concatenate([before, x, after], axis)
    return x


def _mirrored(mode: str, axes: int) -> None:
    def pad(x: SharedTensor, pad: Sequence[int]) -> Typed:
        widths = [(0, 0)] * (x.ndim - axes) + [(pad[2 * i], pad[2 * i + 1]) for i in reversed(range(axes))]
        if x.classes is not None:
            widths.append((0, 0))
        return rearranged(x, lambda words: np.pad(words, widths, mode), f"pad {mode}", tuple(widths))  # type: ignore[call-overload]

    name = "reflection" if mode == "reflect" else "replication"
    handles(getattr(aten, f"{name}_pad{axes}d").default)(pad)


for _mode in ("reflect", "edge"):
    for _count in (1, 2, 3):
        _mirrored(_mode, _count)
