"""Scripts of system calls: what records them, and the calls themselves.

Imports nothing of Strongroom, so that it runs as any user.
"""

# ruff: noqa: PTH123, PTH208
# The calls themselves are what is tested, not what `pathlib` makes of them.

from __future__ import annotations

import ctypes
import errno
import os
import socket
import stat
from collections.abc import Callable
from typing import Any

CASES: dict[str, Callable[[Script], None]] = {}
_libc = ctypes.CDLL(None, use_errno=True)
OLD = (1_000_000_000_123_456_789, 1_100_000_000_987_654_321)
_AT_FDCWD = -100


class Script:
    """Records calls and what became of them."""

    def __init__(self, uid: int) -> None:
        self.uid = uid
        self.log: list[str] = []

    def do(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Call, and note the result or the errno."""
        result = None
        try:
            result = function(*args, **options)
            said = repr(result)
        except OSError as error:
            said = errno.errorcode.get(error.errno or 0, str(error))
        shown = ", ".join([repr(arg)[:40] for arg in args] + [f"{key}={value!r}" for key, value in options.items()])
        self.log.append(f"{function.__name__}({shown}) -> {said[:300]}")
        return result

    def note(self, what: str, value: object) -> None:
        self.log.append(f"{what}: {value!r}")

    def look(self, path: str) -> None:
        """Note everything about a path that two file systems must agree on."""
        try:
            found = os.lstat(path)
        except OSError as error:
            self.note(f"look {path}", errno.errorcode[error.errno or 0])
            return
        shown = [oct(found.st_mode), found.st_uid, found.st_gid]
        if not stat.S_ISDIR(found.st_mode):
            shown += [found.st_nlink, found.st_size]
        self.note(f"look {path}", shown)

    def age(self, path: str) -> None:
        """Make it old, so that `renewed` tells whether something touched it."""
        os.utime(path, ns=OLD, follow_symlinks=False)

    def renewed(self, path: str) -> None:
        self.note(f"{path} is modified", os.lstat(path).st_mtime_ns != OLD[1])


def case(function: Callable[[Script], None]) -> Callable[[Script], None]:
    CASES[function.__name__] = function
    return function


def touch(path: str, data: bytes = b"", mode: int = 0o644) -> None:
    fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, mode)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)


def read(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return file.read()


def renameat2(old: str, new: str, flags: int) -> None:
    if _libc.renameat2(_AT_FDCWD, os.fsencode(old), _AT_FDCWD, os.fsencode(new), flags) != 0:
        raise OSError(ctypes.get_errno(), "renameat2")


def syncfs(path: str) -> None:
    """Sync the whole file system, and hear of everything that failed since it was opened."""
    fd = os.open(path, os.O_RDONLY)
    try:
        if _libc.syncfs(fd) != 0:
            raise OSError(ctypes.get_errno(), "syncfs")
    finally:
        os.close(fd)


def opened(path: str, flags: int, mode: int = 0o777) -> str:
    fd = os.open(path, flags, mode)
    os.close(fd)
    return "open"


def sorted_names(path: str) -> list[str]:
    return sorted(os.listdir(path))


def bind(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path)
