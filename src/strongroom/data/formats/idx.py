"""idx, the format of MNIST: two zero bytes, type, number of dimensions, their sizes and the data, all big-endian."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from typing import Final

import numpy as np

from strongroom.data.formats.arrays import Stored, stored
from strongroom.data.source import Source

FIELD: Final = "data"

_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_MAX_DIMENSIONS = 32


def looks_like(head: bytes) -> bool:
    """Whether a file that starts so can be idx."""
    return len(head) >= 8 and head[:2] == b"\0\0" and head[2] in _TYPES and 1 <= head[3] <= _MAX_DIMENSIONS


def read_idx(source: Source) -> Mapping[str, Stored]:
    """The array of an idx file, named `FIELD`. Raises FormatError unless the file is as long as its header says."""
    kind, dimensions = source.bytes_at(2, 2)
    start = 4 + 4 * dimensions
    raw = source.bytes_at(4, 4 * dimensions).ljust(4 * dimensions, b"\0")
    shape = struct.unpack(f">{dimensions}I", raw)
    dtype = np.dtype(_TYPES[kind])
    if math.prod(shape) * dtype.itemsize <= source.length - start:
        # What follows the data would be another file's, so it is counted.
        return {FIELD: stored(source, FIELD, dtype, shape, start, source.length - start)}
    return {FIELD: stored(source, FIELD, dtype, shape, start, math.prod(shape) * dtype.itemsize)}
