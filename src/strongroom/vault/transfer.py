"""Between a vault and plain files: `pack`, `unpack`."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from strongroom.errors import FormatError, UsageError
from strongroom.storage import LocalDirectory
from strongroom.vault.paths import check_path
from strongroom.vault.vault import MODE_BITS, Vault

_CHUNK = 1 << 20
_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def pack(source: str | os.PathLike[str], vault: Vault) -> list[str]:
    """Put a file, or all files of a directory, into a writable vault; return their paths there. Does not commit.

    A single file gets its own name, a directory's files their paths below it. Empty directories leave no trace.

    Raises:
        UsageError: there is a symbolic link, a device or another thing that is no regular file, or `source` holds the
            vault itself. Nothing is left out in silence.
    """
    top = Path(source)
    if not top.is_dir() or top.is_symlink():
        check_path(top.name)
        put(top, vault, top.name)
        return [top.name]
    if isinstance(vault.directory, LocalDirectory) and vault.directory.path.resolve().is_relative_to(top.resolve()):
        raise UsageError(f"source: {top} holds the vault {vault.directory.path} itself")
    packed = []
    for path, plain in sorted(walk_files(top)):
        put(plain, vault, path)
        packed.append(path)
    return packed


def put(plain: Path, vault: Vault, path: str) -> None:
    """Copy one regular file into a writable vault, with its permission bits.

    Raises:
        UsageError: `plain` is no regular file.
    """
    # Look first: opening a device or a pipe can do harm. Then open without following links, and look again.
    if not stat.S_ISREG(plain.lstat().st_mode):
        raise _irregular(plain)
    with os.fdopen(os.open(plain, os.O_RDONLY | _NO_FOLLOW), "rb", buffering=0) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise _irregular(plain)
        bits = stat.S_IMODE(status.st_mode) & MODE_BITS
        with vault.open(path, "wb", permissions=bits) as sealed:
            buffer = memoryview(bytearray(_CHUNK))
            while count := file.readinto(buffer):
                sealed.write(buffer[:count])


def unpack(vault: Vault, destination: str | os.PathLike[str]) -> list[str]:
    """Decrypt all files of a vault into a directory that is new or empty; return their paths.

    Directories that are made can be entered by their owner only.

    Raises:
        FileExistsError: `destination` is not empty. Nothing is ever overwritten.
        IntegrityError: a data file is not what was committed. What was written before that stays; what failed does not.
    """
    top = Path(destination)
    top.mkdir(mode=0o700, parents=True, exist_ok=True)
    if any(top.iterdir()):
        raise FileExistsError(f"{top}: is not empty, and unpacking overwrites nothing")
    paths = vault.files()
    buffer = memoryview(bytearray(_CHUNK))
    for path in paths:
        target = _below(top, path)
        for parent in reversed(target.relative_to(top).parents[:-1]):
            (top / parent).mkdir(mode=0o700, exist_ok=True)
        bits = vault.stat(path).mode
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_FOLLOW
        with vault.open(path) as sealed, os.fdopen(os.open(target, flags, 0o600), "wb", buffering=0) as plain:
            try:
                while count := sealed.readinto(buffer):
                    _write_all(plain.fileno(), buffer[:count])
            except BaseException:
                target.unlink(missing_ok=True)
                raise
        target.chmod(bits)
    return paths


def _write_all(fd: int, view: memoryview) -> None:
    while view:
        view = view[os.write(fd, view) :]


def _below(top: Path, path: str) -> Path:
    """The plain path for `path`, which on Windows may hold characters that lead elsewhere."""
    if os.sep == "\\" and any(c in path for c in "\\:"):
        raise FormatError(f"path in vault: {path!a}, wanted no backslash or colon", hint="unpack it on Linux")
    return top.joinpath(*PurePosixPath(path).parts)


def walk_files(top: Path) -> Iterator[tuple[str, Path]]:
    """(path in the vault, plain path) of everything below `top` that is no directory."""
    with os.scandir(top) as entries:
        found = list(entries)
    for entry in found:
        plain = top / entry.name
        if entry.is_dir(follow_symlinks=False):
            for path, below in walk_files(plain):
                yield f"{entry.name}/{path}", below
        else:
            yield entry.name, plain


def _irregular(plain: Path) -> UsageError:
    kind = "a symbolic link" if plain.is_symlink() else "no regular file"
    return UsageError(f"{plain}: is {kind}, and a vault holds regular files only", hint="replace or remove it")
