"""Bits of many words at once, and words of odd widths on the wire.

A *plane* holds one bit of each of n elements, 64 to a word, element 0 in the lowest bit; planes are padded with zero
elements to whole words. Logic on planes costs n/64 operations, and XOR-shared bits are shares of planes.

The layout of words in memory is little-endian, as on every machine this runs on.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from strongroom.mpc.arena import Arena
from strongroom.mpc.ring import Words

Bytes = NDArray[np.uint8]
Planes = NDArray[np.uint64]  # (..., ceil(n / 64))

_MASKS = (1 << np.arange(8, dtype=np.uint8)).reshape(1, 8, 1)


def plane_words(count: int) -> int:
    """How many words a plane of `count` elements takes."""
    return -(-count // 64)


def to_planes(words: Words, count: int, arena: Arena, out: Planes) -> None:
    """Write the lowest `count` bits of `words` to `out` (count, plane_words(n)), the lowest bit first."""
    octets, n = -(-count // 8), len(words)
    filled = -(-n // 8)
    target = out.view(np.uint8).reshape(count, -1)
    target[:, filled:] = 0
    with arena.scope():
        columns = arena.take((octets, 1, n), np.uint8)
        columns[:, 0] = words.view(np.uint8).reshape(n, 8).T[:octets]
        for octet in range(octets):
            bits = min(8, count - 8 * octet)
            single = arena.take((1, bits, n), np.uint8)
            np.bitwise_and(columns[octet : octet + 1], _MASKS[:, :bits], out=single)
            target[8 * octet : 8 * octet + bits, :filled] = np.packbits(single[0], axis=-1, bitorder="little")


def from_plane(plane: Planes, count: int) -> Bytes:
    """The bits of a plane, one a byte."""
    return np.unpackbits(plane.view(np.uint8), count=count, bitorder="little")


def packed_size(count: int, width: int) -> int:
    """Bytes that `count` words of `width` bits take on the wire."""
    return count * (width // 8) + (width % 8) * -(-count // 8)


def _columns(width: int) -> list[tuple[int, int]]:
    """(first byte, bytes) of the whole-byte columns of a word: the widest first."""
    columns, at = [], 0
    for size in (8, 4, 2, 1):
        if width // 8 - at >= size:
            columns.append((at, size))
            at += size
    return columns


def pack(words: Words, width: int, out: Bytes) -> None:
    """Write words of `width` bits as `packed_size` bytes: columns of 8, 4, 2 and 1 bytes, then single bits, packed."""
    n, at = len(words), 0
    for first, size in _columns(width):
        column = out[at : at + n * size].view(f"u{size}")
        column[:] = words.view(f"u{size}")[first // size :: 8 // size]
        at += n * size
    if width % 8:
        top = words.view(np.uint8)[width // 8 :: 8]
        for bit in range(width % 8):
            packed = np.packbits(top & np.uint8(1 << bit), bitorder="little")
            out[at : at + len(packed)] = packed
            at += len(packed)


def unpack(data: Bytes, width: int, out: Words) -> None:
    """Undo `pack` into `out`."""
    n, at = len(out), 0
    if width < 64:
        out[:] = 0
    for first, size in _columns(width):
        out.view(f"u{size}")[first // size :: 8 // size] = data[at : at + n * size].view(f"u{size}")
        at += n * size
    if width % 8:
        top = out.view(np.uint8)[width // 8 :: 8]
        step = -(-n // 8)
        for bit in range(width % 8):
            top |= np.unpackbits(data[at : at + step], count=n, bitorder="little") << np.uint8(bit)
            at += step
