"""An index of a vault that is authenticated only: for readers without its key (normative: docs/spec/vault.md).

It says which bytes of which data files are the content of what, and the digest of each content. Who has it from
somebody whom they trust gets from anybody's copy of the vault what was indexed, or nothing.

Rules:

- A copy of the vault is as hostile as whoever hands it over: what is written has the digest that the index names. So is
  an index: what it names lies below the destination, in files of their own, and nothing outside of the vault is read.
- What an index of some bytes names may fill a disk before a digest is compared: zeros are capped and written as holes,
  and what does not fit beside what is on the disk is refused before anything is written.
- An index is of one commit. Later ones may move contents; what has moved is refused, never mistaken.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

from strongroom.crypto import content_digest
from strongroom.errors import FormatError, TamperedError, TruncatedError, UsageError
from strongroom.sealed.layout import CHANGED_HINT, CUT_HINT, MAX_LENGTH
from strongroom.storage import Directory, Storage
from strongroom.vault.files import parse_data_name
from strongroom.vault.packs import missing
from strongroom.vault.paths import check_path
from strongroom.vault.rows import ROOT_INODE
from strongroom.vault.transfer import Progress, walk_vault
from strongroom.vault.vault import Vault

MAX_INDEX: Final = 1 << 30
MAX_ZEROS: Final = 1 << 36
"""Bytes of holes that an index may have: they take no room in it, and time to digest."""
_FORMAT: Final = "strongroom-index"
_VERSION: Final = 1
_CHUNK: Final = 1 << 20
_DIGEST: Final = 64


@dataclass(frozen=True, slots=True)
class Part:
    """A run of bytes: of a data file from an offset on, or zeros if `file` is empty."""

    file: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Indexed:
    """A regular file: its content is its parts, one after the other, and has this BLAKE3 digest."""

    path: str
    executable: bool
    blake3: str
    parts: tuple[Part, ...]

    @property
    def size(self) -> int:
        return sum(part.length for part in self.parts)


def make_index(vault: Vault, *, progress: Progress | None = None) -> bytes:
    """The index of the version that is open for reading. Every byte of it is read.

    Raises:
        UsageError: the vault is encrypted or open for writing, a name is not UTF-8, or its holes are too large.
        IntegrityError: a content is not what was committed.
    """
    if vault.encrypted:
        raise UsageError(
            f"{vault.name}: is encrypted: an index is of vaults that are authenticated only",
            hint="`strongroom seal --authenticated` makes one",
        )
    if vault.mode != "r" or vault.root is None:
        raise UsageError(f"{vault.name}: wanted one that is open for reading, and was committed")
    files, zeros = [], 0
    for path, inode in walk_vault(vault, ROOT_INODE):
        if not inode.is_file:
            continue
        check_path(path)
        with vault.open(path) as file:
            parts = [*map(_as_part, file.parts())]
            zeros += sum(part.length for part in parts if not part.file)
            if zeros > MAX_ZEROS:
                raise UsageError(f"{vault.name}: more than {MAX_ZEROS >> 30} GiB of holes, which no index takes")
            found = content_digest(_told(file, path, progress))
        executable = bool(inode.mode & 0o100)
        files.append(
            {
                "path": path,
                "executable": executable,
                "blake3": found.blake3.hex(),
                "parts": [[*astuple(part)] for part in parts],
            }
        )
    document = {"format": _FORMAT, "version": _VERSION, "root": str(vault.root), "files": files}
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode() + b"\n"


def _as_part(found: tuple[bytes, int, int]) -> Part:
    return Part(found[0].hex(), *found[1:])


def _told(file: Any, path: str, progress: Progress | None) -> Iterator[bytes]:
    while piece := file.read(_CHUNK):
        yield piece
        if progress:
            progress(path, len(piece))


def parse_index(raw: bytes) -> list[Indexed]:
    """Raises FormatError unless it is what `make_index` could have given."""
    if len(raw) > MAX_INDEX:
        raise FormatError(f"index: {len(raw)} bytes, wanted at most {MAX_INDEX}")
    try:
        document = json.loads(raw)
        if (document["format"], document["version"]) != (_FORMAT, _VERSION):
            raise FormatError(f"index: version {str(document['version'])[:20]}, wanted {_VERSION}")
        found = [_parse_file(entry) for entry in document["files"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise FormatError("index: is none", hint="`strongroom vault index VAULT` makes one") from None
    if sum(part.length for entry in found for part in entry.parts if not part.file) > MAX_ZEROS:
        raise FormatError(f"index: more than {MAX_ZEROS >> 30} GiB of zeros")
    paths = {entry.path for entry in found}
    if len(paths) != len(found):
        raise FormatError("index: a path appears twice")
    if inside := next((p for p in paths if any(str(above) in paths for above in PurePosixPath(p).parents)), None):
        raise FormatError(f"index: {inside[:100]!a} lies in a file")
    return found


def _parse_file(entry: dict[str, Any]) -> Indexed:
    path, executable, blake3 = entry["path"], entry["executable"], entry["blake3"]
    if type(path) is not str or type(executable) is not bool or type(blake3) is not str or len(blake3) != _DIGEST:
        raise ValueError
    try:
        check_path(path)
    except UsageError as error:
        raise FormatError(f"index: {error.message}") from None
    parts = tuple(Part(*part) for part in entry["parts"])
    for part in parts:
        if any(type(number) is not int or not 0 <= number <= MAX_LENGTH for number in (part.offset, part.length)):
            raise ValueError
        if type(part.file) is not str or (part.file and parse_data_name(part.file) is None):
            raise ValueError
    if sum(part.length for part in parts) > MAX_LENGTH:
        raise ValueError
    return Indexed(path, executable, blake3, parts)


def extract(
    index: bytes,
    directory: Directory,
    destination: str | os.PathLike[str],
    *,
    progress: Progress | None = None,
) -> list[str]:
    """Write what an index names to a new or empty directory, out of a copy of the vault, without a key.

    Links, empty directories and times are in no index.

    Returns:
        the paths, sorted.

    Raises:
        FormatError: the index cannot be read. Nothing was written.
        UsageError: there is no room for what it names. Nothing was written.
        FileExistsError: `destination` is not empty.
        TamperedError, TruncatedError: a content is not what was indexed. What was written before stays; it does not.
    """
    files, top = parse_index(index), Path(destination)
    top.mkdir(mode=0o700, parents=True, exist_ok=True)
    if any(top.iterdir()):
        raise FileExistsError(f"{top}: is not empty, and unpacking overwrites nothing")
    if os.sep == "\\" and (bad := next((each.path for each in files if set("\\:") & set(each.path)), None)):
        raise FormatError(f"index: {bad[:100]!a}, wanted no backslash or colon", hint="unpack it on Linux")
    needed, free = sum(part.length for each in files for part in each.parts if part.file), shutil.disk_usage(top).free
    if needed > free:
        raise UsageError(f"{top}: the index names {needed} bytes, and there is room for {free}")
    opened: dict[str, Storage] = {}
    try:
        for each in files:
            plain = top.joinpath(*PurePosixPath(each.path).parts)
            plain.parent.mkdir(parents=True, exist_ok=True)
            _write(each, plain, lambda name: _open(directory, opened, name), progress)
    finally:
        for storage in opened.values():
            storage.close()
    return sorted(each.path for each in files)


def _open(directory: Directory, opened: dict[str, Storage], name: str) -> Storage:
    if name not in opened:
        while opened:  # contents lie in the order in which they were written: one at a time is enough
            opened.popitem()[1].close()
        try:
            opened[name] = directory.open(name, "r", shared=True)
        except FileNotFoundError:
            raise missing("vault", bytes.fromhex(name)) from None
    return opened[name]


def _write(each: Indexed, plain: Path, find: Callable[[str], Storage], progress: Progress | None) -> None:
    descriptor = os.open(plain, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:

            def written() -> Iterator[bytes]:
                for piece, hole in _content(each, find):
                    if hole:
                        file.seek(len(piece), os.SEEK_CUR)
                    else:
                        file.write(piece)
                    yield piece
                    if progress:
                        progress(each.path, len(piece))

            found = content_digest(written())
            file.truncate()  # of a hole at its end
        if found.blake3.hex() != each.blake3:
            raise TamperedError(f"{each.path}: is not what was indexed", hint=CHANGED_HINT)
        plain.chmod(0o755 if each.executable else 0o644)
    except BaseException:
        plain.unlink(missing_ok=True)
        raise


def _content(each: Indexed, find: Callable[[str], Storage]) -> Iterator[tuple[bytes, bool]]:
    """Its pieces, each with whether it is of a hole."""
    for part in each.parts:
        storage = find(part.file) if part.file else None
        if storage is not None and storage.size() < part.offset + part.length:
            raise TruncatedError(f"{each.path}: data file {part.file} is too short", hint=CUT_HINT)
        for at in range(0, part.length, _CHUNK):
            piece = bytearray(min(_CHUNK, part.length - at))
            if storage is not None and storage.read_into(part.offset + at, piece) != len(piece):
                raise TruncatedError(f"{each.path}: data file {part.file} is too short", hint=CUT_HINT)
            yield bytes(piece), storage is None


__all__ = ["MAX_INDEX", "Indexed", "Part", "extract", "make_index", "parse_index"]
