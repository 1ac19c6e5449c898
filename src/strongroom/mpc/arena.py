"""Buffers that are used again: what the inner loops of the protocols work in.

The first touch of fresh memory costs more than the arithmetic done in it, so temporaries come from here.
"""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress
from functools import cache
from math import prod
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

_SLAB = 1 << 22  # bytes of the first slab; each later one is at least twice its predecessor
_ALIGN = 64  # bytes: a cache line

# glibc's malloc.h, and what it takes at most for the first
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_OF_ITS_OWN = 1 << 25  # bytes of an allocation from which on it is mapped, and unmapped when it is freed
_KEPT = 1 << 30  # bytes of free memory that are not given back


@cache
def keep_memory() -> None:
    """Have this process's allocator keep what is freed, where it is glibc's.

    By default it maps arrays of 128 KiB to 32 MiB anew each time, and results of operations are such arrays: half of
    a function of 100,000 elements was page faults.
    """
    if sys.platform == "linux":
        with suppress(AttributeError, OSError):  # another C library
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(_M_MMAP_THRESHOLD, _OF_ITS_OWN)
            mallopt(_M_TRIM_THRESHOLD, _KEPT)


class Arena:
    """A stack of uninitialised arrays. For one thread.

    An array is valid until the innermost `scope` around its `take` ends; memory is kept for the next one. What outlives
    an operation is allocated by NumPy instead.

    Attributes:
        size: bytes held.
    """

    def __init__(self) -> None:
        keep_memory()
        self._slabs: list[NDArray[np.uint8]] = []
        self._slab = self._used = 0
        self.size = 0

    def take(self, shape: int | tuple[int, ...], dtype: DTypeLike = np.uint64) -> NDArray[Any]:
        """An uninitialised array in C order."""
        count = shape if isinstance(shape, int) else prod(shape)
        size = count * (8 if dtype is np.uint64 else np.dtype(dtype).itemsize)
        while True:
            if self._slab == len(self._slabs):
                self._grow(size)
            slab = self._slabs[self._slab]
            if self._used + size <= len(slab):
                break
            self._slab, self._used = self._slab + 1, 0
        start = self._used
        self._used = start + size + (-size % _ALIGN)
        return np.ndarray(shape, dtype, slab, start)

    def _grow(self, size: int) -> None:
        last = len(self._slabs[-1]) if self._slabs else _SLAB // 2
        self._slabs.append(np.empty(max(size, 2 * last), np.uint8))
        self.size += len(self._slabs[-1])

    def scope(self) -> _Scope:
        """A context: what is taken inside is given back at the end."""
        return _Scope(self)


class _Scope:
    """Not a generator: the inner loops of small networks enter hundreds."""

    __slots__ = ("_arena", "_mark")

    def __init__(self, arena: Arena) -> None:
        self._arena = arena

    def __enter__(self) -> Arena:
        arena = self._arena
        self._mark = arena._slab, arena._used
        return arena

    def __exit__(self, *error: object) -> None:
        self._arena._slab, self._arena._used = self._mark
