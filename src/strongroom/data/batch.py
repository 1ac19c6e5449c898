"""What the data set gives for several records, and how PyTorch gets it without a copy of each."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from strongroom.data.bfloat16 import is_bfloat16

_TENSOR_KINDS = "biufc"


class Batch(Sequence[Any]):
    """Records that were read together: a sequence of samples, and `arrays`, one for each field, of all of them.

    A sample is a tuple of values in the order of the fields; of a single field, its value. Samples are views of
    `arrays`.
    """

    __slots__ = ("arrays", "single")

    def __init__(self, arrays: tuple[npt.NDArray[Any], ...], *, single: bool) -> None:
        self.arrays = arrays
        self.single = single

    def __len__(self) -> int:
        return len(self.arrays[0])

    @overload
    def __getitem__(self, at: int) -> Any: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Any]: ...
    def __getitem__(self, at: int | slice) -> Any:
        if isinstance(at, slice):
            return Batch(tuple(array[at] for array in self.arrays), single=self.single)
        return self.arrays[0][at] if self.single else tuple(array[at] for array in self.arrays)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.arrays[0]) if self.single else zip(*self.arrays, strict=True)

    def unwrap(self) -> Any:
        """The arrays as a tuple, or the one of a single field."""
        return self.arrays[0] if self.single else self.arrays


def collate(batch: Sequence[Any]) -> Any:
    """The `collate_fn` for a `DataLoader`: a tuple of tensors in the order of the fields, or one of a single field.

    What the data set read together becomes tensors as it is, without a copy; what a transform has changed goes the way
    of PyTorch's own `default_collate`. Texts and times stay NumPy arrays. Without PyTorch in the process all are NumPy
    arrays.
    """
    torch = sys.modules.get("torch")
    if isinstance(batch, Batch):
        if torch is None:
            return batch.unwrap()
        tensors = tuple(_tensor(torch, array) for array in batch.arrays)
        return tensors[0] if batch.single else tensors
    if torch is None:
        return stack(batch)
    return torch.utils.data.default_collate(batch)


def _tensor(torch: Any, array: npt.NDArray[Any]) -> Any:
    if is_bfloat16(array.dtype):  # PyTorch's type of that name has no counterpart in NumPy that it knows
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array) if array.dtype.kind in _TENSOR_KINDS else array


def stack(samples: Sequence[Any]) -> Any:
    """Samples as arrays: one for each part of a tuple, or one."""
    if isinstance(samples[0], tuple):
        return tuple(np.stack([np.asarray(value) for value in values]) for values in zip(*samples, strict=True))
    return np.stack([np.asarray(sample) for sample in samples])
