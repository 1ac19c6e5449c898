"""One connection of a program's to a host outside, from when it was accepted until it has ended (`egress`).

1. Where the program makes TLS itself, its first message has to come, and to be for this host.
2. The machine's owner is asked for the host's addresses and for sockets, and they are tried one after the other.
3. Bytes are carried: as they are (`relay`), or through TLS that is made here. Then the program's own TLS, if it speaks
   that, ends here as well (`within`).
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from strongroom.errors import ChannelError, StrongroomError
from strongroom.shield.network.edge import Edge
from strongroom.shield.network.greeting import named
from strongroom.shield.network.hello import HANDSHAKE_BEGINS, is_handshake
from strongroom.shield.network.loop import READ, WRITE, Loop
from strongroom.shield.network.relay import Relay
from strongroom.shield.network.sockets import prepare, reset
from strongroom.shield.network.tunnel import DEADLINE
from strongroom.shield.network.within import Ended, Within

_TRY_SECONDS = 5.0
_PIECE = 1 << 14
_LOOK = 0.05


@dataclass(frozen=True)
class Host:
    """One that the program may reach.

    Attributes:
        name: a domain, or an address.
        context: for the TLS that this proxy makes; None where the program makes its own.
    """

    name: str
    port: int
    context: ssl.SSLContext | None

    @property
    def shown(self) -> str:
        """As hellos name it: addresses are not named."""
        return "" if is_address(self.name) else self.name


class Door(Protocol):
    """What a way belongs to. Its methods are called from loops' threads."""

    host: Host
    within: Within

    def dial(self, way: Way) -> None:
        """Have it called with sockets (`Way.connect`), in its turn."""

    def dialled(self) -> None:
        """One that was dialled stands, or has ended: it is another's turn."""

    def opened(self) -> None:
        """One carries bytes."""

    def ended(self, way: Way, why: str) -> None:
        """It has, with why in a word, empty where both ends have ended it."""

    def forget(self) -> None:
        """Nobody answers where the host was said to be."""


class Way:
    """One connection of the program's, on one loop, from when it was accepted until it has ended."""

    def __init__(self, door: Door, inner: socket.socket, loop: Loop) -> None:
        self._door, self._inner, self.loop = door, inner, loop
        self._hello = b""
        self._reading = self._dialling = self._draining = False
        self._awaited = False  # its sockets are on their way
        self._left: list[tuple[socket.socket, str]] = []
        self._trying: socket.socket | None = None
        self._carrier: Originated | Relay | None = None
        self.carries = self.closed = False
        prepare(inner)

    @property
    def sent(self) -> int:
        return self._carrier.sent if self._carrier is not None else 0

    @property
    def received(self) -> int:
        return self._carrier.received if self._carrier is not None else 0

    @property
    def doubt(self) -> str:
        """What OpenSSL has against the host's certificate, if that ended it."""
        return self._carrier.doubt if isinstance(self._carrier, Originated) else ""

    def begin(self) -> None:
        if self._door.host.context is not None:
            self._dial()
            return
        self._reading = True
        self.loop.add(self._inner.fileno(), READ, self._on_hello)
        self.loop.later(DEADLINE, self._late)

    def _late(self) -> None:
        if self._reading:
            self.close("timeout")

    def _on_hello(self, events: int) -> None:
        try:
            piece = self._inner.recv(_PIECE)
            self._hello += piece
            complete = named(self._hello, self._door.host.shown)
            if not piece and not complete:
                self.close("hello" if self._hello else "")
                return
        except BlockingIOError:
            return
        except ChannelError as error:
            self.close(error.message)
            return
        except OSError:
            self.close("cut")
            return
        if complete:
            self._reading = False
            self.loop.remove(self._inner.fileno())
            self._dial()

    def _dial(self) -> None:
        self._dialling = self._awaited = True
        self._door.dial(self)

    def connect(self, found: list[tuple[socket.socket, str]]) -> None:
        """Try these, one after the other."""
        self._awaited = False
        self._left = found
        if self.closed:
            self._let_go()
        else:
            self._try_next()

    def _try_next(self) -> None:
        while self._left:
            outer, address = self._left.pop(0)
            try:
                if outer.family != family_of(address) or outer.type != socket.SOCK_STREAM:
                    raise OSError  # the machine's owner has sent another kind
                outer.setblocking(False)
                outer.connect((address, self._door.host.port))
            except BlockingIOError:
                pass
            except OSError:
                outer.close()
                continue
            self._trying = outer
            self.loop.add(outer.fileno(), WRITE, self._tried)
            self.loop.later(_TRY_SECONDS, partial(self._no_answer, outer))
            return
        self._door.forget()
        self.close("unreachable")

    def _no_answer(self, outer: socket.socket) -> None:
        if self._trying is outer:
            self._drop_trying()
            self._try_next()

    def _tried(self, events: int) -> None:
        outer = self._trying
        assert outer is not None  # noqa: S101  # it is waited for
        if outer.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._drop_trying()
            self._try_next()
            return
        self.loop.remove(outer.fileno())
        self._trying = None
        for other, _ in self._left:
            other.close()
        self._left = []
        try:
            self._carry(outer)
        except (StrongroomError, ssl.SSLError, OSError):
            outer.close()
            self.close("unreachable")

    def _carry(self, outer: socket.socket) -> None:
        host = self._door.host
        if host.context is None:
            self._carrier = Relay(self.loop, self._inner, outer, self._hello, host=host.shown, on_close=self._ended)
            self._open(None)
        else:
            self._carrier = Originated(
                self.loop,
                outer,
                host.context,
                inner=self._inner,
                name=host.name,
                within=self._door.within,
                on_agreed=self._dialled,
                on_open=self._open,
                on_close=lambda tunnel, why: self._ended(why),
            )
        self._carrier.begin()

    def _open(self, tunnel: object) -> None:
        self.carries = True
        self._dialled()
        self._door.opened()

    def _dialled(self) -> None:
        if self._dialling:
            self._dialling = False
            self._door.dialled()

    def _drop_trying(self) -> None:
        if self._trying is not None:
            self.loop.remove(self._trying.fileno())
            self._trying.close()
            self._trying = None

    def _let_go(self) -> None:
        self._drop_trying()
        for other, _ in self._left:
            other.close()
        self._left = []
        self._dialled()

    def _ended(self, why: str) -> None:
        self.closed = True
        self._let_go()
        self._door.ended(self, why)

    def drain(self) -> None:
        """The program here has ended. On the loop's thread."""
        if self._carrier is not None and not self.closed and not self._draining:
            self._draining = True
            self._carrier.drain()
        elif not self.closed:
            with suppress(BlockingIOError, OSError):
                if not self._hello and not self._inner.recv(1, socket.MSG_PEEK):
                    self.close("")  # it has ended, and has said nothing
                    return
            self.loop.later(_LOOK, self.drain)

    def close(self, why: str) -> None:
        """End it, with a reset for the program where it says why."""
        if self.closed:
            return
        if self._carrier is not None:
            self._carrier.close(why)
            return
        self._reading = False
        self.loop.remove(self._inner.fileno())
        if self._awaited:
            self.closed = True  # `connect` lets them go
            self._door.ended(self, why)
        else:
            self._ended(why)
        if why:
            reset(self._inner)
        else:
            self._inner.close()

    def abandon(self) -> None:
        """The same, when the loop has ended."""
        if isinstance(self._carrier, Originated):
            self._carrier.abandon()
        else:
            self.close("closed")


class Originated(Edge):
    """A connection of the program's that leaves as TLS of this proxy's."""

    def __init__(
        self,
        loop: Loop,
        outer: socket.socket,
        context: ssl.SSLContext,
        *,
        inner: socket.socket,
        name: str,
        within: Within,
        on_agreed: Callable[[], None],
        on_open: Callable[[Any], None],
        on_close: Callable[[Any, str], None],
    ) -> None:
        super().__init__(loop, outer, context, name=name, on_open=on_open, on_close=self._over)
        self._inner_first, self._name, self._within = inner, name, within
        self._on_agreed, self._tell = on_agreed, on_close
        self._ending: Ended | None = None
        self._spoken = False
        self._until = 0.0
        self._why = ""

    def shaken(self, certificate: bytes) -> None:
        self.agreed = True
        self._on_agreed()
        self.loop.add(self._inner_first.fileno(), READ, lambda events: self._guarded(self._decide))

    def first(self, data: memoryview) -> memoryview:
        self._spoken = True  # in a protocol where the host speaks first
        self._decide()
        return data

    def _decide(self) -> None:
        """One of the two has spoken: is what the program says TLS?"""
        self.loop.remove(self._inner_first.fileno())
        with suppress(BlockingIOError):
            said = self._inner_first.recv(len(HANDSHAKE_BEGINS), socket.MSG_PEEK)
            if is_handshake(said):
                self._end_tls()
            elif said and HANDSHAKE_BEGINS.startswith(said) and not self._spoken:
                self._look_again()
                return
        self.opens(self._inner_first)

    def _look_again(self) -> None:
        """The program has said the half of what TLS begins with: wait for the rest, but not for ever."""

        def look() -> None:
            if not self.opened:
                self._spoken = self._spoken or time.monotonic() >= self._until
                self._guarded(self._decide)

        self._until = self._until or time.monotonic() + DEADLINE
        self.loop.later(_LOOK, look)

    def _too_late(self) -> None:
        pass  # nobody need say anything

    def _end_tls(self) -> None:
        """The program makes TLS of its own: end it here, as what the host would not understand within ours."""
        ours, theirs = socket.socketpair()
        for each in (ours, theirs):
            each.setblocking(False)
        context = self._within.context(self._name)
        self._ending = Ended(self.loop, self._inner_first, context, inner=theirs, on_end=self._ending_over)
        self._inner_first = ours
        self._ending.begin()

    def _ending_over(self, why: str) -> None:
        if self.closed:
            self._tell(self, self._why)
        elif why:
            self.close(why)

    def _over(self, tunnel: object, why: str) -> None:
        self._why = why
        if self._ending is None or self._ending.closed:
            self._tell(self, why)

    def close(self, why: str) -> None:
        if self.closed:
            return
        if self._inner is None:
            self._inner = self._inner_first
        super().close(why)
        if why and self._ending is not None:
            self._ending.cut(why)

    def abandon(self) -> None:
        """End it with all that belongs to it; the loop has ended."""
        self.close("closed")
        if self._ending is not None:
            self._ending.close("closed")


def is_address(name: str) -> bool:
    for family in (socket.AF_INET, socket.AF_INET6):
        with suppress(OSError, ValueError):
            socket.inet_pton(family, name)
            return True
    return False


def family_of(address: str) -> int:
    return socket.AF_INET6 if ":" in address else socket.AF_INET
