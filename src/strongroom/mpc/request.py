"""What a client that is no party says to each server, and hears from it.

A frame is a header of 16 bytes and a payload:

======  ====  ==============================================================================
offset  size  what
======  ====  ==============================================================================
0       4     ``SRC1``
4       1     kind: 1 name, 2 welcome, 3 request, 4 answer, 5 refusal
5       3     zero
8       8     bytes of payload, little-endian
======  ====  ==============================================================================

Texts are at most 64 KiB; what a request or an answer may take at most, the receiver knows before it comes. The payloads
are in `docs/spec/mpc-clients.md`.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strongroom.channel import Channel
from strongroom.crypto import STREAM_KEY_SIZE, KeyStream
from strongroom.errors import FormatError, MpcError, StrongroomError, from_wire

VERSION = 1
NAME, WELCOME, REQUEST, ANSWER, REFUSAL = 1, 2, 3, 4, 5
ID_SIZE, MODEL_SIZE, DIGEST_SIZE = 16, 32, 16
MOST_TEXT = 1 << 16
MOST_AXES = 8
_MAGIC = b"SRC1"
_HEADER = struct.Struct("<4sB3xQ")
_SHAPE = struct.Struct(f"<B{MOST_AXES}I")
Words = NDArray[np.uint64]
Shape = tuple[int, ...]
HEAD = ID_SIZE + MODEL_SIZE + _SHAPE.size  # of a request; its data follows


@dataclass(frozen=True)
class Request:
    """What a client asks of one server: its share at P0, the seed of it at P1."""

    id: bytes
    model: bytes
    shape: Shape
    data: bytes

    def pack(self) -> bytes:
        return self.id + self.model + pack_shape(self.shape) + self.data

    @classmethod
    def parse(cls, payload: bytes, *, seed: bool) -> Request:
        """Raises FormatError."""
        head, data = payload[:HEAD], payload[HEAD:]
        if len(head) < HEAD:
            raise FormatError(f"request: got {len(payload)} bytes, wanted at least {HEAD}")
        shape = parse_shape(head[ID_SIZE + MODEL_SIZE :])
        wanted = STREAM_KEY_SIZE if seed else 8 * prod(shape)
        if len(data) != wanted:
            raise FormatError(f"request: got {len(data)} bytes for shape {shape}, wanted {wanted}")
        return cls(head[:ID_SIZE], head[ID_SIZE : ID_SIZE + MODEL_SIZE], shape, data)


@dataclass(frozen=True)
class Answer:
    """One server's share of a result, and its transcript's digest when it gave it."""

    id: bytes
    digest: bytes
    shape: Shape
    words: Words

    def pack(self) -> bytes:
        return self.id + self.digest + pack_shape(self.shape) + self.words.astype("<u8").tobytes()

    @classmethod
    def parse(cls, payload: bytes) -> Answer:
        """Raises FormatError."""
        head = ID_SIZE + DIGEST_SIZE + _SHAPE.size
        if len(payload) < head:
            raise FormatError(f"answer: got {len(payload)} bytes, wanted at least {head}")
        shape = parse_shape(payload[ID_SIZE + DIGEST_SIZE : head])
        if len(payload) - head != 8 * prod(shape):
            raise FormatError(f"answer: got {len(payload) - head} bytes for shape {shape}")
        words = np.frombuffer(payload, "<u8", offset=head).astype(np.uint64)
        return cls(payload[:ID_SIZE], payload[ID_SIZE : ID_SIZE + DIGEST_SIZE], shape, words)


def expand(seed: bytes, count: int) -> Words:
    """P1's share of a client's input."""
    words = np.empty(count, np.uint64)
    KeyStream(seed).fill(words.view(np.uint8))
    return words


def pack_shape(shape: Shape) -> bytes:
    return _SHAPE.pack(len(shape), *shape, *([0] * (MOST_AXES - len(shape))))


def parse_shape(data: bytes) -> Shape:
    """Raises FormatError."""
    axes, *sizes = _SHAPE.unpack(data)
    if axes > MOST_AXES or any(sizes[axes:]):
        raise FormatError(f"shape: got {axes} axes, wanted at most {MOST_AXES}")
    return tuple(sizes[:axes])


def fits(shape: Shape, wanted: Sequence[int | None], most: int) -> bool:
    """Whether a shape is of the wanted sizes, where None is one of 1 to `most`."""
    return len(shape) == len(wanted) and all(
        1 <= got <= most if want is None else got == want for got, want in zip(shape, wanted, strict=True)
    )


def send(channel: Channel, kind: int, payload: bytes) -> None:
    """Send a frame. Raises ChannelError."""
    channel.queue([_HEADER.pack(_MAGIC, kind, len(payload)), payload])
    channel.flush()


def send_text(channel: Channel, kind: int, value: Mapping[str, Any]) -> None:
    """Send a JSON object. Raises ChannelError."""
    send(channel, kind, json.dumps(value).encode()[:MOST_TEXT])


def receive(channel: Channel, name: str, kind: int, most: int) -> bytes:
    """A frame's payload.

    Raises:
        StrongroomError: the peer refused, and why.
        MpcError: it sent something else, or more than `most` bytes.
        ChannelError: it is gone.
    """
    header = bytearray(_HEADER.size)
    channel.recv_into(header)
    magic, got, size = _HEADER.unpack(header)
    if magic != _MAGIC or got not in (kind, REFUSAL):
        raise MpcError(f"{name}: sent something that is no frame of kind {kind}", hint="is it of this version?")
    limit = MOST_TEXT if got == REFUSAL else most
    if size > limit:
        raise MpcError(f"{name}: sent {size} bytes, wanted at most {limit}")
    payload = bytearray(size)
    channel.recv_into(payload)
    if got == REFUSAL:
        error = from_wire(text(bytes(payload), name))
        raise type(error)(f"{name}: {error.message}", hint=error.hint)
    return bytes(payload)


def text(payload: bytes, name: str) -> dict[str, Any]:
    """A JSON object. Raises FormatError."""
    try:
        value = json.loads(payload)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise FormatError(f"{name}: sent a text that is no JSON object")
    return value


def refuse(channel: Channel, error: StrongroomError) -> None:
    """Say why a request is not served. Raises ChannelError."""
    send_text(channel, REFUSAL, error.to_wire())
