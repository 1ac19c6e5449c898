"""A listener on a loop: accepts what comes, a few at a time, and pauses where there are no descriptors."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Final

from strongroom.shield.network.loop import READ, Loop
from strongroom.shield.network.sockets import reset

_ACCEPTED: Final = 64  # at one turn
_NO_DESCRIPTORS_SECONDS: Final = 0.1


class Listening:
    """One of them, on one loop, from `start` to `close`.

    Args:
        take: is given each connection and its peer's address; what it raises as OSError resets the connection.
        count: is told ``descriptors`` where there are none, and ``unreachable`` where `take` raised.
    """

    def __init__(
        self,
        loop: Loop,
        listener: socket.socket,
        take: Callable[[socket.socket, str], None],
        count: Callable[[str], None],
    ) -> None:
        self._loop, self._listener, self._take, self._count = loop, listener, take, count
        self._closed = False

    def start(self) -> None:
        self._listener.setblocking(False)
        self._loop.call(lambda: self._loop.add(self._listener.fileno(), READ, lambda events: self.accept()))

    def accept(self) -> None:
        """All that wait, but not too many at once. On the loop's thread."""
        for _ in range(_ACCEPTED):
            if self._closed:
                return
            try:
                connection, peer = self._listener.accept()
            except BlockingIOError:
                return
            except ConnectionError:
                continue  # it went before it was accepted
            except OSError:
                self._count("descriptors")
                self._loop.change(self._listener.fileno(), 0)
                self._loop.later(_NO_DESCRIPTORS_SECONDS, self._again)
                return
            try:
                self._take(connection, str(peer[0]))
            except OSError:
                self._count("unreachable")
                reset(connection)

    def _again(self) -> None:
        if not self._closed:
            self._loop.change(self._listener.fileno(), READ)

    def close(self) -> None:
        """Accept nothing more. On the loop's thread, or when that has ended."""
        if not self._closed:
            self._closed = True
            self._loop.remove(self._listener.fileno())
            self._listener.close()
