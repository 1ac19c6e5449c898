"""Memory for batches, used again once nobody holds the batch that lay in it.

A large array that is freed goes back to the system, and the next one faults in every page anew: for batches of 4 MiB
and more that costs as much as copying the data.
"""

from __future__ import annotations

import os
import sys
import threading
from typing import Any

import numpy as np
import numpy.typing as npt

_SMALLEST = 256 << 10  # below, the allocator keeps freed memory itself
_KEPT = 3  # buffers: the batch in use, the one before it, the one being filled


class Buffers:
    """Gives out arrays of bytes; each is the caller's alone for as long as anything refers to it.

    An array, a view of it and a tensor made from either hold a reference to the buffer, so the count of references
    says whether it is free.
    """

    def __init__(self) -> None:
        self._buffers: list[npt.NDArray[np.uint8]] = []
        self._lock = threading.Lock()
        self._process = os.getpid()

    def take(self, size: int) -> npt.NDArray[np.uint8]:
        """`size` bytes of any content."""
        if size < _SMALLEST:
            return np.empty(size, np.uint8)
        if self._process != os.getpid():
            self.__init__()  # type: ignore[misc]  # the lock may have been held by a thread that is not here
        with self._lock:
            for at in range(len(self._buffers)):
                if self._buffers[at].nbytes >= size and _references(self._buffers, at) == _UNUSED:
                    return self._buffers[at][:size]
            if len(self._buffers) >= _KEPT:
                free = [at for at in range(len(self._buffers)) if _references(self._buffers, at) == _UNUSED]
                del self._buffers[free[0] if free else 0]
            self._buffers.append(np.empty(size, np.uint8))
            return self._buffers[-1][:]


def _references(items: list[Any], at: int) -> int:
    return sys.getrefcount(items[at])


# What `_references` says of an item that only its list holds; the interpreter's version decides.
_UNUSED = _references([np.empty(0, np.uint8)], 0)
