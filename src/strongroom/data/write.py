"""Arrays into a sealed file, as safetensors."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from strongroom.data.formats.arrays import check_dtype
from strongroom.data.formats.tensors import DTYPES, FILL, MAX_HEADER
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

    Returns:
        The root of a new file, whose record a `PinnedAnchor` makes an anchor of; None for an open file.

    Raises:
        UsageError: no arrays, of different lengths, or of a type that safetensors lacks.
        FileExistsError: rather than replace a file.
    """
    views = {name: _checked(name, np.asanyarray(array)) for name, array in arrays.items()}
    if not views:
        raise UsageError("arrays: none, wanted at least one")
    if len({len(view) for view in views.values()}) > 1:
        lengths = ", ".join(f"{name} {len(view)}" for name, view in views.items())
        raise UsageError(f"arrays: lengths {lengths}, wanted one length: a record is a row of each")
    if not isinstance(file, (str, os.PathLike)):
        _write(file, views, int(getattr(file, "block_size", block_size)))
        return None
    if key is None or anchor is None:
        raise UsageError(f"{os.fspath(file)}: a path without key or anchor, wanted both")
    with open_sealed(file, "x", key=key, anchor=anchor, block_size=block_size) as sealed:
        _write(sealed, views, block_size)  # type: ignore[arg-type]
        return sealed.commit()


def _checked(name: str, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if not name or name.startswith("_"):
        raise UsageError(f"array name: {name!r}, wanted one that does not begin with _")
    if array.ndim == 0:
        raise UsageError(f"array {name!r}: a single value, wanted rows")
    check_dtype(f"array {name!r}", array.dtype)
    if array.dtype.newbyteorder("<") not in _NAMES:
        raise UsageError(
            f"array {name!r}: dtype {array.dtype}, wanted one of {', '.join(map(str, _NAMES))}",
            hint="encode texts as numbers, times as int64",
        )
    return array


def _write(file: BinaryIO, arrays: Mapping[str, npt.NDArray[Any]], block: int) -> None:
    header: dict[str, Any] = {}
    position = 0
    for number, (name, array) in enumerate(arrays.items()):
        if gap := -position % block:
            header[f"{FILL}{number}"] = {"dtype": "U8", "shape": [gap], "data_offsets": [position, position + gap]}
            position += gap
        header[name] = {
            "dtype": _NAMES[array.dtype.newbyteorder("<")],
            "shape": list(array.shape),
            "data_offsets": [position, position + array.nbytes],
        }
        position += array.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(len(text) + 8) % block)
    if len(text) > MAX_HEADER:
        raise UsageError(f"arrays: a header of {len(text)} bytes, wanted at most {MAX_HEADER}", hint="fewer arrays")
    file.write(struct.pack("<Q", len(text)) + text)
    position = 0
    for array in arrays.values():
        file.write(bytes(-position % block))
        position += -position % block + array.nbytes
        rows = max(1, _STEP // max(1, array.nbytes // max(1, len(array))))
        for first in range(0, len(array), rows):
            piece = np.ascontiguousarray(array[first : first + rows], array.dtype.newbyteorder("<"))
            if piece.nbytes:
                file.write(piece.reshape(-1).view(np.uint8).data)
