"""What the background process of a mount has to say, where `strongroom unmount` and a person can read it.

Its standard error is a file in memory, `/proc/PID/fd/2`: a full disk does not matter to it, only who may look into the
process can read it, and no name out of a vault gets to a disk by it. It ends with `COMMITTED`, or something was lost.
"""

from __future__ import annotations

import logging
import os
import sys

from strongroom.cli import output

NAME = "strongroom-mount"
COMMITTED = "strongroom: everything is committed"
_ERROR = "strongroom: error: "
_MAX_LOG = 1 << 20


def begin() -> None:
    """Make standard error that file, and have the library's log lines go there."""
    descriptor = os.memfd_create(NAME)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    output.set_log_handler(_Lines())


def committed() -> None:
    """Say that nothing was lost; the last line."""
    os.write(2, f"{COMMITTED}\n".encode())


class _Lines(logging.Handler):
    """Log lines to standard error, up to a length, and not one that is like the last."""

    def __init__(self) -> None:
        super().__init__()
        self._last = ""
        self._left = _MAX_LOG

    def emit(self, record: logging.LogRecord) -> None:
        line = f"strongroom: {record.getMessage()}\n"
        if line == self._last or len(line) > self._left:
            return
        self._last = line
        self._left -= len(line)
        sys.stderr.write(line)
        sys.stderr.flush()


class ServerLog:
    """What another process said, which may end meanwhile. `known` is False where this user cannot read it."""

    def __init__(self, process: str) -> None:
        self._descriptor: int | None = None
        path = f"/proc/{process}/fd/2"
        try:
            if os.readlink(path).startswith(f"/memfd:{NAME}"):  # noqa: PTH115  # no path
                self._descriptor = os.open(path, os.O_RDONLY)
        except OSError:
            pass

    @property
    def known(self) -> bool:
        return self._descriptor is not None

    def lines(self) -> list[str]:
        """All of it, without the prefix of each line and the last line that says that all is well."""
        return [line.removeprefix("strongroom: ") for line in self._read() if line != COMMITTED]

    def lost(self) -> str | None:
        """Of a process that has ended: why something was not committed; None if everything was, or it is not known."""
        read = self._read()
        if not self.known or (read and read[-1] == COMMITTED):
            return None
        errors = [line.removeprefix(_ERROR) for line in read if line.startswith(_ERROR)]
        return (errors or read or ["the process that served it was killed"])[-1]

    def _read(self) -> list[str]:
        if self._descriptor is None:
            return []
        size = os.fstat(self._descriptor).st_size
        return os.pread(self._descriptor, size, 0).decode(errors="replace").splitlines()

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
