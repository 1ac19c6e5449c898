"""safetensors: a length (u64), that much JSON, and the tensors (https://github.com/huggingface/safetensors)."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from strongroom.data.formats.arrays import MAX_ARRAYS, Stored, stored
from strongroom.data.normalise import Normalise
from strongroom.data.source import Source
from strongroom.errors import FormatError, UsageError

MAX_HEADER: Final = 100_000_000  # as the format's own implementation

METADATA: Final = "__metadata__"  # texts by name, as the format has them
NORMALISE: Final = "strongroom.normalise"  # in it: JSON, {tensor: {"mean": ..., "std": ...}}
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

    What its metadata say of normalising (docs/spec/dataset.md) goes with them; all other metadata mean nothing here.

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
    metadata = header.pop(METADATA, None)
    if len(header) > MAX_ARRAYS:
        raise FormatError(f"{source.name}: {len(header)} tensors, wanted at most {MAX_ARRAYS}")
    normalise = _normalise(source, metadata, header)
    return {
        name: _tensor(source, name, entry, 8 + size, normalise.get(name))
        for name, entry in header.items()
        if not _is_fill(name)
    }


def _normalise(source: Source, metadata: Any, header: Mapping[str, Any]) -> Mapping[str, Normalise]:
    text = metadata.get(NORMALISE) if isinstance(metadata, dict) else None
    if text is None:
        return {}
    where = f"{source.name}: metadata {NORMALISE}"
    try:
        found = json.loads(text, object_pairs_hook=_unique)
    except (TypeError, ValueError, RecursionError) as error:
        raise FormatError(f"{where}: not JSON: {str(error)[:100]}") from None
    if not isinstance(found, dict):
        raise FormatError(f"{where}: {type(found).__name__}, wanted an object")
    for name in found:
        if name not in header or _is_fill(name):
            raise FormatError(f"{where}: names {name[:100]!r}, wanted tensors of the file")
    return {name: Normalise.from_wire(_where(source, name), value) for name, value in found.items()}


def _where(source: Source, name: str) -> str:
    return f"{source.name}: array {name[:100]!r}"


def _tensor(source: Source, name: str, entry: Any, base: int, normalise: Normalise | None) -> Stored:
    where = _where(source, name)
    try:
        kind, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    except (TypeError, KeyError, ValueError):
        raise FormatError(f"{where}: {str(entry)[:100]}, wanted dtype, shape and two data_offsets") from None
    if not isinstance(kind, str) or kind not in DTYPES:
        raise FormatError(f"{where}: dtype {str(kind)[:20]}, wanted one of {', '.join(DTYPES)}")
    if not isinstance(shape, list) or type(begin) is not int or type(end) is not int or not 0 <= begin <= end:
        raise FormatError(f"{where}: {str(entry)[:100]}, wanted a list of sizes and rising data_offsets")
    array = stored(
        source,
        name,
        np.dtype(DTYPES[kind]),
        tuple(shape),
        base + begin,
        end - begin,
        bfloat16=kind == "BF16",
        normalise=normalise,
    )
    if normalise:
        try:
            normalise.check(where, array.shape, array.dtype, bfloat16=array.bfloat16)
        except UsageError as error:
            raise FormatError(error.message) from None
    return array


def _is_fill(name: str) -> bool:
    return name.startswith(FILL) and name.removeprefix(FILL).isdecimal()


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name is given twice")
    return found
