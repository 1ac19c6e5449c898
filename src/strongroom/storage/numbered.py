"""A file that changes, kept as numbered objects that do not: ``meta.0000000001``, ``meta.0000000002``, ...

- Object n holds what changed since object n - 1, and everything where n - 1 is a multiple of 64. So the file is the
  newest full object at or before the highest number, and every object after that up to the highest.
- Publishing object n is the commit: all of it or nothing, and one of several writers wins (`Objects.exclusive`).
- After a full object, those before the full object that lies 256 or more numbers back are deleted: a reader that opened
  within the last 256 commits finds what it opened.
- All of it is untrusted. The digest is against accidents only; whose bytes these are, the sealed layer finds out.

An object, integers little-endian::

    0    8   magic "SROBJECT"
    8    2   version 1
    10   2   kind: 1 full, 2 changes
    12   4   count of ranges
    16   8   number
    24   8   length of the file
    32   8   cut: the file was as short as this since object n - 1 (kind 2; else 0): what lay behind it is zeros
    40   8   zeros
    48   16  random: no two writers write the same object
    64   16c ranges, rising and disjoint, at most 2^15: offset (8), size (8)
    ..   32  SHA-256 of all before
    ..       the bytes of the ranges, one after another
"""

from __future__ import annotations

import hashlib
import io
import re
import secrets
import struct
import threading
from collections.abc import Iterable
from itertools import pairwise
from typing import TYPE_CHECKING

from strongroom.errors import ConflictError, FormatError, StrongroomError, TruncatedError
from strongroom.storage.backends import Objects
from strongroom.storage.extents import Extent, Extents, layered
from strongroom.storage.protocols import OpenMode

if TYPE_CHECKING:
    from collections.abc import Buffer  # type: ignore[attr-defined,unused-ignore]  # Python 3.12

FULL_EVERY = 64
KEPT = 256  # numbers, at least, of which the objects stay

MAX_RANGES = 1 << 15  # of one object: who opens the file takes in the tables of up to 64
MAX_LENGTH = 1 << 60

_MAGIC, _VERSION, _FULL, _CHANGES = b"SROBJECT", 1, 1, 2
_HEADER = struct.Struct("<8sHHIQQQ8x16s")
_RANGE = struct.Struct("<QQ")
_DIGEST_SIZE = 32
_HEAD = 64 << 10  # of each object fetched at once: its table, and often all of it
_NUMBER = re.compile(r"\.([0-9]{10})")
_HINT = "something changed it; restore the objects from a copy"


def object_name(name: str, number: int) -> str:
    return f"{name}.{number:010}"


def numbers(name: str, objects: dict[str, int]) -> dict[int, int]:
    """The numbers, and sizes, of the objects of file `name` among `objects`."""
    found = {}
    for other, size in objects.items():
        if other.startswith(name) and (match := _NUMBER.fullmatch(other, len(name))) and int(match[1]):
            found[int(match[1])] = size
    return found


def encode(number: int, length: int, cut: int, ranges: list[tuple[int, int]], data: bytes) -> bytes:
    """Object `number`; `ranges` are (offset, size)."""
    kind = _FULL if _is_full(number) else _CHANGES
    header = _HEADER.pack(_MAGIC, _VERSION, kind, len(ranges), number, length, cut, secrets.token_bytes(16))
    head = header + b"".join(_RANGE.pack(*item) for item in ranges)
    return head + hashlib.sha256(head).digest() + data


def decode(head: bytes, number: int, size: int, what: str) -> tuple[int, int, list[tuple[int, int, int]]]:
    """Length, cut, and (offset, size, place in the object) of each range.

    Args:
        head: the first bytes of the object: all up to its data.
        size: the whole object's.

    Raises:
        FormatError: these are not the bytes of object `number`.
        TruncatedError: the object is shorter than it says.
    """
    kind, count = _parse_header(head, number, what)
    _, _, _, _, _, length, cut, _ = _HEADER.unpack_from(head)
    place = _head_size(count)
    if len(head) < place:
        raise TruncatedError(f"object {what}: {len(head)} bytes, wanted at least {place}", hint=_HINT)
    if hashlib.sha256(head[: place - _DIGEST_SIZE]).digest() != head[place - _DIGEST_SIZE : place]:
        raise FormatError(f"object {what}: its digest is another than that of its table", hint=_HINT)
    if kind != (_FULL if _is_full(number) else _CHANGES) or length > MAX_LENGTH or cut > length:
        raise FormatError(f"object {what}: kind {kind}, length {length}, cut {cut} make no sense", hint=_HINT)
    ranges, end = [], 0
    for offset, amount in _RANGE.iter_unpack(head[_HEADER.size : place - _DIGEST_SIZE]):
        if offset < end or offset + amount > length:
            raise FormatError(f"object {what}: range {offset}+{amount}, wanted {end} to {length}", hint=_HINT)
        ranges.append((offset, amount, place))
        end = offset + amount
        place += amount
    if place != size:
        raise TruncatedError(f"object {what}: {size} bytes, wanted {place}", hint=_HINT)
    return length, cut, ranges


def _parse_header(head: bytes, number: int, what: str) -> tuple[int, int]:
    if len(head) < _HEADER.size:
        raise TruncatedError(f"object {what}: {len(head)} bytes, wanted at least {_HEADER.size}", hint=_HINT)
    magic, version, kind, count, found, _, _, _ = _HEADER.unpack_from(head)
    if magic != _MAGIC or version != _VERSION:
        raise FormatError(f"object {what}: not one of version {_VERSION}", hint="a newer strongroom may read it")
    if found != number:
        raise FormatError(f"object {what}: number {found} in its head, wanted number {number}", hint=_HINT)
    if count > MAX_RANGES:
        raise FormatError(f"object {what}: {count} ranges, wanted at most {MAX_RANGES}", hint=_HINT)
    return kind, count


def _head_size(count: int) -> int:
    return _HEADER.size + count * _RANGE.size + _DIGEST_SIZE


def _joined(parts: Iterable[Extent]) -> list[tuple[int, int]]:
    """The ranges (offset, size) of rising parts: neighbours as one, and what lies nearest together, if too many."""
    ranges: list[tuple[int, int]] = []
    for part in parts:
        if ranges and sum(ranges[-1]) == part.start:
            ranges[-1] = (ranges[-1][0], part.end - ranges[-1][0])
        else:
            ranges.append((part.start, part.end - part.start))
    if len(ranges) <= MAX_RANGES:
        return ranges
    # What has not changed between two of them is written along.
    gaps = sorted(range(1, len(ranges)), key=lambda index: ranges[index][0] - sum(ranges[index - 1]))
    kept = [0, *sorted(gaps[len(ranges) - MAX_RANGES :]), len(ranges)]
    return [(ranges[first][0], sum(ranges[following - 1]) - ranges[first][0]) for first, following in pairwise(kept)]


def _is_full(number: int) -> bool:
    return (number - 1) % FULL_EVERY == 0


def _full_before(number: int) -> int:
    return number - (number - 1) % FULL_EVERY


class NumberedStorage:
    """A file of numbered objects. `sync` publishes what changed, atomically; without a change it does nothing.

    A reader sees the file as it was when it opened, until it calls `refresh`. Changes that are not published rest in
    memory, and so does a full object while it is made.
    """

    atomic_sync = True
    locks = None

    def __init__(self, objects: Objects, name: str, mode: OpenMode) -> None:
        """Raises FileNotFoundError, FileExistsError, FormatError, TruncatedError."""
        self._objects = objects
        self._name = name
        self._mode = mode
        self._lock = threading.RLock()
        self._poisoned = False
        self._extents = Extents()
        self._sizes: dict[str, int] = {}
        self._number = self._length = self._cut = 0
        self._changed = mode == "x"  # that it exists
        found = numbers(name, objects.names())
        if mode == "x":
            if found:
                raise FileExistsError(f"{objects.what(name)}: exists")
        elif not found:
            raise FileNotFoundError(f"{objects.what(name)}: does not exist")
        else:
            self._load(found)

    @property
    def number(self) -> int:
        """Of the newest object that this is based on; 0 if there is none."""
        return self._number

    def refresh(self) -> bool:
        """Take in what was published since it was opened; whether that was anything.

        Raises:
            ConflictError: there are changes of this storage that were not published.
        """
        with self._lock:
            found = numbers(self._name, self._objects.names())
            if not found or max(found) <= self._number:
                return False
            if self._changed:
                raise self._conflict(self._number + 1)
            self._load(found)
            return True

    def _load(self, found: dict[int, int]) -> None:
        newest = max(found)
        wanted = range(_full_before(newest), newest + 1)
        if not found.keys() >= set(wanted):
            # A long listing may show an object and not the one before it, if both were made meanwhile.
            found |= numbers(self._name, self._objects.names())
        for number in wanted:
            if number not in found:
                raise self._objects.missing(object_name(self._name, number))
        names = [object_name(self._name, number) for number in wanted]
        layers: list[tuple[int, list[Extent]]] = []
        length = 0
        for number, name, head in zip(wanted, names, self._objects.heads(names, _HEAD), strict=True):
            length, cut, ranges = self._decode(name, number, found[number], head)
            layers.append((cut, [Extent(offset, offset + amount, name, place) for offset, amount, place in ranges]))
            if found[number] <= len(head):
                self._objects.remember(name, head)
        self._extents, self._number, self._length, self._cut = layered(layers), newest, length, length
        self._sizes = {name: found[number] for number, name in zip(wanted, names, strict=True)}

    def _decode(self, name: str, number: int, size: int, head: bytes) -> tuple[int, int, list[tuple[int, int, int]]]:
        what = self._objects.what(name)
        _, count = _parse_header(head, number, what)
        wanted = min(size, _head_size(count))
        if len(head) < wanted:
            head = self._objects.get(name, 0, wanted)
        return decode(head, number, size, what)

    def read_into(self, offset: int, buffer: Buffer) -> int:
        with self._lock, memoryview(buffer) as view:
            count = max(0, min(len(view), self._length - offset))
            for piece in self._extents.pieces(offset, offset + count):
                target = view[piece.start - offset : piece.end - offset]
                if isinstance(piece.source, str):
                    self._objects.read(piece.source, self._sizes[piece.source], piece.at, target)
                elif piece.source is None:
                    target[:] = bytes(len(target))
                else:
                    target[:] = memoryview(piece.source)[piece.at : piece.at + len(target)]
            return count

    def write_at(self, offset: int, data: Buffer) -> None:
        with self._lock:
            self._writing()
            copy = bytes(data)
            if copy:
                self._extents.put(Extent(offset, offset + len(copy), copy))
                self._length = max(self._length, offset + len(copy))
                self._changed = True

    def resize(self, size: int) -> None:
        with self._lock:
            self._writing()
            if size != self._length:
                self._extents.cut(size)
                self._length = size
                self._cut = min(self._cut, size)
                self._changed = True

    def size(self) -> int:
        return self._length

    def sync(self) -> None:
        """Publish.

        Raises:
            ConflictError: another writer published that number. This handle is of no use any more; open again.
            OSError: likewise; whether it was published shows then.
        """
        with self._lock:
            if not self._changed:
                return
            self._writing()
            number = self._number + 1
            name = object_name(self._name, number)
            full = _is_full(number)
            ranges = _joined(part for part in self._extents if full or isinstance(part.source, bytes))
            data = bytearray(sum(size for _, size in ranges))
            at = 0
            with memoryview(data) as view:
                for offset, size in ranges:
                    self.read_into(offset, view[at : at + size])
                    at += size
            content = encode(number, self._length, 0 if full else self._cut, ranges, bytes(data))
            self._poisoned = True
            if not self._objects.create(name, content):
                raise self._conflict(number)
            self._poisoned = False
            self._published(number, name, content, ranges, len(content) - len(data))

    def _published(self, number: int, name: str, content: bytes, ranges: list[tuple[int, int]], place: int) -> None:
        self._objects.remember(name, content)
        self._sizes[name] = len(content)
        for offset, size in ranges:
            self._extents.put(Extent(offset, offset + size, name, place))
            place += size
        self._number, self._cut, self._changed = number, self._length, False
        if _is_full(number):
            self._sizes = {name: len(content)}
            self._delete_old(number)

    def _delete_old(self, newest: int) -> None:
        if newest <= KEPT:
            return
        oldest = _full_before(newest - KEPT)
        try:
            for number in sorted(numbers(self._name, self._objects.names())):
                if number < oldest:
                    self._objects.delete(object_name(self._name, number))
        except OSError:
            return  # the next full object tries again

    def _conflict(self, number: int) -> ConflictError:
        return ConflictError(
            f"{self._objects.what(self._name)}: another writer published number {number}", hint="open it again"
        )

    def _writing(self) -> None:
        if self._mode == "r":
            raise io.UnsupportedOperation(f"{self._name}: open for reading only")
        if self._poisoned:
            raise StrongroomError(f"{self._name}: an earlier sync failed", hint="open it again")

    def close(self) -> None:
        """What was not published is gone."""
        with self._lock:
            self._extents = Extents()
            self._mode, self._changed = "r", False

    def __repr__(self) -> str:
        return f"NumberedStorage({self._objects.what(self._name)!r}, number={self._number})"


def delete_numbered(objects: Objects, name: str) -> None:
    """Delete every object of a file, the oldest first: what an interruption leaves opens as no older version.

    Raises:
        FileNotFoundError: there is none.
    """
    found = numbers(name, objects.names())
    if not found:
        raise FileNotFoundError(f"{objects.what(name)}: does not exist")
    for number in sorted(found):
        objects.delete(object_name(name, number))
