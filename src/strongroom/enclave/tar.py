"""Read a tar archive from a stream, one header at a time: enough for the layers of container images, and no more.

Python's own reader takes whole extended headers into memory, however long, and knows forms that no image has.

Rules:

- Nothing is read beyond the end of a member; what follows the end of the archive must be zeros.
- Extended headers are at most 1 MiB, and only paths, link targets and sizes are taken from them.
- Sparse files, devices, FIFOs and unknown kinds are refused, and so is a header whose checksum is wrong.

Source: POSIX.1-2017, pax, "ustar Interchange Format" and "pax Extended Header"; the GNU tar manual, "Basic Tar Format",
for long names (`L`, `K`) and numbers in base 256.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Literal

from strongroom.errors import FormatError

Kind = Literal["file", "directory", "symlink", "hardlink"]

BLOCK = 512
MAX_PATH = 4096
MAX_EXTENDED = 1 << 20
MAX_MEMBER = 1 << 40
_KINDS: dict[bytes, Kind] = {
    b"0": "file",
    b"\0": "file",
    b"7": "file",
    b"1": "hardlink",
    b"2": "symlink",
    b"5": "directory",
}
_REFUSED = {b"3": "a character device", b"4": "a block device", b"6": "a FIFO", b"S": "a sparse file"}
_PIECE = 1 << 18


@dataclass(frozen=True)
class Member:
    """One member: `link` is where a link leads, `size` the bytes of a file."""

    path: str
    kind: Kind
    mode: int
    size: int
    link: str


class TarReader:
    """Iterate over it, and call `pieces` for a file's content before the next member is asked for."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._left = 0  # bytes of the present member, with its padding
        self._content = 0

    def __iter__(self) -> Iterator[Member]:
        """Raises FormatError where the archive does not go on as one."""
        own: dict[str, str] = {}
        common: dict[str, str] = {}
        while (header := self._header()) is not None:
            kind, size = header[156:157], _number(header[124:136])
            if kind in (b"x", b"g", b"L", b"K"):
                raw = self._extended(size)
                if kind == b"x":
                    own |= _pax(raw)
                elif kind == b"g":
                    common |= _pax(raw)
                else:
                    own["path" if kind == b"L" else "linkpath"] = _text(raw.rstrip(b"\0"))
                continue
            told, own = common | own, {}
            member = _member(header, told)
            self._content = member.size
            self._left = -(-member.size // BLOCK) * BLOCK
            yield member
            for _ in self.pieces():  # what nobody has read
                pass
            self._take(self._left)
        while rest := self._stream.read(_PIECE):
            if rest.strip(b"\0"):
                raise FormatError("tar: goes on after its end")

    def pieces(self) -> Iterator[bytes]:
        """The content of the file that was just told. Raises FormatError if it is cut short."""
        while self._content:
            piece = self._stream.read(min(_PIECE, self._content))
            if not piece:
                raise FormatError("tar: cut short")
            self._content -= len(piece)
            self._left -= len(piece)
            yield piece

    def _header(self) -> bytes | None:
        """The next header; None at the end."""
        header = self._take(BLOCK)
        if not header.strip(b"\0"):
            return None
        told = _number(header[148:156])
        if told != sum(header[:148]) + 8 * 0x20 + sum(header[156:]):
            raise FormatError("tar: the checksum of a header is wrong")
        return header

    def _extended(self, size: int) -> bytes:
        if size > MAX_EXTENDED:
            raise FormatError(f"tar: an extended header of {size} bytes, wanted at most {MAX_EXTENDED}")
        return self._take(-(-size // BLOCK) * BLOCK)[:size]

    def _take(self, size: int) -> bytes:
        parts = []
        while size:
            part = self._stream.read(min(size, _PIECE))
            if not part:
                raise FormatError("tar: cut short")
            parts.append(part)
            size -= len(part)
        return b"".join(parts)


def _member(header: bytes, told: dict[str, str]) -> Member:
    flag = header[156:157]
    if flag in _REFUSED:
        raise FormatError(f"tar: {_text(_field(header[:100]))[:100]!r} is {_REFUSED[flag]}")
    if flag not in _KINDS:
        raise FormatError(f"tar: a member of kind {flag!r}, which is unknown")
    if any(name.startswith("GNU.sparse") for name in told):
        raise FormatError("tar: has a sparse file")
    name, prefix = _field(header[:100]), _field(header[345:500]) if header[257:262] == b"ustar" else b""
    # GNU's own format has times where POSIX's has the prefix.
    if prefix and header[257:265] != b"ustar  \0":
        name = prefix + b"/" + name
    path = told.get("path") or _text(name)
    kind = _KINDS[flag]
    if kind == "file" and path.endswith("/"):
        kind = "directory"  # as tar of before POSIX wrote them
    size = _decimal(told["size"]) if "size" in told else _number(header[124:136])
    link = (told.get("linkpath") or _text(_field(header[157:257]))) if kind in ("symlink", "hardlink") else ""
    if kind != "file":
        size = 0 if kind != "hardlink" else size
    if size > MAX_MEMBER or (kind == "hardlink" and size):
        raise FormatError(f"tar: {path[:100]!r} has {size} bytes")
    if len(path) > MAX_PATH or len(link) > MAX_PATH:
        raise FormatError(f"tar: a path of more than {MAX_PATH} characters")
    return Member(path, kind, _number(header[100:108]) & 0o7777, size, link)


def _field(raw: bytes) -> bytes:
    return raw.split(b"\0", 1)[0]


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise FormatError(f"tar: {raw[:100]!r} is no UTF-8") from None


def _number(raw: bytes) -> int:
    """Octal digits; or, with the first bit set, base 256."""
    if raw[0] & 0x80:
        value = int.from_bytes(bytes([raw[0] & 0x7F]) + raw[1:], "big")
        if raw[0] & 0x40 or value > MAX_MEMBER:
            raise FormatError("tar: a number that is negative or too large")
        return value
    digits = raw.strip(b" \0")
    if not digits:
        return 0
    if digits.strip(b"01234567"):
        raise FormatError(f"tar: got {digits[:12]!r}, wanted octal digits")
    return int(digits, 8)


def _decimal(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 20):
        raise FormatError(f"tar: got the size {text[:30]!r}, wanted decimal digits")
    return int(text)


def _pax(raw: bytes) -> dict[str, str]:
    """The records of an extended header that matter here: ``LENGTH KEY=VALUE\\n``."""
    found: dict[str, str] = {}
    at = 0
    while at < len(raw):
        digits, space, _ = raw[at : at + 21].partition(b" ")
        if not space or not digits.isdigit():
            raise FormatError("tar: an extended header without the length of a record")
        end = at + int(digits)
        record = raw[at + len(digits) + 1 : end]
        key, equals, value = record[:-1].partition(b"=")
        if end > len(raw) or not equals or record[-1:] != b"\n":
            raise FormatError("tar: an extended header that is cut short")
        if key in (b"path", b"linkpath", b"size"):
            found[key.decode()] = _text(value)
        elif key.startswith(b"GNU.sparse"):
            found["GNU.sparse"] = ""
        at = end
    return found
