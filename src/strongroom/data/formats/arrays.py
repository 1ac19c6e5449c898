"""What a format's header gives: named arrays, and where their bytes are."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from strongroom.data.normalise import Normalise
from strongroom.data.source import Source
from strongroom.errors import FormatError

MAX_ARRAYS = 4096
MAX_DIMENSIONS = 32
_KINDS = "biufcSUmM"


@dataclass(frozen=True)
class Array:
    """One named array; its records are the rows along its first dimension.

    Args:
        dtype: as it lies in the file, its byte order too.
        shape: of all of it.
        bfloat16: `dtype` is uint16, and each value the upper half of a float32.
        normalise: what is made of the values when they are read; None leaves them as they are.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    bfloat16: bool = field(default=False, kw_only=True)
    normalise: Normalise | None = field(default=None, kw_only=True)

    @property
    def count(self) -> int:
        return self.shape[0]

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        return self.count * self.row_bytes


@dataclass(frozen=True)
class Stored(Array):
    """An array whose bytes lie in the file as they are, in C order, from `offset` on."""

    offset: int = field(kw_only=True)


@dataclass(frozen=True)
class Decoded(Array):
    """An array that must be decoded in parts.

    Args:
        edges: row numbers at which the parts begin, and the count; sorted.
        decode: gives one part, by its number, as an array of `dtype`.
    """

    edges: tuple[int, ...] = field(kw_only=True)
    decode: Callable[[int], npt.NDArray[Any]] = field(kw_only=True)


def check_dtype(where: str, dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Raises FormatError unless it is of numbers, booleans, times or texts of fixed size."""
    if dtype.hasobject:
        raise FormatError(
            f"{where}: an object array, wanted numbers", hint="it holds pickled Python objects, which are never loaded"
        )
    if dtype.kind not in _KINDS or dtype.itemsize == 0:
        raise FormatError(f"{where}: dtype {dtype}, wanted numbers", hint="save one array for each field")
    return dtype


def check_shape(where: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Raises FormatError unless it has at most 32 dimensions, none of them negative or huge."""
    if len(shape) > MAX_DIMENSIONS:
        raise FormatError(f"{where}: {len(shape)} dimensions, wanted at most {MAX_DIMENSIONS}")
    if any(not isinstance(n, int) or isinstance(n, bool) or not 0 <= n < 1 << 60 for n in shape):
        raise FormatError(f"{where}: shape {str(shape)[:200]}, wanted sizes from 0 to 2^60")
    return shape


def stored(
    source: Source,
    name: str,
    dtype: np.dtype[Any],
    shape: tuple[int, ...],
    offset: int,
    size: int,
    *,
    bfloat16: bool = False,
    normalise: Normalise | None = None,
) -> Stored:
    """An array of which the header says that its bytes are the `size` from `offset` on.

    Raises:
        FormatError: dtype and shape want another number, or the file ends before.
    """
    where = f"{source.name}: array {name!r}"
    check_dtype(where, dtype)
    wanted = math.prod(check_shape(where, shape)) * dtype.itemsize
    if size != wanted:
        raise FormatError(f"{where}: {size} bytes, wanted {wanted} for shape {shape} of {dtype}")
    if offset < 0 or offset + size > source.length:
        raise FormatError(
            f"{where}: ends at byte {offset + size}, wanted at most {source.length}",
            hint="the file was cut; make it anew",
        )
    return Stored(name, dtype, shape, offset=offset, bfloat16=bfloat16, normalise=normalise)
