"""A reader of data sets, written from docs/spec/dataset.md alone, value by value."""

from __future__ import annotations

import json
import math
import struct

TYPES = {
    "BOOL": "?", "U8": "B", "I8": "b", "U16": "H", "I16": "h", "U32": "I", "I32": "i", "U64": "Q", "I64": "q",
    "F16": "e", "F32": "f", "F64": "d", "BF16": "H",
}  # fmt: skip
EXACT = {"U8", "I8", "U16", "I16", "F16", "BF16", "F32"}


class BadError(Exception):
    """The content is not as the page says."""


def read(content: bytes) -> dict[str, tuple[str, list[int], bytes]]:
    """Of each tensor that means something: the type given, its shape, and its values, little endian."""
    (size,) = struct.unpack_from("<Q", content)
    if size > min(100_000_000, len(content) - 8):
        raise BadError("header")
    header = _object(content[8 : 8 + size].decode())
    metadata = header.pop("__metadata__", {})
    said = metadata.get("strongroom.normalise") if isinstance(metadata, dict) else None
    normalise = {} if said is None else _object(said)
    found = {}
    for name, entry in header.items():
        if name.startswith("_fill") and name[5:].isdecimal():
            continue
        begin, end = (8 + size + offset for offset in entry["data_offsets"])
        found[name] = _tensor(entry["dtype"], entry["shape"], content[begin:end], normalise.pop(name, None))
    if normalise:
        raise BadError("names of no tensors")
    return found


def _tensor(kind: str, shape: list[int], stored: bytes, how: object) -> tuple[str, list[int], bytes]:
    code = TYPES[kind]
    values = [value for (value,) in struct.iter_unpack("<" + code, stored)]
    if len(values) != math.prod(shape):
        raise BadError("size")
    if kind == "BF16":
        values = [struct.unpack("<f", struct.pack("<I", value << 16))[0] for value in values]
        kind, code = "F32", "f"
        exact = True
    else:
        exact = kind in EXACT
    if how is None:
        return kind, shape, struct.pack(f"<{len(values)}{code}", *values)
    if not exact or not isinstance(how, dict) or set(how) != {"mean", "std"}:
        raise BadError("normalise")
    inner = math.prod(shape[2:])
    means, stds = (_numbers(how[name], shape) for name in ("mean", "std"))
    if any(std <= 0 for std in stds):
        raise BadError("std")
    out = []
    for at, value in enumerate(values):
        channel = at // inner % shape[1] if len(shape) > 1 else 0
        mean, std = (numbers[channel % len(numbers)] for numbers in (means, stds))
        out.append(_float32(_float32(value - mean) / std))
    return "F32", shape, struct.pack(f"<{len(out)}f", *out)


def _numbers(said: object, shape: list[int]) -> list[float]:
    numbers = said if isinstance(said, list) else [said]
    if isinstance(said, list) and (len(shape) < 2 or not said or len(said) != shape[1]):
        raise BadError("channels")
    if any(type(number) not in (int, float) for number in numbers):
        raise BadError("no number")
    try:
        rounded = [_float32(number) for number in numbers]
    except OverflowError:
        raise BadError("not finite") from None
    if not all(map(math.isfinite, rounded)):
        raise BadError("not finite")
    return rounded


def _float32(value: float) -> float:
    return float(struct.unpack("<f", struct.pack("<f", float(value)))[0])


def _object(text: object) -> dict:
    def once(pairs: list) -> dict:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise BadError("twice")
        return found

    if not isinstance(text, str):
        raise BadError("no text")
    try:
        found = json.loads(text, object_pairs_hook=once)
    except ValueError:
        raise BadError("not JSON") from None
    if not isinstance(found, dict):
        raise BadError("no object")
    return found
