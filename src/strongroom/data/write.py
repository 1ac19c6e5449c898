"""Arrays into a sealed file, as safetensors."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from strongroom.data.bfloat16 import is_bfloat16, narrow
from strongroom.data.formats.arrays import check_dtype
from strongroom.data.formats.tensors import DTYPES, FILL, MAX_HEADER, METADATA, NORMALISE
from strongroom.data.normalise import Normalise
from strongroom.errors import UsageError
from strongroom.sealed import Anchor, NoFreshness, Root, open_sealed

BLOCK_SIZE = 64 << 10

_NAMES = {np.dtype(text): name for name, text in DTYPES.items() if name != "BF16"}
_STEP = 8 << 20


def seal_arrays(
    file: str | os.PathLike[str] | BinaryIO,
    arrays: Mapping[str, npt.ArrayLike],
    *,
    key: bytes | None = None,
    anchor: Anchor | NoFreshness | None = None,
    block_size: int = BLOCK_SIZE,
    normalise: Mapping[str, Normalise] | None = None,
    bfloat16: Collection[str] = (),
) -> Root | None:
    """Write arrays of one length as safetensors; each begins at a block of the sealed file.

    A record that is as long as a block, or fits a whole number of times into one, then never lies in more blocks than
    it must. Other programs read the content as what it is (safetensors wants no gaps between tensors, so what fills a
    block up is a tensor too, of bytes, with a name that begins with ``_``).

    Args:
        file: the path of a new sealed file, or an open binary file to write to, which stays the caller's.
        arrays: by name; memory-mapped ones are read a piece at a time.
        key, anchor: of the new file.
        block_size: what is decrypted together. The default, 64 KiB, is right for records of 16 KiB and more, for data
            that fit into the cache, and for windowed orders. 4 KiB halves the cost of a small record that is read at
            random beyond the cache; sealing, reading in order and filling the cache then take three to six times as
            long, and the file is 1.2 % larger than its content, not 0.1 %.
        normalise: by name, what a data set makes of an array's values when it reads them. They stay as they are in the
            file, which says so beside them: bytes take a quarter of the memory of the floats that they become.
        bfloat16: the names of arrays of floats to store as bfloat16, the nearest one; a data set reads float32 again.
            Arrays of the type of that name in ml_dtypes are so stored in any case.

    Returns:
        The root of a new file, whose record a `PinnedAnchor` makes an anchor of; None for an open file.

    Raises:
        UsageError: no arrays, of different lengths, of a type that safetensors lacks, or one that cannot be normalised
            or stored as asked for.
        FileExistsError: rather than replace a file.
    """
    normalise = normalise or {}
    columns = _columns(arrays, normalise, bfloat16)
    if not isinstance(file, (str, os.PathLike)):
        _write(file, columns, normalise, int(getattr(file, "block_size", block_size)))
        return None
    if key is None or anchor is None:
        raise UsageError(f"{os.fspath(file)}: a path without key or anchor, wanted both")
    with open_sealed(file, "x", key=key, anchor=anchor, block_size=block_size) as sealed:
        _write(sealed, columns, normalise, block_size)  # type: ignore[arg-type]
        return sealed.commit()


@dataclass(frozen=True)
class _Column:
    """An array and the type that it is stored as."""

    array: npt.NDArray[Any]
    kind: str  # of safetensors
    dtype: np.dtype[Any]
    narrowed: bool = False  # to bfloat16

    @property
    def nbytes(self) -> int:
        return self.array.size * self.dtype.itemsize

    def piece(self, first: int, stop: int) -> npt.NDArray[np.uint8]:
        """The bytes of some of its rows."""
        rows = self.array[first:stop]
        stored = np.ascontiguousarray(narrow(rows) if self.narrowed else rows, self.dtype)
        return stored.reshape(-1).view(np.uint8)


def _columns(
    arrays: Mapping[str, npt.ArrayLike], normalise: Mapping[str, Normalise], bfloat16: Collection[str]
) -> dict[str, _Column]:
    if not arrays:
        raise UsageError("arrays: none, wanted at least one")
    if isinstance(bfloat16, str):
        raise UsageError(f"bfloat16: the string {bfloat16!r}, wanted a list of names")
    for what, names in (("normalise", normalise), ("bfloat16", bfloat16)):
        unknown = [name for name in names if name not in arrays]
        if unknown:
            raise UsageError(f"{what}: {unknown[0]!r}, wanted some of {', '.join(arrays)}")
    columns = {name: _column(name, np.asanyarray(array), name in bfloat16) for name, array in arrays.items()}
    if len({len(column.array) for column in columns.values()}) > 1:
        lengths = ", ".join(f"{name} {len(column.array)}" for name, column in columns.items())
        raise UsageError(f"arrays: lengths {lengths}, wanted one length: a record is a row of each")
    for name, how in normalise.items():
        column = columns[name]
        how.check(f"array {name!r}", column.array.shape, column.dtype, bfloat16=column.kind == "BF16")
    return columns


def _column(name: str, array: npt.NDArray[Any], narrowed: bool) -> _Column:
    if not name or name.startswith("_"):
        raise UsageError(f"array name: {name!r}, wanted one that does not begin with _")
    if array.ndim == 0:
        raise UsageError(f"array {name!r}: a single value, wanted rows")
    if is_bfloat16(array.dtype):
        return _Column(array.view(np.uint16), "BF16", np.dtype("<u2"))
    check_dtype(f"array {name!r}", array.dtype)
    if narrowed:
        if array.dtype.kind != "f":
            raise UsageError(f"array {name!r}: bfloat16: of {array.dtype}, wanted floats")
        return _Column(array, "BF16", np.dtype("<u2"), narrowed=True)
    stored = array.dtype.newbyteorder("<")
    if stored not in _NAMES:
        raise UsageError(
            f"array {name!r}: dtype {array.dtype}, wanted one of {', '.join(map(str, _NAMES))}",
            hint="encode texts as numbers, times as int64",
        )
    return _Column(array, _NAMES[stored], stored)


def _write(file: BinaryIO, columns: Mapping[str, _Column], normalise: Mapping[str, Normalise], block: int) -> None:
    header: dict[str, Any] = {}
    if normalise:
        said = {name: how.to_wire() for name, how in normalise.items()}
        header[METADATA] = {NORMALISE: json.dumps(said, separators=(",", ":"), ensure_ascii=False)}
    position = 0
    for number, (name, column) in enumerate(columns.items()):
        if gap := -position % block:
            header[f"{FILL}{number}"] = {"dtype": "U8", "shape": [gap], "data_offsets": [position, position + gap]}
            position += gap
        header[name] = {
            "dtype": column.kind,
            "shape": list(column.array.shape),
            "data_offsets": [position, position + column.nbytes],
        }
        position += column.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(len(text) + 8) % block)
    if len(text) > MAX_HEADER:
        raise UsageError(f"arrays: a header of {len(text)} bytes, wanted at most {MAX_HEADER}", hint="fewer arrays")
    file.write(struct.pack("<Q", len(text)) + text)
    position = 0
    for column in columns.values():
        file.write(bytes(-position % block))
        position += -position % block + column.nbytes
        count = len(column.array)
        rows = max(1, _STEP // max(1, column.nbytes // max(1, count)))
        for first in range(0, count, rows):
            piece = column.piece(first, first + rows)
            if piece.nbytes:
                file.write(piece.data)
