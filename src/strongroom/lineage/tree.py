"""The content digest of a data set: one BLAKE3 over everything in a directory tree, whoever holds it in whatever form.

::

    BLAKE3("strongroom/tree/v1" || 00 || for each file or link, by the bytes of its path:
           kind u8 || length of path u32 || path || size u64 || BLAKE3(content)[32])

Numbers are big-endian; the kind is 1 for a file and 2 for a symbolic link, whose content is its target; a path has no
leading slash. Directories, permission bits and times are no content (docs/spec/lineage.md).
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from strongroom.crypto import content_digest
from strongroom.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Buffer  # type: ignore[attr-defined,unused-ignore]  # Python 3.12

_LABEL = b"strongroom/tree/v1\0"
_FILE, _LINK = 1, 2
_CHUNK = 1 << 20

Entry = tuple[str, int, "Iterable[Buffer]"]
"""Path, kind, content."""


@dataclass(frozen=True)
class Tree:
    """What a tree holds.

    Attributes:
        digest: 32 bytes.
        files: how many files and links.
        size: of their contents together.
        contents: digest of each file and link by its path.
    """

    digest: bytes
    files: int
    size: int
    contents: dict[str, bytes]


class Holder(Protocol):
    """What is needed of a vault."""

    def files(self) -> list[str]: ...

    def stat(self, path: str, *, follow: bool = True) -> Any: ...

    def readlink(self, path: str) -> str: ...

    def open(self, path: str) -> Any: ...


def digest_tree(entries: Iterable[Entry]) -> Tree:
    """The digest of a tree, from its entries in any order."""
    rows = []
    contents: dict[str, bytes] = {}
    total = 0
    for path, kind, pieces in entries:
        found = content_digest(pieces)
        name = _bytes(path)
        rows.append((name, struct.pack(">BI", kind, len(name)), struct.pack(">Q", found.size) + found.blake3))
        contents[path] = found.blake3
        total += found.size
    framed = (part for name, head, tail in sorted(rows) for part in (head, name, tail))
    return Tree(content_digest([_LABEL, *framed]).blake3, len(rows), total, contents)


def vault_tree(vault: Holder, *, leave_out: Callable[[str], bool] = lambda path: False) -> Tree:
    """The tree in a vault, every block of it read and authenticated."""
    return digest_tree(_in_vault(vault, leave_out))


def _in_vault(vault: Holder, leave_out: Callable[[str], bool]) -> Iterator[Entry]:
    for path in vault.files():
        if leave_out(path):
            continue
        if vault.stat(path, follow=False).is_link:
            yield path, _LINK, [_bytes(vault.readlink(path))]
        else:
            try:
                file = vault.open(path)
            except OSError as error:
                if error.errno == errno.EINVAL:
                    continue  # a pipe or a socket, as a mount may have left
                raise
            with file:
                yield path, _FILE, pieces(file)


def directory_tree(directory: Path) -> Tree:
    """The tree below a directory: regular files and symbolic links, none of which is followed.

    Raises:
        UsageError: the permission bits of something in it do not let everything be listed and read. Others may still
            open by name what cannot be listed, so that nothing is passed over.
    """
    try:
        return digest_tree(_in_directory(directory))
    except PermissionError as error:
        raise UsageError(
            f"data: {error.filename} cannot be listed or read, wanted permission bits that let its owner",
            hint="chmod -R u+rwX the directory that was sealed, and seal it again",
        ) from None


def file_tree(file: Path) -> Tree:
    """The tree of one file, under its name."""
    with file.open("rb") as opened:
        return digest_tree([(file.name, _FILE, pieces(opened))])


def _in_directory(directory: Path) -> Iterator[Entry]:
    for top, folders, names in os.walk(directory, onerror=_raise):
        for name in [*names, *folders]:
            plain = Path(top, name)
            path = plain.relative_to(directory).as_posix()
            mode = plain.lstat().st_mode
            if stat.S_ISLNK(mode):
                yield path, _LINK, [_bytes(str(plain.readlink()))]
            elif stat.S_ISREG(mode):
                with plain.open("rb") as file:
                    yield path, _FILE, pieces(file)


def _raise(error: OSError) -> None:
    """What `os.walk` would pass over without a word."""
    raise error


def _bytes(path: str) -> bytes:
    return path.encode("utf-8", "surrogateescape")


def pieces(file: Any) -> Iterator[bytes]:
    """What is left of an open file, a mebibyte at a time."""
    while piece := file.read(_CHUNK):
        yield piece
