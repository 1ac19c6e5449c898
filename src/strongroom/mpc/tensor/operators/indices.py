"""Looking up: at public indices nothing is sent, at a secret one it is a product with a row that is 1 at the index."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from strongroom.errors import UsageError
from strongroom.mpc.protocols.linear import multiply
from strongroom.mpc.shared import Shared
from strongroom.mpc.tensor.operators.arithmetic import mm
from strongroom.mpc.tensor.operators.places import gathered, key_of, picked
from strongroom.mpc.tensor.operators.registry import aten, handles, is_bool, plain
from strongroom.mpc.tensor.shared_tensor import DTYPES, SharedTensor, Typed

_COUNTED = "share it with classes=, or take it from argmax; what was computed with is an index no more"


def _rows(index: SharedTensor, size: int) -> torch.Tensor:
    """A secret index into an axis of `size`, as rows of 0 and 1: a tensor with one more axis."""
    if is_bool(index):
        raise UsageError(
            "index: got a secret mask, wanted a public one", hint="how many it holds for would show; use torch.where"
        )
    if index.classes is None:
        raise UsageError(f"index: got a secret {index.dtype} that is a number, wanted an index", hint=_COUNTED)
    if index.classes > size:
        raise UsageError(f"index: got one below {index.classes}, wanted one below {size}")
    return one_hot(index, size)


def one_hot(index: SharedTensor, size: int) -> torch.Tensor:
    """Rows of `size` that are 1 at the index; numbers of int64 without fractional bits."""
    rows = index.as_rows()
    return rows if rows.shape[-1] == size else torch.nn.functional.pad(rows, (0, size - rows.shape[-1]))


@handles(aten.one_hot.default)
def _one_hot(index: SharedTensor, num_classes: int = -1) -> torch.Tensor:
    if index.classes is None:
        raise UsageError(f"one_hot: got a secret {index.dtype} that is a number, wanted an index", hint=_COUNTED)
    size = index.classes if num_classes == -1 else num_classes
    if size < index.classes:
        raise UsageError(f"one_hot: got an index below {index.classes} for {size} classes, wanted as many")
    return one_hot(index, size)


@handles(aten.embedding.default)
def _embedding(weight: torch.Tensor, index: torch.Tensor, *more: object) -> Shared | Typed:
    if isinstance(index, SharedTensor):
        return _looked_up(weight, index)
    assert isinstance(weight, SharedTensor)  # noqa: S101  # one operand is
    return picked(weight, (index.numpy(),))


def _looked_up(table: torch.Tensor, index: SharedTensor) -> Shared:
    """Rows of a table of two axes, of the index's shape and the table's second."""
    rows = _rows(index, table.shape[0]).reshape(-1, table.shape[0])
    return mm(rows, table).reshape(*index.shape, table.shape[1])


@handles(aten.index.Tensor, aten._unsafe_index.Tensor)
def _index(x: torch.Tensor, indices: Sequence[torch.Tensor | None]) -> Typed | torch.Tensor:
    secrets = [axis for axis, each in enumerate(indices) if isinstance(each, SharedTensor)]
    if not secrets:
        assert isinstance(x, SharedTensor)  # noqa: S101  # one operand is
        return picked(x, key_of(indices))
    axis = secrets[0]
    index = indices[axis]
    assert isinstance(index, SharedTensor)  # noqa: S101  # found so
    if is_bool(index):
        _rows(index, 0)
    if sum(each is not None for each in indices) > 1:
        raise UsageError("index: got a secret among several, wanted it alone", hint="index one axis at a time")
    table = x.movedim(axis, 0)
    rest = table.shape[1:]
    found = _table(table.reshape(table.shape[0], -1), index).reshape(*index.shape, *rest)
    back = [*range(index.ndim, index.ndim + axis), *range(index.ndim), *range(index.ndim + axis, found.ndim)]
    return found.permute(back)


def _table(table: torch.Tensor, index: SharedTensor) -> torch.Tensor:
    whole = not table.is_floating_point()
    found: torch.Tensor = torch.nn.functional.embedding(index, table.float() if whole else table)
    return found


@handles(aten.gather.default)
def _gather(x: torch.Tensor, dim: int, index: torch.Tensor, *, sparse_grad: bool = False) -> Shared | Typed:
    if not isinstance(index, SharedTensor):
        assert isinstance(x, SharedTensor)  # noqa: S101  # one operand is
        return gathered(x, dim, index)
    axis = dim % x.ndim
    part = x[tuple(slice(None) if i == axis else slice(n) for i, n in enumerate(index.shape))]
    rows = _rows(index, x.shape[axis])  # index's shape, then the axis
    values = part.movedim(axis, -1).unsqueeze(axis)  # the axis last, and one in its place
    if isinstance(values, SharedTensor):
        assert isinstance(rows, SharedTensor)  # noqa: S101  # the index is
        value = values.read() if values.dtype in DTYPES else values.read(raw=True)
        return multiply(rows.read(raw=True), value).sum()
    assert isinstance(rows, SharedTensor)  # noqa: S101  # the index is
    return rows.read(raw=True).times_public(plain(values), frac=None if values.is_floating_point() else 0).sum()
