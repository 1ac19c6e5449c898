"""How many connections a server has open, whether or not their handshake has ended."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import Protocol


class Abortable(Protocol):
    def abort(self) -> None: ...


class Connections:
    """A server's connections, so many at most: for a new one the oldest that has not ended its handshake gives way."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._open: set[Abortable] = set()
        self._unfinished: dict[Abortable, None] = {}  # in the order in which they came

    def made(self, connection: Abortable) -> None:
        """It came. It is aborted itself if all others have ended their handshake."""
        if len(self._open) >= self._most:
            leaves = next(iter(self._unfinished), connection)
            self.lost(leaves)
            leaves.abort()
            if leaves is connection:
                return
        self._open.add(connection)
        self._unfinished[connection] = None

    def finished(self, connection: Abortable) -> None:
        """Its handshake ended."""
        self._unfinished.pop(connection, None)

    def lost(self, connection: Abortable) -> None:
        self._open.discard(connection)
        self._unfinished.pop(connection, None)


def have_descriptors(wanted: int) -> None:
    """Let this process have so many files open, or as many as it may say for itself."""
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
    if soft != resource.RLIM_INFINITY and soft < most:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
