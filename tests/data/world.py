"""Files of every format with the same two arrays, sealed in memory or on a disk."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path

import numpy as np

from strongroom.data import seal_arrays
from strongroom.sealed import NO_FRESHNESS, SealedFile, open_sealed
from strongroom.storage import MemoryStorage

KEY = bytes(range(32))
BLOCK = 4096
FORMATS = ["npz", "npz compressed", "safetensors", "seal_arrays", "parquet"]


def arrays(count: int = 300, row: tuple[int, ...] = (5, 17)) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(1)
    return {
        "x": generator.standard_normal((count, *row)).astype(np.float32),
        "y": generator.integers(-100, 100, count),
    }


def encode(kind: str, values: dict[str, np.ndarray]) -> bytes:
    """`values` as a file of one of `FORMATS`, or "npy" or "idx" for a single one."""
    file = io.BytesIO()
    if kind == "npy":
        np.save(file, *values.values())
    elif kind == "npz":
        np.savez(file, **values)
    elif kind == "npz compressed":
        np.savez_compressed(file, **values)
    elif kind == "idx":
        (value,) = values.values()
        codes = {"u1": 8, "i1": 9, "i2": 11, "i4": 12, "f4": 13, "f8": 14}
        file.write(struct.pack(f">BBBB{value.ndim}I", 0, 0, codes[value.dtype.str[1:]], value.ndim, *value.shape))
        file.write(value.astype(value.dtype.newbyteorder(">")).tobytes())
    elif kind == "safetensors":
        from safetensors.numpy import save

        file.write(save(values))
    elif kind == "seal_arrays":
        seal_arrays(file, values, block_size=BLOCK)
    elif kind == "parquet":
        import pyarrow as arrow
        import pyarrow.parquet as pq

        columns = {
            name: arrow.FixedShapeTensorArray.from_numpy_ndarray(value) if value.ndim > 1 else arrow.array(value)
            for name, value in values.items()
        }
        pq.write_table(arrow.table(columns), file, row_group_size=70)
    return file.getvalue()


def safetensors_with(header: object, data: bytes = b"") -> bytes:
    """A safetensors file with any header at all."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def sealed_bytes(content: bytes, block_size: int = BLOCK) -> MemoryStorage:
    storage = MemoryStorage()
    with open_sealed(storage, "x", key=KEY, anchor=NO_FRESHNESS, block_size=block_size) as file:
        file.write(content)
    return storage


def sealed(content: bytes, block_size: int = BLOCK) -> SealedFile:
    """A sealed file in memory with `content`, open for reading."""
    return open_sealed(sealed_bytes(content, block_size), "r", key=KEY, anchor=NO_FRESHNESS)


def sealed_at(path: Path, content: bytes, block_size: int = BLOCK) -> Path:
    with open_sealed(path, "x", key=KEY, anchor=NO_FRESHNESS, block_size=block_size) as file:
        file.write(content)
    return path
