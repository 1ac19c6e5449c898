"""A connection whose TLS the program makes itself, carried as it is: with nothing but TLS 1.3 to the named host in it.

Rules:

- Nothing is said to the host before the program's hello has all come, names that host, and hides nothing.
- Nothing reaches the program before the host has chosen TLS 1.3, but for one alert.
- Who the host is, the program judges: its certificates are encrypted.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from strongroom.errors import ChannelError
from strongroom.shield.network.hello import ALERT_SIZE, MAX_HELLO, TLS_1_3, client_hello, is_alert, server_version
from strongroom.shield.network.loop import READ, WRITE, Loop
from strongroom.shield.network.sockets import prepare, reset, unacknowledged

_MOST_HELLO: Final = 2 * MAX_HELLO
_LOOK: Final = 0.02


def named(hello: bytes, host: str) -> bool:
    """Whether a client's hello has all come, and offers TLS 1.3 to that host.

    Args:
        host: empty for an address, which a hello does not name.

    Raises:
        ChannelError: ``hello``, ``name``, ``version``: it is something else, is for another, or is older.
    """
    said = client_hello(hello)
    if said is None:
        if len(hello) > _MOST_HELLO:
            raise ChannelError("hello")
        return False
    if said.encrypted or said.name != host:
        raise ChannelError("name")
    if TLS_1_3 not in said.versions:
        raise ChannelError("version")
    return True


class Relay:
    """One of them, on one loop, from `begin` until both ends have ended.

    Args:
        inner: the program's connection.
        outer: the connected one to the host.
        hello: what the program has said, which is `named`.
        on_close: called once, with why in a word, empty where both ends have ended it.
    """

    def __init__(
        self,
        loop: Loop,
        inner: socket.socket,
        outer: socket.socket,
        hello: bytes,
        *,
        on_close: Callable[[str], None],
    ) -> None:
        self.loop, self._on_close = loop, on_close
        self._sockets = (inner, outer)
        self._pending = [hello, b""]  # from the inner one, and from the outer one
        self._ended = [False, False]
        self._passed = [False, False]
        self._events = [0, 0]
        self._deaf = False  # the host takes nothing any more
        self._answer: bytes | None = b""  # of the host's hello, until that has all come
        self.sent, self.received = len(hello), 0
        self.closed = False
        prepare(inner)
        prepare(outer, outer=True)

    def begin(self) -> None:
        self._step(lambda: self._send(0))

    def drain(self) -> None:
        """The program has ended: end it as soon as the host's machine has what was sent. On the loop's thread."""
        if self.closed:
            return
        if self._deaf or (self._passed[0] and not unacknowledged(self._sockets[1])):
            self.close("")
            return
        self.loop.later(_LOOK, self.drain)

    def close(self, why: str) -> None:
        """End it at once: in order where `why` is empty, else with a reset for both. On the loop's thread."""
        if self.closed:
            return
        self.closed = True
        self._on_close(why)
        for each in self._sockets:
            self.loop.remove(each.fileno())
            if why:
                reset(each)
            else:
                each.close()

    def _step(self, what: Callable[[], None]) -> None:
        if self.closed:
            return
        try:
            what()
            self._settle()
        except ChannelError as error:
            self.close(error.message)
        except OSError:
            self.close("cut")

    def _on_events(self, which: int, events: int) -> None:
        def act() -> None:
            if events & WRITE:
                self._send(1 - which)
            if events & ~WRITE and not self._ended[which] and not self._pending[which]:
                self._receive(which)

        self._step(act)

    def _receive(self, which: int) -> None:
        try:
            count = self._sockets[which].recv_into(self.loop.buffer)
        except BlockingIOError:
            return
        if not count:
            self._ended[which] = True
            return
        data = bytes(self.loop.buffer[:count])
        if which:
            self.received += count
            data = self._judged(data)
        elif self._deaf:
            return
        else:
            self.sent += count
        self._pending[which] = data
        self._send(which)

    def _judged(self, data: bytes) -> bytes:
        """What of the host's bytes may go on. Raises ChannelError."""
        if self._answer is None:
            return data
        self._answer += data
        if is_alert(self._answer):
            if len(self._answer) > ALERT_SIZE:
                raise ChannelError("hello")
            return data
        version = server_version(self._answer)
        if version is None:
            if len(self._answer) > _MOST_HELLO:
                raise ChannelError("hello")
            return b""
        if version != TLS_1_3:
            raise ChannelError("version")
        held, self._answer = self._answer, None
        return held

    def _send(self, which: int) -> None:
        """What came from there, to the other."""
        data = self._pending[which]
        if not data:
            return
        try:
            self._pending[which] = data[self._sockets[1 - which].send(data) :]
        except BlockingIOError:
            return
        except OSError:
            if which:
                raise
            self._deaf, self._pending[0] = True, b""  # what has come from there is still given to the program

    def _settle(self) -> None:
        for which in (0, 1):
            if self._ended[which] and not self._pending[which] and not self._passed[which]:
                if which and self._answer is not None and not is_alert(self._answer):
                    raise ChannelError("hello")  # it went before it said what it is
                self._passed[which] = True
                with suppress(OSError):
                    self._sockets[1 - which].shutdown(socket.SHUT_WR)
        if all(self._passed):
            self.close("")
            return
        for which, each in enumerate(self._sockets):
            events = READ if not self._pending[which] and not self._ended[which] else 0
            events |= WRITE if self._pending[1 - which] else 0
            before, self._events[which] = self._events[which], events
            if before == events:
                continue
            if not events:  # else one that is gone would be reported for ever
                self.loop.remove(each.fileno())
            elif not before:
                self.loop.add(each.fileno(), events, self._handler(which))
            else:
                self.loop.change(each.fileno(), events)

    def _handler(self, which: int) -> Callable[[int], None]:
        return lambda events: self._on_events(which, events)
