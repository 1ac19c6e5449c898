"""The rows of `meta`: what a vault knows of each inode, and where its content lies (normative: docs/spec/vault.md).

Pure: values in, bytes out, and back.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from strongroom.crypto import KEY_SIZE, NONCE_SIZE, TAG_SIZE
from strongroom.errors import FormatError
from strongroom.sealed.content import Version
from strongroom.sealed.layout import MAX_BLOCK, MAX_LENGTH, MIN_BLOCK, PLACE_MASK, POINTER

FILE_ID_SIZE: Final = 16
MAX_NAME: Final = 255
MAX_TARGET: Final = 4095
ROOT_INODE: Final = 1

SCHEMA: Final = (
    "CREATE TABLE info (name TEXT PRIMARY KEY, value BLOB) WITHOUT ROWID",
    "CREATE TABLE inode (id INTEGER PRIMARY KEY, mode INTEGER, links INTEGER, uid INTEGER, gid INTEGER, size INTEGER,"
    " atime INTEGER, mtime INTEGER, ctime INTEGER, body BLOB, changed INTEGER)",
    "CREATE INDEX orphan ON inode (id) WHERE links = 0",
    "CREATE TABLE entry (parent INTEGER, name BLOB, inode INTEGER, changed INTEGER, PRIMARY KEY (parent, name))"
    " WITHOUT ROWID",
    "CREATE TABLE pack (file BLOB PRIMARY KEY, key BLOB, size INTEGER, live INTEGER) WITHOUT ROWID",
    "CREATE TABLE old (file BLOB, first INTEGER, last INTEGER, version BLOB, PRIMARY KEY (file, first)) WITHOUT ROWID",
    "CREATE TABLE dead (file BLOB PRIMARY KEY, last INTEGER) WITHOUT ROWID",
)

_EMPTY, _INLINE, _PACKED, _TREE = range(4)
_PACKED_BODY = struct.Struct(f"<B{FILE_ID_SIZE}sQ{NONCE_SIZE}s{TAG_SIZE}s")
_VERSION = struct.Struct(f"<{POINTER.size}sQQ")
_TREE_BODY = struct.Struct(f"<B{FILE_ID_SIZE}s{KEY_SIZE}sIQ{_VERSION.size}s")


@dataclass(frozen=True, slots=True, repr=False)
class Inline:
    """Content that lies in the row itself; a symbolic link's target too."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Packed:
    """Content sealed as one piece of a pack: `nonce` and `tag` of the piece that starts at byte `offset`."""

    pack: bytes
    offset: int
    nonce: bytes
    tag: bytes


@dataclass(frozen=True, slots=True, repr=False)
class Tree:
    """Content in a data file of its own: a block tree of which the row holds the root pointer.

    Attributes:
        file: the data file's id; its name on disk is its hexadecimal form.
        key: the data file's key.
        since: the first commit that this version was part of.
    """

    file: bytes
    key: bytes
    block_size: int
    since: int
    version: Version

    def __repr__(self) -> str:
        return f"Tree({self.file.hex()}, since={self.since}, length={self.version.length})"


Body = Inline | Packed | Tree | None


@dataclass(slots=True)
class Inode:
    """A file, directory, link, pipe or socket. Times are in nanoseconds since 1970.

    Attributes:
        mode: type and permission bits, as `stat` has them.
        links: names that lead to it; 1 for a directory, 0 for one that is only open.
        body: what holds the content; None if it is empty.
        changed: the commit that changed this row last; what is not committed yet has the number of the next one.
    """

    id: int
    mode: int
    links: int
    uid: int
    gid: int
    size: int
    atime: int
    mtime: int
    ctime: int
    body: Body
    changed: int

    @property
    def is_dir(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.mode)

    @property
    def is_link(self) -> bool:
        return stat.S_ISLNK(self.mode)

    def row(self) -> tuple[object, ...]:
        """The values of its row in the order of the columns."""
        body = pack_body(self.body)
        return (
            self.id, self.mode, self.links, self.uid, self.gid, self.size,
            self.atime, self.mtime, self.ctime, body, self.changed,
        )  # fmt: skip

    @classmethod
    def of(cls, row: tuple[object, ...]) -> Inode:
        """Raises FormatError if the row cannot be."""
        numbers = (*row[:9], row[10])
        if any(type(value) is not int for value in numbers) or not isinstance(row[9], bytes):
            raise FormatError("vault metadata: an inode's row has values of other types")
        inode = cls(*row)  # type: ignore[arg-type]
        inode.body = parse_body(row[9])
        ids = inode.links, inode.uid, inode.gid
        if inode.id < 1 or inode.changed < 0 or any(not 0 <= value < 1 << 32 for value in ids):
            raise FormatError(f"vault metadata: inode {inode.id}: a field is out of range")
        if not 0 <= inode.size <= MAX_LENGTH or not 0 <= inode.mode < 1 << 16:
            raise FormatError(f"vault metadata: inode {inode.id}: a field is out of range")
        return inode

    def copy(self) -> Inode:
        return replace(self)


def pack_version(version: Version) -> bytes:
    return _VERSION.pack(version.pointer, version.length, version.places)


def parse_version(data: object) -> Version:
    """Raises FormatError."""
    if not isinstance(data, bytes) or len(data) != _VERSION.size:
        raise FormatError(f"vault metadata: a version of other than {_VERSION.size} bytes")
    pointer, length, places = _VERSION.unpack(data)
    if length > MAX_LENGTH or places > PLACE_MASK:
        raise FormatError(f"vault metadata: a version of {length} bytes in {places} places, wanted less")
    return Version(pointer, length, places)


def pack_body(body: Body) -> bytes:
    if body is None:
        return bytes((_EMPTY,))
    if isinstance(body, Inline):
        return bytes((_INLINE,)) + body.data
    if isinstance(body, Packed):
        return _PACKED_BODY.pack(_PACKED, body.pack, body.offset, body.nonce, body.tag)
    return _TREE_BODY.pack(_TREE, body.file, body.key, body.block_size, body.since, pack_version(body.version))


def parse_body(data: object) -> Body:
    """Raises FormatError."""
    if not isinstance(data, bytes):
        raise FormatError("vault metadata: an inode's content is described by no bytes")
    if data == b"\0":
        return None
    kind = data[0] if data else -1
    if kind == _INLINE:
        return Inline(data[1:])
    if kind == _PACKED and len(data) == _PACKED_BODY.size:
        piece = Packed(*_PACKED_BODY.unpack(data)[1:])
        if piece.offset <= MAX_LENGTH:
            return piece
    if kind == _TREE and len(data) == _TREE_BODY.size:
        _, file, key, block_size, since, version = _TREE_BODY.unpack(data)
        if MIN_BLOCK <= block_size <= MAX_BLOCK and not block_size & (block_size - 1) and since < 1 << 63:
            return Tree(file, key, block_size, since, parse_version(version))
    raise FormatError("vault metadata: an inode's content is described in an unknown way")


def check_schema(found: Iterable[tuple[object, ...]]) -> None:
    """Raise FormatError unless `found`, the statements of a database's schema, are those of `SCHEMA`.

    A view or a trigger in its place would be a program, which whoever made it wrote and whoever reads would run.
    """
    statements = sorted(" ".join(str(sql).split()) for (sql,) in found)
    if statements != sorted(SCHEMA):
        raise FormatError(
            "vault metadata: tables of another kind than a vault has",
            hint="made by something else, or by a newer strongroom",
        )


def parse_entry(row: tuple[object, ...]) -> tuple[bytes, int]:
    """(name, inode number) of an entry. Raises FormatError if it cannot be."""
    name, number = row
    if not isinstance(name, bytes) or type(number) is not int:
        raise FormatError("vault metadata: an entry has values of other types")
    if not 1 <= len(name) <= MAX_NAME or name in (b".", b"..") or b"/" in name or b"\0" in name:
        raise FormatError(f"vault metadata: an entry named {name[:MAX_NAME]!r}, which no file can be")
    return name, number


def parse_pack(row: tuple[object, ...]) -> tuple[bytes, int, int]:
    """(id, size, bytes in use) of a pack. Raises FormatError if they cannot be."""
    file, size, live = row
    if type(size) is not int or type(live) is not int or not 0 <= size <= MAX_LENGTH or live < 0:
        raise FormatError("vault metadata: the size of a pack, and how much of it is in use")
    return parse_id(file), size, live


def parse_span(first: object, last: object) -> tuple[int, int]:
    """The first and the last of some commits. Raises FormatError if they cannot be."""
    if type(first) is not int or type(last) is not int:
        raise FormatError("vault metadata: numbers of commits that are no numbers")
    return first, last


def parse_id(value: object) -> bytes:
    """The id of a data file. Raises FormatError if it cannot be one."""
    if not isinstance(value, bytes) or len(value) != FILE_ID_SIZE:
        raise FormatError(f"vault metadata: the id of a data file, wanted {FILE_ID_SIZE} bytes")
    return value


# What the log carries.

_ROW = struct.Struct("<QIIIIqqq")  # inode: id, mode, links, uid, gid, atime, mtime, ctime
_ENTRY = struct.Struct("<QQB")  # entry: parent, inode (0: removed), length of the name
_DATA = struct.Struct("<QQQI")  # content: inode, cut (2^64 - 1: none), size, count of pieces
_PIECE = struct.Struct("<QI")
_COUNTS = struct.Struct("<III")
NO_CUT: Final = (1 << 64) - 1


@dataclass(slots=True)
class DataChange:
    """What was written to a file since the last record: cut to `cut`, made `size` long, then the pieces."""

    inode: int
    cut: int
    size: int
    pieces: list[tuple[int, bytes]]


@dataclass(slots=True)
class Change:
    """One record of the log: rows as they are now, entries as they are now, and content."""

    inodes: list[Inode]
    entries: list[tuple[int, bytes, int]]
    data: list[DataChange]


def pack_change(change: Change) -> bytes:
    parts = [_COUNTS.pack(len(change.inodes), len(change.entries), len(change.data))]
    for inode in change.inodes:
        target = inode.body.data if inode.is_link and isinstance(inode.body, Inline) else b""
        parts.append(
            _ROW.pack(inode.id, inode.mode, inode.links, inode.uid, inode.gid, inode.atime, inode.mtime, inode.ctime)
            + struct.pack("<H", len(target))
            + target
        )
    for parent, name, number in change.entries:
        parts.append(_ENTRY.pack(parent, number, len(name)) + name)
    for data in change.data:
        parts.append(_DATA.pack(data.inode, data.cut, data.size, len(data.pieces)))
        for offset, piece in data.pieces:
            parts.append(_PIECE.pack(offset, len(piece)))
            parts.append(piece)
    return b"".join(parts)


def parse_change(data: bytes) -> Change:
    """Raises FormatError. The bytes are authentic, so this finds mistakes, not attacks."""
    try:
        return _parse_change(_Cursor(data))
    except struct.error:
        raise FormatError("vault log: a record is cut") from None


class _Cursor:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def fields(self, layout: struct.Struct) -> tuple[int, ...]:
        values = layout.unpack_from(self.data, self.at)
        self.at += layout.size
        return values

    def take(self, count: int) -> bytes:
        piece = self.data[self.at : self.at + count]
        if len(piece) != count:
            raise FormatError("vault log: a record is cut")
        self.at += count
        return piece


_TARGET = struct.Struct("<H")


def _parse_change(cursor: _Cursor) -> Change:
    inodes, entries, data = cursor.fields(_COUNTS)
    change = Change([], [], [])
    for _ in range(inodes):
        number, mode, links, uid, gid, atime, mtime, ctime = cursor.fields(_ROW)
        target = cursor.take(cursor.fields(_TARGET)[0])
        body = Inline(target) if target else None
        change.inodes.append(Inode(number, mode, links, uid, gid, len(target), atime, mtime, ctime, body, 0))
    for _ in range(entries):
        parent, number, length = cursor.fields(_ENTRY)
        change.entries.append((parent, cursor.take(length), number))
    for _ in range(data):
        number, cut, size, pieces = cursor.fields(_DATA)
        found = DataChange(number, cut, size, [])
        for _ in range(pieces):
            offset, length = cursor.fields(_PIECE)
            found.pieces.append((offset, cursor.take(length)))
        change.data.append(found)
    if cursor.at != len(cursor.data):
        raise FormatError("vault log: a record has more bytes than it says")
    return change
