"""What a request leaves in the memory of a service once it is answered: nothing.

- What is freed is overwritten by the allocator (`enclave.cleared`), ONNX Runtime's tensors among it (`stage`).
- NumPy and CPython keep some small blocks aside that they do not free: arrays are cleared before they are dropped, and
  numbers replaced.
- TLS's buffers are cleared as they are read (`channel`).
- Whoever waits for a next request holds nothing of the one before.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from strongroom.serve.tensors import Array

_SPARE_FLOATS: Final = 128  # CPython keeps the blocks of 100 (Objects/floatobject.c, PyFloat_MAXFREELIST)


def clear(arrays: Iterable[Array]) -> None:
    """Overwrite arrays that are needed no more, where they may be written to."""
    for each in arrays:
        if each.flags.writeable:
            each.fill(0)


def replace_numbers() -> None:
    """Take the blocks of numbers that CPython keeps, and give them back with others in them."""
    spare = [0.5 + place for place in range(_SPARE_FLOATS)]
    del spare
