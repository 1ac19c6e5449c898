"""Parse CBOR (RFC 8949) as attestation documents use it: bounded and strict.

Rules:

- Integers, byte strings, texts, arrays, maps, booleans and null; definite lengths, each in its shortest form. Where the
  caller allows it, the length of a map may be indefinite.
- No floating-point numbers, no other simple values, no tags, no key twice, no byte after the item.
- No length is believed: whatever an item says to hold must fit the bytes that are there, before anything is made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from strongroom.errors import FormatError

CBOR: TypeAlias = bool | int | bytes | str | Sequence["CBOR"] | Mapping["CBOR", "CBOR"] | None

_MAX_DEPTH = 8
# RFC 8949, section 3.1: major types.
_UNSIGNED, _NEGATIVE, _BYTES, _TEXT, _ARRAY, _MAP, _SIMPLE = 0, 1, 2, 3, 4, 5, 7
_SIMPLE_VALUES: Mapping[int, bool | None] = {20: False, 21: True, 22: None}
# Section 3.2.
_INDEFINITE_MAP, _BREAK = b"\xbf", b"\xff"
_BYTE_STRING_HEADS = ((24, 0x40, 0), (2**8, 0x58, 1), (2**16, 0x59, 2), (2**32, 0x5A, 4))


def parse_cbor(raw: bytes, name: str, *, indefinite_maps: bool = False) -> CBOR:
    """The one item that `raw` is; `name` is what an error calls it.

    Raises:
        FormatError: `raw` is not one item by the rules at the top of this file, at most 8 levels deep.
    """
    value, end = _Reader(raw, name, indefinite_maps).item(0, _MAX_DEPTH)
    if end != len(raw):
        raise FormatError(f"{name}: {len(raw) - end} bytes after it, wanted none")
    return value


def byte_string(value: bytes) -> bytes:
    """`value` as a CBOR byte string, as RFC 9052's structures to sign hold it.

    Raises:
        FormatError: it has 2^32 bytes or more.
    """
    for below, head, size in _BYTE_STRING_HEADS:
        if len(value) < below:
            return bytes([head + (0 if size else len(value))]) + (len(value).to_bytes(size) if size else b"") + value
    raise FormatError(f"byte string: {len(value)} bytes, wanted fewer than 2^32")


class _Reader:
    """Items of `raw` by where they start; each method also returns where what it read ends."""

    def __init__(self, raw: bytes, name: str, indefinite_maps: bool) -> None:
        self._raw = raw
        self._name = name
        self._indefinite_maps = indefinite_maps

    def item(self, start: int, depth: int) -> tuple[CBOR, int]:
        if depth == 0:
            raise self._error(start, f"more than {_MAX_DEPTH} levels")
        if self._indefinite_maps and self._raw[start : start + 1] == _INDEFINITE_MAP:
            return self._map(None, start + 1, depth)
        major, argument, start = self._head(start)
        if major in (_UNSIGNED, _NEGATIVE):
            return argument if major == _UNSIGNED else -1 - argument, start
        if major in (_BYTES, _TEXT):
            return self._string(major, argument, start)
        if major == _ARRAY:
            return self._array(argument, start, depth)
        if major == _MAP:
            return self._map(argument, start, depth)
        if major == _SIMPLE and argument in _SIMPLE_VALUES:
            return _SIMPLE_VALUES[argument], start
        raise self._error(start, "a tag, a floating-point number or another simple value")

    def _head(self, start: int) -> tuple[int, int, int]:
        """Major type and argument (RFC 8949, section 3)."""
        first = self._part(start, 1)[0]
        major, low = first >> 5, first & 0x1F
        if low < 24:
            return major, low, start + 1
        if low > 27 or major == _SIMPLE:
            raise self._error(start, "an indefinite length, a floating-point number or a reserved value")
        size = 1 << (low - 24)
        argument = int.from_bytes(self._part(start + 1, size))
        if argument < (24 if size == 1 else 1 << (4 * size)):
            raise self._error(start, f"{argument} in {size} bytes, wanted its shortest form")
        return major, argument, start + 1 + size

    def _string(self, major: int, size: int, start: int) -> tuple[bytes | str, int]:
        part = self._part(start, size)
        if major == _BYTES:
            return part, start + size
        try:
            return part.decode(), start + size
        except UnicodeDecodeError:
            raise self._error(start, "a text that is not UTF-8") from None

    def _array(self, count: int, start: int, depth: int) -> tuple[list[CBOR], int]:
        self._room(start, count)
        items: list[CBOR] = []
        for _ in range(count):
            item, start = self.item(start, depth - 1)
            items.append(item)
        return items, start

    def _map(self, count: int | None, start: int, depth: int) -> tuple[dict[CBOR, CBOR], int]:
        """`count` pairs of key and value, or with None as many as there are before the break."""
        self._room(start, 2 * (count or 0))
        items: dict[CBOR, CBOR] = {}
        while len(items) != count:
            if count is None and self._part(start, 1) == _BREAK:
                return items, start + 1
            key, start = self.item(start, depth - 1)
            if not isinstance(key, int | str) or isinstance(key, bool):
                raise self._error(start, f"a key of type {type(key).__name__}, wanted an integer or a text")
            if key in items:
                raise self._error(start, f"the key {str(key)[:40]!r} twice")
            items[key], start = self.item(start, depth - 1)
        return items, start

    def _room(self, start: int, items: int) -> None:
        """Every item has a byte at least."""
        if items > len(self._raw) - start:
            raise self._error(start, f"{items} items in {len(self._raw) - start} bytes")

    def _part(self, start: int, size: int) -> bytes:
        if size > len(self._raw) - start:
            raise self._error(start, f"{len(self._raw) - start} bytes, wanted {size}")
        return self._raw[start : start + size]

    def _error(self, where: int, what: str) -> FormatError:
        return FormatError(f"{self._name}: not the CBOR it should be: got {what}, at byte {where}")
