"""What is taken from public places, and written to them: nothing is sent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from strongroom.errors import UsageError
from strongroom.mpc.shared import Shared
from strongroom.mpc.tensor.operators.registry import Number, Operand, alike, aten, found, handles, rearranged
from strongroom.mpc.tensor.shared_tensor import SharedTensor, Typed
from strongroom.mpc.transcript import shapes

# Taken


@handles(aten.index_select.default)
def _index_select(x: torch.Tensor, dim: int, index: torch.Tensor) -> torch.Tensor:
    key: Any = (*[slice(None)] * (dim % max(x.ndim, 1)), index.reshape(-1))
    return x[key]


def public_index(index: torch.Tensor, size: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """A public index into an axis, counted from its beginning."""
    numbers = index.to(torch.int64).numpy()
    if ((numbers < -size) | (numbers >= size)).any():
        raise UsageError(f"index: got one that is out of range, wanted {-size} to {size - 1}")
    return numbers % size


def picked(x: SharedTensor, key: tuple[Any, ...]) -> Typed:
    """The elements at public indices."""
    arrays = [each for each in key if isinstance(each, np.ndarray)]
    joined = np.concatenate([each.astype(np.int64).reshape(-1) for each in arrays]) if arrays else None
    return rearranged(x, lambda words: words[key], "picked", shapes(*(each.shape for each in arrays)), public=joined)


def gathered(x: SharedTensor, dim: int, index: torch.Tensor) -> Typed:
    """As `torch.gather`, at public indices."""
    axis = dim % max(x.ndim, 1)
    key = tuple(
        public_index(index, x.shape[axis]) if i == axis else each for i, each in enumerate(np.indices(index.shape))
    )
    return picked(x, key) if x.ndim else Typed(x.rows(), x._dtype, x.classes)


# Written


def _placed(x: Operand, values: Operand, key: tuple[Any, ...], *, add: bool = False) -> Typed:
    """x with other elements at public indices."""
    (whole, part), typed = alike(x, values)
    arrays = [np.asarray(each) for each in key if isinstance(each, np.ndarray)]
    joined = np.concatenate([each.astype(np.int64).reshape(-1) for each in arrays]) if arrays else None
    whole.party.enter(
        "placed", shapes(whole.shape, part.shape), int(add), public=None if joined is None else joined.view(np.uint64)
    )
    if whole.party.is_dealer:
        return typed(Shared.of_shape(whole.party, whole.shape, whole.frac))
    words = np.array(whole.words, order="C")
    if add:
        np.add.at(words, key, part.words)
    else:
        words[key] = part.words
    return typed(Shared(whole.party, words, whole.frac))


@handles(aten.index_put.default)
def _index_put(
    x: torch.Tensor, indices: Sequence[torch.Tensor | None], values: torch.Tensor, accumulate: bool = False
) -> Typed:
    if any(isinstance(each, SharedTensor) for each in indices):
        raise UsageError("index: got a secret, wanted a public one", hint="where it writes would show")
    return _placed(x, values, key_of(indices), add=accumulate)


def key_of(indices: Sequence[torch.Tensor | None]) -> tuple[Any, ...]:
    """Public indices as NumPy takes them."""
    return tuple(slice(None) if each is None else each.numpy() for each in indices)


@handles(aten.index_copy.default)
def _index_copy(x: torch.Tensor, dim: int, index: torch.Tensor, source: torch.Tensor) -> Typed:
    axis = dim % max(x.ndim, 1)
    return _placed(x, source, (*[slice(None)] * axis, _public(index).reshape(-1)))


@handles(aten.index_add.default)
def _index_add(x: torch.Tensor, dim: int, index: torch.Tensor, source: torch.Tensor, *, alpha: Number = 1) -> Typed:
    axis = dim % max(x.ndim, 1)
    scaled = source if alpha == 1 else source * alpha
    return _placed(x, scaled, (*[slice(None)] * axis, _public(index).reshape(-1)), add=True)


@handles(aten.index_fill.int_Scalar)
def _index_fill(x: torch.Tensor, dim: int, index: torch.Tensor, value: Number) -> Typed:
    axis = dim % max(x.ndim, 1)
    return _placed(x, value, (*[slice(None)] * axis, _public(index).reshape(-1)))


def _public(index: torch.Tensor) -> np.ndarray[Any, Any]:
    if isinstance(index, SharedTensor):
        raise UsageError("index: got a secret, wanted a public one", hint="where it writes would show")
    return index.numpy()


def _scattered(x: torch.Tensor, dim: int, index: torch.Tensor, source: Operand, *, add: bool) -> Typed:
    axis = dim % max(x.ndim, 1)
    if isinstance(source, torch.Tensor):
        source = source[tuple(slice(n) for n in index.shape)]
    numbers = _public(index)
    key = tuple(
        public_index(index, x.shape[axis]) if i == axis else each for i, each in enumerate(np.indices(numbers.shape))
    )
    return _placed(x, source, key, add=add)


@handles(aten.scatter.src, aten.scatter.value)
def _scatter(x: torch.Tensor, dim: int, index: torch.Tensor, source: Operand) -> Typed:
    return _scattered(x, dim, index, source, add=False)


@handles(aten.scatter_add.default)
def _scatter_add(x: torch.Tensor, dim: int, index: torch.Tensor, source: torch.Tensor) -> Typed:
    return _scattered(x, dim, index, source, add=True)


@handles(aten.slice_scatter.default)
def _slice_scatter(
    x: torch.Tensor,
    source: torch.Tensor,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> torch.Tensor:
    whole = x.clone() if isinstance(x, SharedTensor) else found(source).new_zeros(x.shape) + x
    whole[(*[slice(None)] * (dim % x.ndim), slice(start, end, step))] = source
    return whole


@handles(aten.select_scatter.default)
def _select_scatter(x: torch.Tensor, source: torch.Tensor, dim: int, index: int) -> torch.Tensor:
    whole = x.clone() if isinstance(x, SharedTensor) else found(source).new_zeros(x.shape) + x
    whole.select(dim, index).copy_(source)
    return whole
