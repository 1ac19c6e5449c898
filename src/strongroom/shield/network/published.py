"""Services of the program's that outsiders reach: TLS 1.3 outside, in clear to the program's port (docs/spec/mesh.md).

Rules:

- Outsiders are shown the certificate that the CAS has issued to this enclave, and after it the CAS's root. A renewed
  one is shown to whoever comes next; who is there stays.
- They show nothing, so none of them is trusted with more than a bounded share: of handshakes the oldest of the address
  with the most of them gives way, and one address holds a quarter of the connections at most. Where there is no room,
  of the address with the most of them goes who has carried nothing for the longest.
- The program finds them to come from one address, which is no member's; from further ones where its ports are used up,
  since each that an outsider ends first is kept from use for a minute.
"""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from ipaddress import IPv4Address, IPv4Network
from typing import Any, Final

from strongroom.shield.network.edge import Edge
from strongroom.shield.network.identity import Credentials
from strongroom.shield.network.listening import Listening
from strongroom.shield.network.loop import WRITE, Loop
from strongroom.shield.network.namespace import OUTSIDE
from strongroom.shield.network.openings import Openings
from strongroom.shield.network.sockets import bind_late, prepare, reset, whose

LIMIT: Final = 1024
"""Connections of one service at once."""
OUTSIDERS: Final = OUTSIDE.network_address + 1
"""Where outsiders seem to come from, inside."""
FURTHER: Final = IPv4Network("198.19.255.0/28")
"""Where from, if the ports there are used up."""
_SHARE = 4  # an address holds this part of them
_IDLE_SECONDS = 30.0  # without a byte, after which a connection may have to go for another
_LOOPBACK = "127.0.0.1"
_CLOSE_SECONDS = 5.0


@dataclass(frozen=True)
class Service:
    """One of the program's.

    Attributes:
        name: the policy's word for it.
        port: the program's, inside.
        listener: outside.
        endpoint: where that is, as numbers.
    """

    name: str
    port: int
    listener: socket.socket
    endpoint: str

    @classmethod
    def at(cls, listener: socket.socket, name: str, port: int) -> Service:
        """The one that is reached there. Raises OSError."""
        host, outside = listener.getsockname()[:2]
        return cls(name, port, listener, f"[{host}]:{outside}" if ":" in host else f"{host}:{outside}")


class Published:
    """All of an enclave's services, from `start` to `close`.

    Args:
        own: the enclave's address.
    """

    def __init__(
        self, own: IPv4Address, services: Sequence[Service], credentials: Credentials, loops: Sequence[Loop]
    ) -> None:
        self._services = [_Published(own, each, credentials, loops) for each in services]

    def start(self) -> None:
        for each in self._services:
            each.start()

    def drain(self, seconds: float) -> None:
        """The program has ended: wait until outsiders' machines have what it sent, for so many seconds at most."""
        ends = time.monotonic() + seconds
        for each in self._services:
            each.drain(ends)

    def close(self) -> None:
        """End all connections; the loops have ended."""
        for each in self._services:
            each.close()

    def status(self) -> list[dict[str, Any]]:
        """Of each service: connections, bytes, and refusals by why, as JSON."""
        return [each.status() for each in self._services]


@dataclass
class _State:
    """What the loops' threads share, under its lock."""

    live: dict[_Outsider, str] = field(default_factory=dict)  # with their addresses
    seen: dict[_Outsider, tuple[int, float]] = field(default_factory=dict)  # bytes of these, and since when
    of: Counter[str] = field(default_factory=Counter)
    openings: Openings = field(default_factory=Openings)
    opened: int = 0
    sent: int = 0
    received: int = 0
    refusals: Counter[str] = field(default_factory=Counter)


class _Published:
    """One service."""

    def __init__(self, own: IPv4Address, service: Service, credentials: Credentials, loops: Sequence[Loop]) -> None:
        self._own, self._service, self._credentials, self._loops = own, service, credentials, loops
        self._changed = threading.Condition()
        self._state = _State()
        self._next = 0
        self._places = [OUTSIDERS, *FURTHER.hosts()]  # the first is the one in use; under the lock
        self._listening = Listening(loops[0], service.listener, self._take, self._count)

    def start(self) -> None:
        self._listening.start()

    def _take(self, outer: socket.socket, address: str) -> None:
        address = whose(address)
        if not self._room_for(address):
            reset(outer)
            return
        self._next += 1
        loop = self._loops[self._next % len(self._loops)]
        tunnel = _Outsider(
            loop,
            outer,
            self._credentials.published,
            connect=self._connect,
            addresses=(str(self._own), _LOOPBACK),
            on_agreed=self._agreed,
            on_open=self._opened,
            on_close=self._closed,
        )
        with self._changed:
            state = self._state
            state.live[tunnel] = address
            state.of[address] += 1
            state.seen[tunnel] = 0, time.monotonic()
            pushed = state.openings.came(tunnel, address)
        if pushed is not None:
            pushed.loop.call(partial(pushed.close, "crowded"))
        loop.call(tunnel.begin)

    def _room_for(self, address: str) -> bool:
        """Whether one more may come from there; if not, it is counted. Somebody else may have to go for it."""
        with self._changed:
            state = self._state
            share = state.of[address] >= max(1, LIMIT // _SHARE)
            if not share and len(state.live) < LIMIT:
                return True
            idle = self._idle(address if share else None)
            if idle is None:
                self._count("limit")
                return False
            self._forget(idle)  # at once, so that it counts for nobody any more
        idle.loop.call(partial(idle.close, "crowded"))
        return True

    def _idle(self, address: str | None) -> _Outsider | None:
        """Who has carried nothing for the longest, of that address or of the one with the most; with the lock held."""
        state, now = self._state, time.monotonic()
        found, best = None, (0, 0.0)
        for tunnel, where in state.live.items():
            carried, since = tunnel.sent + tunnel.received, state.seen[tunnel]
            if carried != since[0]:
                state.seen[tunnel] = carried, now
            elif tunnel.opened and now - since[1] >= _IDLE_SECONDS and address in (None, where):
                rank = (state.of[where], now - since[1])
                if found is None or rank > best:
                    found, best = tunnel, rank
        return found

    def _connect(self, address: str) -> socket.socket:
        """To the program here, at one of its addresses."""
        for _ in self._places:
            with self._changed:
                place = self._places[0]
            inner = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
            try:
                inner.setblocking(False)
                bind_late(inner, place)
                with suppress(BlockingIOError):
                    inner.connect((address, self._service.port))
            except OSError as error:
                inner.close()
                if error.errno != errno.EADDRNOTAVAIL:
                    raise
                with self._changed:
                    if self._places[0] == place:
                        self._places.append(self._places.pop(0))
            else:
                return inner
        raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))

    def _agreed(self, tunnel: _Outsider) -> None:
        with self._changed:
            self._state.openings.done(tunnel)

    def _opened(self, tunnel: _Outsider) -> None:
        with self._changed:
            self._state.opened += 1

    def _closed(self, tunnel: _Outsider, why: str) -> None:
        with self._changed:
            state = self._state
            self._forget(tunnel)
            state.openings.done(tunnel)
            state.sent += tunnel.sent
            state.received += tunnel.received
            if why:
                self._count(why)
            self._changed.notify_all()

    def _forget(self, tunnel: _Outsider) -> None:
        """It is none of those that are there, if it was; with the lock held."""
        state = self._state
        address = state.live.pop(tunnel, None)
        if address is not None:
            del state.seen[tunnel]
            state.of[address] -= 1
            state.of += Counter()

    def _count(self, why: str) -> None:
        with self._changed:
            self._state.refusals[why] += 1

    def status(self) -> dict[str, Any]:
        with self._changed:
            state = self._state
            return {
                "name": self._service.name,
                "port": self._service.port,
                "endpoint": self._service.endpoint,
                "connections": sum(each.opened for each in state.live),
                "opened": state.opened,
                "sent": state.sent + sum(each.sent for each in state.live),
                "received": state.received + sum(each.received for each in state.live),
                "refusals": dict(sorted(state.refusals.items())),
            }

    def drain(self, ends: float) -> None:
        closed = threading.Event()

        def last() -> None:
            self._listening.close()
            closed.set()

        self._loops[0].call(last)
        closed.wait(_CLOSE_SECONDS)
        with self._changed:
            for tunnel in self._state.live:
                tunnel.loop.call(tunnel.drain if tunnel.opened else partial(tunnel.close, ""))
            self._changed.wait_for(lambda: not self._state.live, timeout=max(0.0, ends - time.monotonic()))

    def close(self) -> None:
        self._listening.close()
        with self._changed:
            tunnels = list(self._state.live)
        for tunnel in tunnels:
            with suppress(Exception):
                tunnel.close("closed")


class _Outsider(Edge):
    """A connection of somebody's who shows nothing.

    Args:
        connect: begins a connection to the program, at one of its addresses. Raises OSError.
        addresses: where it may listen: many servers do so on the loopback alone, unless they are told otherwise.
        on_agreed: called once TLS stands.
    """

    server = True
    anonymous = True

    def __init__(
        self,
        loop: Loop,
        outer: socket.socket,
        context: Any,
        *,
        connect: Callable[[str], socket.socket],
        addresses: Sequence[str],
        on_agreed: Callable[[Any], None],
        on_open: Callable[[Any], None],
        on_close: Callable[[Any, str], None],
    ) -> None:
        super().__init__(loop, outer, context, on_open=on_open, on_close=on_close)
        self._connect, self._left, self._on_agreed = connect, list(addresses), on_agreed
        self._trying: socket.socket | None = None

    def shaken(self, certificate: bytes) -> None:
        self.agreed = True
        self._on_agreed(self)
        self._try_next()

    def _try_next(self) -> None:
        self._trying = self._connect(self._left.pop(0))
        self.loop.add(self._trying.fileno(), WRITE, self._tried)

    def first(self, data: memoryview) -> memoryview:
        return data  # is held until the program has accepted, and no more is read meanwhile

    def _tried(self, events: int) -> None:
        assert self._trying is not None  # noqa: S101  # it is waited for
        trying = self._trying
        self.loop.remove(trying.fileno())
        if trying.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            if self._left:
                trying.close()
                self._trying = None
                self._guarded(self._try_next)
            else:
                self.close("refused")
            return
        prepare(trying)
        self.opens(trying)
        self._guarded(self._send_inner)

    def close(self, why: str) -> None:
        if not self.closed and self._trying is not None and self._inner is None:
            self.loop.remove(self._trying.fileno())
            reset(self._trying)
        super().close(why)
