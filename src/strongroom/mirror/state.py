"""A training state as a tree of plain values, and arrays taken out of it: nothing in it is ever code.

Values are None, bool, int, float, str, bytes, list, tuple, dict (keys: str, int, bool, None, float, bytes, tuple of
such) and arrays. Everything comes back as it was, bit for bit and type for type; anything else is refused by name.

In JSON a value that JSON has is itself (float: finite ones, whose shortest decimal form is exact), and an object with
one key is one that JSON has not: ``t`` tuple, ``d`` dict as pairs, ``b`` bytes in base64, ``f`` a float that is not
finite (a NaN other than the usual one by its bits in hexadecimal), ``a`` an array as [kind, index into the arrays].
"""

from __future__ import annotations

import base64
import functools
import json
import math
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from strongroom.crypto.encoding import base64_bytes
from strongroom.errors import FormatError, UsageError

if TYPE_CHECKING:
    from collections.abc import Buffer  # type: ignore[attr-defined,unused-ignore]  # Python 3.12

MAX_DEPTH: Final = 64
MAX_DIMENSIONS: Final = 64  # NumPy's own limit
MAX_INT_BITS: Final = 8192  # below the 4300 digits that Python's parser takes
_NOT_FINITE: Final = ("nan", "inf", "-inf")
_DOUBLE: Final = struct.Struct(">d")
_NAN_BITS: Final = re.compile(r"[0-9a-f]{16}", re.ASCII)

# What NumPy lacks, by the names of ml_dtypes; kept and given back as unsigned integers of that size.
EXTENSION_TYPES: Final = {
    "bfloat16": 2, "float8_e4m3fn": 1, "float8_e4m3fnuz": 1, "float8_e5m2": 1, "float8_e5m2fnuz": 1,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Array:
    """An array of a kind that NumPy is not: its bytes in C order, and what to make of them.

    Attributes:
        kind: who knows what it is: ``numpy``, or an adapter's name.
        dtype: NumPy's name of it, as ``<f4``, or one of `EXTENSION_TYPES`.
        data: its bytes, contiguous.
        ready: returns once they are there; None if they are. Such bytes are the commit's own until it is decided.
    """

    kind: str
    dtype: str
    shape: tuple[int, ...]
    data: Buffer
    ready: Callable[[], None] | None = None


Found = tuple[str, Array]  # the path by which an array is listed, and the array
Make = Callable[[str, int], object]  # kind and index -> what stands in the tree


@functools.lru_cache(64)
def item_size(dtype: str) -> int:
    """Bytes of one element. Raises FormatError for a type that cannot be stored."""
    if dtype in EXTENSION_TYPES:
        return EXTENSION_TYPES[dtype]
    try:
        found = np.dtype(dtype)
    except (TypeError, ValueError, SyntaxError, RecursionError):
        found = np.dtype(object)
    if found.kind not in "?biufcmMSU" or found.str != dtype or not found.itemsize:
        raise FormatError(f"array type: {dtype[:40]!r}, wanted a plain one as NumPy writes it, such as <f4")
    return found.itemsize


def numpy_type(dtype: str) -> np.dtype[Any]:
    """What NumPy holds an array of that type in: for `EXTENSION_TYPES` an unsigned integer."""
    return np.dtype(f"<u{EXTENSION_TYPES[dtype]}" if dtype in EXTENSION_TYPES else dtype)


def of_numpy(array: npt.NDArray[Any], path: str) -> Array:
    """Raises UsageError for an array of Python objects or of records, and for a masked one."""
    if isinstance(array, np.ma.MaskedArray):
        raise UsageError(f"{path}: a masked array, wanted its data and its mask apart")
    shape = array.shape
    if array.dtype.name in EXTENSION_TYPES:
        name = array.dtype.name
        array = np.ascontiguousarray(array).view(f"<u{EXTENSION_TYPES[name]}")
    else:
        name = array.dtype.str
    try:
        item_size(name)
    except FormatError:
        raise UsageError(f"{path}: an array of {array.dtype}, wanted numbers, bools, times or strings") from None
    array = np.ascontiguousarray(array)
    return Array("numpy", name, shape, array.reshape(-1).view(np.uint8).data if array.size else b"")


def _check_size(array: Array, path: str) -> None:
    size, wanted = memoryview(array.data).nbytes, math.prod(array.shape) * item_size(array.dtype)
    if size != wanted or len(array.shape) > MAX_DIMENSIONS:
        raise UsageError(f"{path}: an array of {size} bytes, wanted {wanted} for {array.dtype} of shape {array.shape}")


def _not_finite(value: float) -> str:
    bits = _DOUBLE.pack(value)
    return next((name for name in _NOT_FINITE if _DOUBLE.pack(float(name)) == bits), bits.hex())


def encode(tree: Mapping[str, object]) -> tuple[Any, list[Found]]:
    """A tree as JSON values, and its arrays in order.

    Raises:
        UsageError: a value that is none of those above, naming where it is.
    """
    arrays: list[Found] = []

    def walk(value: object, path: str, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise UsageError(f"{path}: deeper than {MAX_DEPTH} levels")
        if type(value) is Array:
            _check_size(value, path)
            arrays.append((path, value))
            return {"a": [value.kind, len(arrays) - 1]}
        if isinstance(value, np.generic):  # first: NumPy's strings and floats are Python's too
            if value.dtype.name in EXTENSION_TYPES:  # it would come back as an integer
                raise UsageError(
                    f"{path}: a scalar of {value.dtype}, wanted a number or an array",
                    hint="float(value) is exact",
                )
            arrays.append((path, of_numpy(np.asarray(value), path)))
            return {"a": ["scalar", len(arrays) - 1]}
        if value is None or isinstance(value, (bool, str)):
            return value if not isinstance(value, str) else str(value)
        if isinstance(value, int):
            if value.bit_length() > MAX_INT_BITS:
                raise UsageError(f"{path}: a number of {value.bit_length()} bits, wanted at most {MAX_INT_BITS}")
            return int(value)
        if isinstance(value, float):
            return float(value) if math.isfinite(value) else {"f": _not_finite(value)}
        if isinstance(value, (bytes, bytearray)):
            return {"b": base64.b64encode(value).decode()}
        if isinstance(value, np.ndarray):
            return walk(of_numpy(value, path), path, depth)
        if isinstance(value, list):
            return [walk(part, f"{path}/{i}", depth + 1) for i, part in enumerate(value)]
        if isinstance(value, tuple):
            return {"t": [walk(part, f"{path}/{i}", depth + 1) for i, part in enumerate(value)]}
        if isinstance(value, Mapping):
            return {
                "d": [
                    [
                        key if type(key) is str else walk(key, f"{path} key", depth + 1),
                        walk(part, f"{path}/{key}" if path else f"{key}", depth + 1),
                    ]
                    for key, part in value.items()
                ]
            }
        raise UsageError(
            f"{path or 'state'}: a {type(value).__name__}, wanted numbers, text, bytes, lists, dicts and arrays",
            hint="turn it into its state_dict, or leave it out",
        )

    return walk(dict(tree), "", 0), arrays


def arrays_in(value: object) -> list[int]:
    """The arrays that a value of `encode` names, each once. What is none of its values is left to `decode`."""
    found: dict[int, None] = {}
    left = [value]
    while left:
        one = left.pop()
        if isinstance(one, list):
            left.extend(one)
        elif isinstance(one, dict):
            name = one.get("a")
            if isinstance(name, list) and len(name) == 2 and type(name[1]) is int:
                found[name[1]] = None
            else:
                left.extend(one.values())
    return sorted(found)


def decode(value: object, make: Make) -> Any:
    """What `encode` made, with `make` for each array.

    Raises:
        FormatError: it is not what `encode` makes.
    """

    def walk(value: object, depth: int) -> Any:
        if depth > MAX_DEPTH + 1:
            raise FormatError(f"mirror state: deeper than {MAX_DEPTH} levels")
        if value is None or isinstance(value, (bool, str)):
            return value
        if isinstance(value, int) and value.bit_length() <= MAX_INT_BITS:
            return value
        if isinstance(value, float) and math.isfinite(value):  # 1e999 is none that was written
            return value
        if isinstance(value, list):
            return [walk(part, depth + 1) for part in value]
        if isinstance(value, dict) and len(value) == 1:
            tag, content = next(iter(value.items()))
            if tag == "t" and isinstance(content, list):
                return tuple(walk(part, depth + 1) for part in content)
            if tag == "d" and isinstance(content, list):
                return _dictionary(content, depth)
            if tag == "f" and isinstance(content, str):
                if content in _NOT_FINITE:
                    return float(content)
                if _NAN_BITS.fullmatch(content) and math.isnan(nan := _DOUBLE.unpack(bytes.fromhex(content))[0]):
                    return nan
            if tag == "b" and isinstance(content, str):
                try:
                    return base64_bytes(content)
                except ValueError:
                    pass
            if tag == "a" and isinstance(content, list) and len(content) == 2:
                kind, index = content
                if isinstance(kind, str) and isinstance(index, int) and not isinstance(index, bool):
                    return make(kind, index)
        raise FormatError(f"mirror state: {json.dumps(value)[:60]}, wanted a value of the format")

    def _dictionary(pairs: Sequence[object], depth: int) -> dict[object, object]:
        made: dict[object, object] = {}
        for pair in pairs:
            if not isinstance(pair, list) or len(pair) != 2:
                raise FormatError("mirror state: a dict's entry, wanted a key and a value")
            key = walk(pair[0], depth + 1)
            try:
                known = key in made
            except TypeError:
                raise FormatError(f"mirror state: a dict's key of type {type(key).__name__}") from None
            if known:
                raise FormatError("mirror state: a dict with two entries of one key")
            made[key] = walk(pair[1], depth + 1)
        return made

    return walk(value, 0)
