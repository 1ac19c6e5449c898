"""The layers of a container image: unpacked over one another, and the tree that they make measured as one part.

Rules:

- Each layer has the digest that the image's manifest says, which is checked before anything is decompressed, and its
  content that of the image's configuration. What fails leaves nothing behind.
- No member of a layer leaves the tree: paths are relative and have no ``..``, and links on the way to one lead as they
  would with the tree as root. There are no devices, no more files and bytes than the caps, and set-id bits are dropped.
- A whiteout hides what lower layers have, never what its own layer has.
- The measurement covers kind, content, link target and what its owner may do, of everything by its path; no time, no
  owner, and nothing of what others may do: in an enclave there are none.

Source: OCI Image Format Specification 1.1, "Image Layer Filesystem Changeset".
"""

from __future__ import annotations

import hashlib
import os
import stat
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

from strongroom.crypto import equal
from strongroom.enclave.digests import Digests
from strongroom.enclave.image_paths import remove
from strongroom.enclave.measure import Entry, Part, part_digest
from strongroom.enclave.oci import Descriptor, Image, algorithm, blob_path
from strongroom.enclave.oci_zstd import Unzstd
from strongroom.enclave.tar import Member, TarReader
from strongroom.errors import EnclaveError, FormatError, TamperedError, UsageError

PART = "image"
_EMPTY = hashlib.sha256().digest()

MAX_FILES = 1_000_000
MAX_BYTES = 64 << 30
_MAX_LINKS = 40  # on the way to a path, as Linux has it
_MAX_DEPTH = 256
_MAX_NAME = 255
_PIECE = 1 << 20

_PLAIN = ("application/vnd.oci.image.layer.v1.tar", "application/vnd.docker.image.rootfs.diff.tar")
_GZIP = (
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
)
_ZSTD = (
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
)
_WHITEOUT, _OPAQUE = ".wh.", ".wh..wh..opq"


def unpack(image: Image, directory: Path, *, max_bytes: int = MAX_BYTES, max_files: int = MAX_FILES) -> None:
    """Unpack an image's layers into a new directory, which is deleted again if that fails.

    Raises:
        UsageError: the directory is there already.
        TamperedError: a layer is not what the image says.
        FormatError: a layer is malformed, leaves the tree, or is too large.
        EnclaveError: the file system refused.
    """
    try:
        directory.mkdir(mode=0o700)
    except FileExistsError:
        raise UsageError(f"{directory}: is there already", hint="name a new directory") from None
    try:
        tree = _Tree(directory, max_bytes, max_files)
        for layer, content in image.layers:
            # Headers count too: a stream of nothing else would go on for ever.
            _unpack_layer(image.layout, layer, content, tree, limit=max_bytes + 2048 * max_files)
    except OSError as error:
        remove(directory)
        raise EnclaveError(f"image: unpacking failed: {(error.strerror or str(error)).lower()}") from None
    except BaseException:
        remove(directory)
        raise


def _unpack_layer(layout: Path, layer: Descriptor, content: str, tree: _Tree, *, limit: int) -> None:
    if layer.media_type not in _OPENED:
        raise FormatError(
            f"layer: {layer.media_type[:100]} is not supported",
            hint="convert it: skopeo copy --dest-compress-format gzip",
        )
    opened = _OPENED[layer.media_type]
    path = blob_path(layout, layer)
    # The compressed bytes first: no decompressor sees what nobody vouched for.
    _check(path, layer)
    with path.open("rb") as file:
        stream = _Hashed(opened(file), algorithm(content), limit)
        tree.begin_layer()
        reader = TarReader(cast("BinaryIO", stream))
        for member in reader:
            tree.add(member, reader.pieces)
        stream.check(content)


def _check(path: Path, one: Descriptor) -> None:
    if path.stat().st_size != one.size:
        raise TamperedError(f"blob {one.digest[:23]}...: {path.stat().st_size} bytes, wanted {one.size}")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, algorithm(one.digest)).hexdigest()
    if not equal(found.encode(), one.digest.partition(":")[2].encode()):
        raise TamperedError(f"blob {one.digest[:23]}...: its digest is {found[:16]}...")


class _Hashed:
    """A stream that digests what was read of it, up to a limit."""

    def __init__(self, stream: Any, algorithm: str, limit: int) -> None:
        self._stream, self._state, self._left = stream, hashlib.new(algorithm), limit

    def read(self, size: int) -> bytes:
        piece: bytes = self._stream.read(size)
        self._state.update(piece)
        self._left -= len(piece)
        if self._left < 0:
            raise FormatError("image: has more bytes than it may", hint="raise the cap, or make it smaller")
        return piece

    def check(self, content: str) -> None:
        if not equal(self._state.hexdigest().encode(), content.partition(":")[2].encode()):
            raise TamperedError(f"layer: its content is not {content[:23]}..., as the image's configuration says")


class _Gunzip:
    """What a gzip file decompresses to, never more at once than was asked for; several members follow each other."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._engine = zlib.decompressobj(wbits=31)
        self._begun = False

    def read(self, size: int) -> bytes:
        while True:
            if self._engine.eof:
                raw = self._engine.unused_data or self._file.read(_PIECE)
                self._engine, self._begun = zlib.decompressobj(wbits=31), False
            else:
                raw = self._engine.unconsumed_tail or self._file.read(_PIECE)
            if not raw and not self._begun:
                return b""
            self._begun = True
            try:
                piece = self._engine.decompress(raw, size)
            except zlib.error as error:
                raise FormatError(f"layer: no gzip file: {str(error)[:100]}") from None
            if piece:
                return piece
            if not raw and not self._engine.eof:
                raise FormatError("layer: its gzip file is cut short")


_OPENED: dict[str, Callable[[BinaryIO], Any]] = {
    **dict.fromkeys(_PLAIN, lambda file: file),
    **dict.fromkeys(_GZIP, _Gunzip),
    **dict.fromkeys(_ZSTD, Unzstd),
}


class _Tree:
    """The tree that layers are laid over one another in."""

    def __init__(self, root: Path, max_bytes: int, max_files: int) -> None:
        self._root, self._bytes, self._files = root, max_bytes, max_files
        # What the present layer has put there, and the directories above that.
        self._fresh: set[Path] = set()
        self._above: set[Path] = set()

    def begin_layer(self) -> None:
        self._fresh, self._above = set(), {self._root}

    def add(self, member: Member, pieces: Callable[[], Iterator[bytes]]) -> None:
        """Put a member there, or hide what a whiteout says. Raises FormatError if it would leave the tree."""
        parts = _parts(member.path)
        if not parts:
            if member.kind != "directory":
                raise FormatError("layer: its root is no directory")
            return
        if parts[-1].startswith(_WHITEOUT):
            self._whiteout(parts)
            return
        self._count(member.size)
        place = self._parent(parts[:-1], make=True) / parts[-1]
        if not (member.kind == "directory" and _is_directory(place)):
            remove(place)
        match member.kind:
            case "directory":
                place.mkdir(exist_ok=True)
                place.chmod(member.mode & 0o777 | 0o700)
            case "file":
                with place.open("xb") as file:
                    for piece in pieces():
                        file.write(piece)
                place.chmod(member.mode & 0o777 | 0o400)
            case "symlink":
                if not member.link or "\0" in member.link:
                    raise FormatError(f"layer: {member.path[:100]!r} is a link to nothing")
                place.symlink_to(member.link)
            case "hardlink":
                inside = _parts(member.link)
                target = self._parent(inside[:-1], make=False) / inside[-1] if inside else self._root
                if target.is_symlink() or not target.is_file():
                    raise FormatError(f"layer: {member.path[:100]!r} is a hard link to what is no file")
                os.link(target, place)
        self._note(place)

    def _note(self, place: Path) -> None:
        self._fresh.add(place)
        while (place := place.parent) not in self._above:
            self._above.add(place)

    def _count(self, size: int) -> None:
        self._files -= 1
        self._bytes -= size
        if self._files < 0 or self._bytes < 0:
            raise FormatError("image: has more files or bytes than it may", hint="raise the cap, or make it smaller")

    def _parent(self, parts: Sequence[str], *, make: bool) -> Path:
        """A directory by its path in the tree: links on the way lead as they would with the tree as root."""
        told = "/".join(parts)[:100]
        place, pending, links = self._root, list(reversed(parts)), 0
        while pending:
            part = pending.pop()
            if part == "..":
                place = place if place == self._root else place.parent
                continue
            step = place / part
            try:
                mode = step.lstat().st_mode
            except FileNotFoundError:
                if not make:
                    raise FormatError(f"layer: {told!r} does not exist") from None
                self._count(0)
                step.mkdir(mode=0o755)
                step.chmod(0o755)
                self._note(step)
                mode = stat.S_IFDIR
            if stat.S_ISLNK(mode):
                links += 1
                if links > _MAX_LINKS:
                    raise FormatError(f"layer: {told!r}: too many links")
                target = os.readlink(step)  # noqa: PTH115
                if target.startswith("/"):
                    place = self._root
                pending += [each for each in reversed(target.split("/")) if each not in ("", ".")]
            elif stat.S_ISDIR(mode):
                place = step
                if len(place.parts) - len(self._root.parts) > _MAX_DEPTH:
                    raise FormatError(f"layer: more than {_MAX_DEPTH} directories in one another")
            else:
                raise FormatError(f"layer: {told!r} leads through a file")
        return place

    def _whiteout(self, parts: Sequence[str]) -> None:
        name = parts[-1].removeprefix(_WHITEOUT)
        if parts[-1] != _OPAQUE and (name in ("", ".", "..") or name.startswith(_WHITEOUT)):
            raise FormatError(f"layer: {parts[-1][:100]!r} is no whiteout of the specification's")
        try:
            directory = self._parent(parts[:-1], make=False)
        except FormatError:
            return  # there is nothing to hide
        if parts[-1] == _OPAQUE:
            self._hide_below(directory)
        else:
            self._hide(directory / name)

    def _hide(self, place: Path) -> None:
        """Remove what lower layers have there."""
        if _is_directory(place) and (place in self._above or place in self._fresh):
            self._hide_below(place)
        elif place not in self._fresh:
            remove(place)

    def _hide_below(self, directory: Path) -> None:
        for each in list(directory.iterdir()):
            self._hide(each)


def _is_directory(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _parts(path: str) -> list[str]:
    """The parts of a member's path. Raises FormatError if it is absolute, leads upwards, or is no path."""
    if path.startswith("/") or "\0" in path:
        raise FormatError(f"layer: got the path {path[:100]!r}, wanted a relative one")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise FormatError(f"layer: the path {path[:100]!r} leads upwards")
    if any(len(part.encode()) > _MAX_NAME for part in parts):
        raise FormatError(f"layer: a name of more than {_MAX_NAME} bytes")
    return parts


def measure_tree(root: Path, known: Digests | None = None) -> Part:
    """A file system as one measured part.

    An entry is named by its path and, of what it is, by its kind and what its owner may do: ``/bin/sh (file 7)``. No
    file of a program has a name that begins with a slash.

    Args:
        known: digests that need not be made again.

    Raises:
        FormatError: it has something else than files, directories and links.
        EnclaveError: a file cannot be read, or changes meanwhile.
    """
    entries: list[Entry] = []
    files: list[tuple[str, str]] = []
    pending = [os.fspath(root)]
    start = len(pending[0])
    while pending:
        with os.scandir(pending.pop()) as listing:
            for each in listing:
                name, mode = each.path[start:], each.stat(follow_symlinks=False).st_mode
                owner = mode >> 6 & 7
                if stat.S_ISDIR(mode):
                    pending.append(each.path)
                    entries.append(Entry(f"{name} (directory {owner})", each.path, _EMPTY, 0))
                elif stat.S_ISREG(mode):
                    files.append((f"{name} (file {owner})", each.path))
                elif stat.S_ISLNK(mode):
                    target = hashlib.sha256(os.fsencode(os.readlink(each.path))).digest()  # noqa: PTH115
                    entries.append(Entry(f"{name} (link)", each.path, target, 0))
                else:
                    raise FormatError(f"image: {name[:100]} is no file, directory or link")
    digests = (known or Digests()).of([path for _, path in files])
    entries += [Entry(name, path, *found) for (name, path), found in zip(files, digests, strict=True)]
    entries.sort()
    total = part_digest([(entry.name, entry.sha256) for entry in entries])
    return Part(PART, len(entries), sum(entry.size for entry in entries), total, tuple(entries))
