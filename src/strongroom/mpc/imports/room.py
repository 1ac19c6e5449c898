"""How much memory a model's file may take beyond what its own bytes hold.

Who has the weights and who has not must fold alike, so what is folded is decided by shapes alone; what is refused, by
the memory that it takes. Withheld weights are zeros that take no memory, and so is what is computed of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from strongroom.errors import ModelFormatError

MAX_MADE = 1 << 30  # bytes, of what one operator makes, and of what is kept of all
_EIGHTFOLD = 64  # bytes for each element that the file holds: eight times what it takes as it is computed with
_SMALL = 1 << 12  # bytes
_ZEROS: dict[torch.dtype, torch.Tensor] = {}


class Room(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is entered, what each operator makes is sized before it is computed.

    Args:
        held: what the file holds.
    """

    def __init__(self, held: Iterable[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        held = list(held)
        self._limit = MAX_MADE + sum(_EIGHTFOLD * (_bytes(each) // each.itemsize) for each in held)
        self._taken = 0
        self._elements = MAX_MADE // 8 + sum(8 * each.numel() for each in held)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._schema.is_mutable and args and is_hollow(args[0]):
            return args[0]
        results, size = _sized(func, args, kwargs)
        if size > _SMALL and any(map(is_hollow, tree_leaves((args, kwargs)))):
            return tree_map(lambda each: zeros(each.shape, each.dtype) if torch.is_tensor(each) else each, results)
        self._require(size)
        return func(*args, **kwargs)

    def _require(self, size: int) -> None:
        if size > self._limit:
            raise ModelFormatError(
                f"model: makes {size} bytes of constants, wanted at most {self._limit} for what the file holds",
                hint="export it with what depends on its input computed when it runs",
            )

    def has_for(self, results: Iterable[Any], given: Iterable[torch.Tensor]) -> bool:
        """Whether there is room for results too, which then are counted."""
        made = [each for each in results if isinstance(each, torch.Tensor)]
        if (elements := sum(each.numel() for each in made)) > self._elements:
            return False
        self._elements -= elements
        there = {each.untyped_storage()._cdata for each in given}
        self._taken += sum(_bytes(each) for each in made if each.untyped_storage()._cdata not in there)
        self._require(self._taken)
        return True


def zeros(shape: Iterable[int], dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Zeros that take no memory: a withheld weight's, or what is computed of one, until it is a parameter."""
    return _ZEROS.setdefault(dtype, torch.zeros((), dtype=dtype)).expand(tuple(shape))


def is_hollow(value: Any) -> bool:
    """Whether a tensor is, or is a view of, zeros that take no memory."""
    zero = _ZEROS.get(value.dtype) if isinstance(value, torch.Tensor) else None
    return zero is not None and value.untyped_storage()._cdata == zero.untyped_storage()._cdata


def as_parameter(value: torch.Tensor) -> torch.Tensor:
    """A weight's value in 32 bits. Zeros that take no memory get theirs when it is written to."""
    if not is_hollow(value):
        return value.to(torch.float32)
    try:
        return torch.from_numpy(np.zeros(tuple(value.shape), np.float32))
    except MemoryError:
        raise ModelFormatError(f"model: a weight of shape {tuple(value.shape)}, for which there is no memory") from None


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().nbytes()


def _sized(func: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, int]:
    """What an operator would make, without memory, and the bytes of what is no view of its operands.

    Where the shape depends on values nothing is known: it is of the operands' size.
    """
    there: set[int] = set()

    def shape_of(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        made = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
        there.add(made.untyped_storage()._cdata)
        return made

    moved = tree_map(shape_of, kwargs)
    if any(each.name == "device" for each in func._schema.arguments):
        moved["device"] = torch.device("meta")
    try:
        results = func(*tree_map(shape_of, args), **moved)
    except (RuntimeError, NotImplementedError, ValueError, IndexError, TypeError):
        return None, 0
    made = [each for each in tree_leaves(results) if isinstance(each, torch.Tensor)]
    return results, sum(_bytes(each) for each in made if each.untyped_storage()._cdata not in there)
