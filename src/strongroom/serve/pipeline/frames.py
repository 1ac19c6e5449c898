"""Tensors in frames of declared sizes (docs/spec/pipeline.md).

A frame is a header of 32 bytes, what it carries, and zeros up to a multiple of the size that its pipeline declares for
this direction. Of tensors, it carries a table (of each: rank, datatype, sizes) and then their bytes, each beginning at
a multiple of 64. So its size tells what the shapes are, at most, and nothing of any value.

Rules for what comes from a peer:

- Sizes are checked against each other and against caps before anything of that size is allocated.
- Tensors are the declared ones, in the declared order; of each, the bytes are those of its shape and datatype.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, Final

import numpy as np

from strongroom.channel import Channel
from strongroom.errors import FormatError, StrongroomError
from strongroom.serve.pipeline.document import MAX_FRAME
from strongroom.serve.tensors import DATATYPES, MAX_ELEMENTS, MAX_RANK, Array, datatype_of

TENSORS: Final = 1
ERROR: Final = 2
HELLO: Final = 3
WORKING: Final = 4
_MAGIC: Final = b"SRF1"
_HEADER = struct.Struct("<4sBxHQQQ")  # magic, kind, tensors, number of the request, bytes carried, bytes with padding
_ENTRY = struct.Struct("<BB6x")
_KINDS: Final = tuple(DATATYPES)
_ALIGNMENT: Final = 64
_ZEROS = bytes(1 << 16)


@dataclass(frozen=True)
class Frame:
    """One frame.

    Attributes:
        kind: `TENSORS`, `ERROR`, `HELLO` or `WORKING`.
        number: of the request.
        tensors: how many it carries.
        carried: what it carries, without padding.
    """

    kind: int
    number: int
    tensors: int
    carried: memoryview = field(repr=False)


def tensors_frame(number: int, tensors: Sequence[Array], size: int) -> list[memoryview]:
    """A frame with tensors, in pieces; nothing of a tensor may change until they are sent.

    Args:
        size: the frame is a multiple of it.

    Raises:
        FormatError: it would be longer than `MAX_FRAME`.
    """
    table = b"".join(
        _ENTRY.pack(each.ndim, _KINDS.index(datatype_of(each, str(place)))) + struct.pack(f"<{each.ndim}Q", *each.shape)
        for place, each in enumerate(tensors)
    )
    pieces = [memoryview(table + bytes(-len(table) % _ALIGNMENT))]
    for each in tensors:
        raw = np.ascontiguousarray(each, each.dtype.newbyteorder("<")).reshape(-1).view(np.uint8)
        pieces += [raw.data, memoryview(bytes(-raw.nbytes % _ALIGNMENT))]
    return _framed(TENSORS, number, len(tensors), [piece for piece in pieces if piece.nbytes], size)


def text_frame(kind: int, number: int, value: Mapping[str, Any], size: int) -> list[memoryview]:
    """A frame with a JSON object: an error (`ERROR`), what a part is (`HELLO`), or a sign of life (`WORKING`)."""
    return _framed(kind, number, 0, [memoryview(json.dumps(value).encode())], size)


def _framed(kind: int, number: int, tensors: int, pieces: list[memoryview], size: int) -> list[memoryview]:
    carried = sum(piece.nbytes for piece in pieces)
    whole = -(-max(carried, 1) // size) * size
    if whole > MAX_FRAME:
        raise FormatError(f"frame: {whole} bytes, the limit is {MAX_FRAME}", hint="send smaller inputs")
    padding, zeros = whole - carried, memoryview(_ZEROS)
    filled = [zeros] * (padding // len(_ZEROS)) + [zeros[: padding % len(_ZEROS)]]
    return [memoryview(_HEADER.pack(_MAGIC, kind, tensors, number, carried, whole)), *pieces, *filled]


def receive(channel: Channel, size: int) -> Frame:
    """The next frame, of a multiple of `size`; what is queued is sent meanwhile.

    Raises:
        FormatError: it is none.
        ChannelError: the channel ended.
    """
    header = bytearray(_HEADER.size)
    channel.recv_into(header)
    magic, kind, tensors, number, carried, whole = _HEADER.unpack(header)
    if magic != _MAGIC or kind not in (TENSORS, ERROR, HELLO, WORKING) or header[5]:
        raise FormatError("frame: is none")
    if not size <= whole <= MAX_FRAME or whole % size or carried > whole:
        raise FormatError(f"frame: got {carried} bytes of {whole}, wanted a multiple of {size} up to {MAX_FRAME}")
    body = memoryview(bytearray(whole))
    channel.recv_into(body)
    return Frame(kind, number, tensors, body[:carried])


def read_tensors(frame: Frame, names: Sequence[str]) -> dict[str, Array]:
    """The tensors of a frame, by the names that its direction declares; views of it.

    Raises:
        FormatError: they are others.
    """
    if frame.kind != TENSORS or frame.tensors != len(names):
        raise FormatError(f"frame: got {frame.tensors} tensors, wanted {len(names)}")
    raw, place = frame.carried, 0
    found: list[tuple[np.dtype[Any], tuple[int, ...]]] = []
    for name in names:
        if len(raw) < place + _ENTRY.size:
            raise FormatError(f"frame: cut short before tensor {name[:80]!r}")
        rank, kind = _ENTRY.unpack_from(raw, place)
        place += _ENTRY.size
        if rank > MAX_RANK or kind >= len(_KINDS) or len(raw) < place + 8 * rank:
            raise FormatError(f"frame: tensor {name[:80]!r} has rank {rank} and type {kind}")
        shape = struct.unpack_from(f"<{rank}Q", raw, place)
        place += 8 * rank
        found.append((DATATYPES[_KINDS[kind]], shape))
    place += -place % _ALIGNMENT
    tensors = {}
    for name, (dtype, shape) in zip(names, found, strict=True):
        count = prod(shape)
        if count > MAX_ELEMENTS or len(raw) < place + count * dtype.itemsize:
            raise FormatError(f"frame: tensor {name[:80]!r} of shape {list(shape)} does not fit")
        tensors[name] = np.frombuffer(raw, dtype, count, place).reshape(shape)
        place += count * dtype.itemsize
        place += -place % _ALIGNMENT
    if place != len(raw):
        raise FormatError(f"frame: got {len(raw)} bytes, wanted {place}")
    return tensors


def read_text(frame: Frame) -> dict[str, Any]:
    """The JSON object of a frame of kind `ERROR` or `HELLO`. Raises FormatError if it holds none."""
    try:
        value = json.loads(bytes(frame.carried[: 1 << 16]))
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise FormatError("frame: holds no JSON object")
    return value


def size_of(tensors: int, largest: int) -> int:
    """What to declare for frames of that many tensors of that many bytes together: whole pages."""
    table = tensors * (_ENTRY.size + 8 * MAX_RANK + _ALIGNMENT)
    return -(-(largest + table + _ALIGNMENT) // 4096) * 4096


def error_frame(number: int, error: StrongroomError, size: int) -> list[memoryview]:
    """A frame that says why there is no answer; as long as an answer would be."""
    return text_frame(ERROR, number, error.to_wire(), size)
