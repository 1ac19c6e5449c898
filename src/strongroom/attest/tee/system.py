"""The system calls that attesters make: one seam, where tests put a kernel of their own.

The pseudo-files of a TEE are no ordinary files. Whether one write is one request, whether closing commits, which error
a second reader gets: that is their interface. So the seam lies below all of it, at the calls themselves, and
`strongroom.testing` has a kernel that answers them.
"""

from __future__ import annotations

import os
from typing import Protocol

from strongroom.errors import EnclaveError


class System(Protocol):
    """Those calls, with the signatures and the `OSError`s of `os`, which is one of these."""

    def open(self, path: str, flags: int, /) -> int: ...
    def read(self, fd: int, length: int, /) -> bytes: ...
    def write(self, fd: int, data: bytes, /) -> int: ...
    def close(self, fd: int, /) -> None: ...
    def mkdir(self, path: str, mode: int, /) -> None: ...
    def rmdir(self, path: str, /) -> None: ...


def read_whole(system: System, path: str, limit: int) -> bytes:
    """What a pseudo-file holds, read through one descriptor, as its content may be another for the next.

    Raises:
        EnclaveError: it holds more than `limit` bytes.
        OSError: as the system says.
    """
    fd = system.open(path, os.O_RDONLY)
    try:
        content = b""
        while part := system.read(fd, limit + 1 - len(content)):
            content += part
            if len(content) > limit:
                raise EnclaveError(f"{path}: more than {limit} bytes")
        return content
    finally:
        system.close(fd)


def write_once(system: System, path: str, content: bytes) -> None:
    """Write `content` in one call, which is what pseudo-files take for one request, and close.

    Raises:
        EnclaveError: the system took a part of it only.
        OSError: as the system says.
    """
    fd = system.open(path, os.O_WRONLY)
    try:
        written = system.write(fd, content)
    finally:
        system.close(fd)
    if written != len(content):
        raise EnclaveError(f"{path}: {written} bytes written, wanted {len(content)} at once")
