"""A connection whose TLS the program makes itself, carried as it is: with nothing but TLS 1.3 to the named host in it.

Rules:

- Nothing is said to the host before the program's hello has all come, names that host, and hides nothing; and nothing
  but that before the host has chosen TLS 1.3. The same goes for the second hello that it may ask for (`greeting`).
- Nothing reaches the program before the host has chosen TLS 1.3, but for that, or one alert.
- A host that cuts the connection takes nothing from the program that had come before.
- Who the host is, the program judges: its certificates are encrypted.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from strongroom.errors import ChannelError
from strongroom.shield.network.greeting import Greeting
from strongroom.shield.network.loop import READ, WRITE, Loop
from strongroom.shield.network.sockets import prepare, reset, unacknowledged
from strongroom.shield.network.tunnel import DEADLINE

_LOOK: Final = 0.02


class Relay:
    """One of them, on one loop, from `begin` until both ends have ended.

    Args:
        inner: the program's connection.
        outer: the connected one to the host.
        hello: what the program has said, which is `named`.
        host: as of `Greeting`.
        on_close: called once, with why in a word, empty where both ends have ended it.
    """

    def __init__(
        self,
        loop: Loop,
        inner: socket.socket,
        outer: socket.socket,
        hello: bytes,
        *,
        host: str,
        on_close: Callable[[str], None],
    ) -> None:
        self.loop, self._on_close = loop, on_close
        self._sockets = (inner, outer)
        self._greeting = Greeting(host)
        self._pending = list(self._greeting.heard(0, hello))  # from the inner one, and from the outer one
        self._ended = [False, False]
        self._passed = [False, False]
        self._events = [0, 0]
        self._deaf = False  # the host takes nothing any more
        self._cut = False  # by the host, and the program does not know yet
        self.sent, self.received = len(hello), 0
        self.closed = False
        prepare(inner)
        prepare(outer, outer=True)

    def begin(self) -> None:
        self._step(lambda: self._send(0))
        self.loop.later(DEADLINE, self._late)

    def _late(self) -> None:
        if not self._greeting.stands:
            self.close("timeout")

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
        except OSError:
            if not which or not self._greeting.stands:
                raise
            self._ended[1] = self._cut = self._deaf = True
            self._pending[0] = b""
            self.loop.later(_LOOK, self._cut_once_given)
            return
        if not count:
            self._ended[which] = True
            return
        data = bytes(self.loop.buffer[:count])
        if which:
            self.received += count
        elif self._deaf:
            return
        else:
            self.sent += count
        if self._greeting.stands:
            self._pending[which] = data
            self._send(which)
            return
        for each, more in enumerate(self._greeting.heard(which, data)):
            self._pending[each] += more
            self._send(each)

    def _cut_once_given(self) -> None:
        if self.closed:
            return
        if self._pending[1] or unacknowledged(self._sockets[0]):
            self.loop.later(_LOOK, self._cut_once_given)
        else:
            self.close("cut")

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
            if self._ended[which] and not self._waits(which) and not self._passed[which]:
                if which and not self._greeting.stands and not self._greeting.refused:
                    raise ChannelError("hello")  # it went before it said what it is
                self._passed[which] = True
                with suppress(OSError):
                    self._sockets[1 - which].shutdown(socket.SHUT_WR)
        if all(self._passed):
            self.close("")
            return
        for which, each in enumerate(self._sockets):
            takes = not self._pending[which] and not self._ended[which] and (which or not self._greeting.full)
            events = READ if takes else 0
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

    def _waits(self, which: int) -> bool:
        """Whether something that came from there has not gone on, or an end that is not one in order."""
        return bool(self._pending[which] or (not which and self._greeting.held) or (which and self._cut))

    def _handler(self, which: int) -> Callable[[int], None]:
        return lambda events: self._on_events(which, events)
