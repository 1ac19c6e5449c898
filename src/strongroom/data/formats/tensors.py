"""safetensors: a length (u64), that much JSON, and the tensors (https://github.com/huggingface/safetensors)."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from strongroom.data.formats.arrays import MAX_ARRAYS, Stored, stored
from strongroom.data.source import Source
from strongroom.errors import FormatError

MAX_HEADER: Final = 100_000_000  # as the format's own implementation

FILL: Final = "_fill"  # tensors of this name and a number lie between others, and mean nothing

DTYPES: Final = {
    "BOOL": "|b1",
    "U8": "|u1",
    "I8": "|i1",
    "U16": "<u2",
    "I16": "<i2",
    "U32": "<u4",
    "I32": "<i4",
    "U64": "<u8",
    "I64": "<i8",
    "F16": "<f2",
    "F32": "<f4",
    "F64": "<f8",
    "C64": "<c8",
    "BF16": "<u2",
}


def looks_like(head: bytes) -> bool:
    """Whether a file that starts so can be safetensors."""
    return len(head) > 8 and head[8:9] == b"{" and 2 <= struct.unpack_from("<Q", head)[0] <= 1 << 40


def read_safetensors(source: Source) -> Mapping[str, Stored]:
    """The tensors of a safetensors file, in the order of its header; BF16 is to be widened to float32.

    Raises:
        FormatError: the header is malformed.
    """
    (size,) = struct.unpack("<Q", source.bytes_at(0, 8))
    if size > min(MAX_HEADER, source.length - 8):
        raise FormatError(
            f"{source.name}: safetensors header of {size} bytes, wanted at most {min(MAX_HEADER, source.length - 8)}"
        )
    try:
        header = json.loads(source.bytes_at(8, size), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{source.name}: safetensors header: not JSON: {str(error)[:100]}") from None
    if not isinstance(header, dict):
        raise FormatError(f"{source.name}: safetensors header: {type(header).__name__}, wanted an object")
    header.pop("__metadata__", None)
    if len(header) > MAX_ARRAYS:
        raise FormatError(f"{source.name}: {len(header)} tensors, wanted at most {MAX_ARRAYS}")
    return {name: _tensor(source, name, entry, 8 + size) for name, entry in header.items() if not _is_fill(name)}


def _tensor(source: Source, name: str, entry: Any, base: int) -> Stored:
    where = f"{source.name}: array {name[:100]!r}"
    try:
        kind, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    except (TypeError, KeyError, ValueError):
        raise FormatError(f"{where}: {str(entry)[:100]}, wanted dtype, shape and two data_offsets") from None
    if not isinstance(kind, str) or kind not in DTYPES:
        raise FormatError(f"{where}: dtype {str(kind)[:20]}, wanted one of {', '.join(DTYPES)}")
    if not isinstance(shape, list) or type(begin) is not int or type(end) is not int or not 0 <= begin <= end:
        raise FormatError(f"{where}: {str(entry)[:100]}, wanted a list of sizes and rising data_offsets")
    return stored(
        source, name, np.dtype(DTYPES[kind]), tuple(shape), base + begin, end - begin, bfloat16=kind == "BF16"
    )


def _is_fill(name: str) -> bool:
    return name.startswith(FILL) and name.removeprefix(FILL).isdecimal()


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name is given twice")
    return found
