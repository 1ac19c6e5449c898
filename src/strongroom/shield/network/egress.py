"""Hosts outside that the program may reach: each named, each by TLS 1.3 alone (docs/spec/mesh.md).

Rules:

- A host has a door: an address and a port inside, at which this proxy listens. There is no other way to it.
- To its proxy the program speaks in clear, or TLS: that ends here (`within`), so that what follows holds either way.
- Whoever answers in a host's name shows a certificate for it under the roots that the policy names, to this proxy,
  before a byte of the program's leaves. Where the program makes TLS itself, it judges that, and this proxy sees to it
  that there is nothing but TLS 1.3 to that name (`relay`).
- The machine's owner looks names up, and makes the connections: neither is trusted with anything.
- Each host is counted by itself, and so is what is refused. A host that does not answer holds no other up.
"""

from __future__ import annotations

import queue
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Protocol

from strongroom.shield.network.listening import Listening
from strongroom.shield.network.loop import Loop
from strongroom.shield.network.sockets import reset
from strongroom.shield.network.way import Host, Way, family_of, is_address
from strongroom.shield.network.within import Within

LIMIT: Final = 1024
"""Connections to one host at once."""
_OPENING = 64  # of these, that do not carry bytes yet; further ones wait
_TRIED = 4  # addresses of a host, of those that its name has
_KNOWN_SECONDS = 30.0  # for which a name is not looked up again
_CLOSE_SECONDS = 5.0


class Wire(Protocol):
    """What the machine's owner does for one host. Each call takes as long as he likes."""

    def resolve(self) -> Sequence[str]:
        """The host's addresses. Raises StrongroomError."""

    def socket(self, family: int) -> socket.socket:
        """One outside, of that family, that is not connected. Raises StrongroomError."""


def egress_context(roots: Sequence[bytes]) -> ssl.SSLContext:
    """TLS 1.3 to a host that shows a certificate of its name under one of these roots, in DER. Raises ssl.SSLError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # which checks names
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.hostname_checks_common_name = False  # names are those of subjectAltName (RFC 9525, section 2)
    context.load_verify_locations(cadata=b"".join(roots))
    return context


class Egress:
    """All doors, from `start` to `close`.

    Args:
        doors: of each host, the listener inside and the wire outside.
        within: for TLS of the program's that is to end here.
    """

    def __init__(
        self, doors: Sequence[tuple[Host, socket.socket, Wire]], loops: Sequence[Loop], within: Within
    ) -> None:
        self._doors = [_Door(host, listener, wire, loops, within) for host, listener, wire in doors]

    def start(self) -> None:
        for door in self._doors:
            door.start()

    def drain(self, seconds: float) -> None:
        """The program has ended: wait until hosts' machines have what it sent, for so many seconds at most."""
        ends = time.monotonic() + seconds
        for door in self._doors:
            door.drain(ends)

    def close(self) -> None:
        """End all connections; the loops have ended."""
        for door in self._doors:
            door.close()

    def status(self) -> list[dict[str, Any]]:
        """Of each host: connections, bytes, and refusals by why, as JSON; OpenSSL's last doubt of a certificate."""
        return [door.status() for door in self._doors]


@dataclass
class _Counts:
    opened: int = 0
    sent: int = 0
    received: int = 0
    refusals: Counter[str] = field(default_factory=Counter)
    doubt: str = ""


class _Door:
    """What leads to one host."""

    def __init__(self, host: Host, listener: socket.socket, wire: Wire, loops: Sequence[Loop], within: Within) -> None:
        self.host, self._wire, self._loops, self.within = host, wire, loops, within
        self._listening = Listening(loops[0], listener, self._take, self.count)
        self._queue: queue.SimpleQueue[Way | None] = queue.SimpleQueue()
        self._dialler = threading.Thread(target=self._dial_all, name="egress-dial", daemon=True)
        self._changed = threading.Condition()
        self._ways: set[Way] = set()
        self._opening = 0
        self._waiting: list[Way] = []
        self._counts = _Counts()
        self._known: tuple[float, Sequence[str]] = (0.0, ())
        self._next = 0

    def start(self) -> None:
        self._dialler.start()
        self._listening.start()

    def _take(self, inner: socket.socket, peer: str) -> None:
        with self._changed:
            if len(self._ways) >= LIMIT:
                self.count("limit")
                reset(inner)
                return
            self._next += 1
            way = Way(self, inner, self._loops[self._next % len(self._loops)])
            self._ways.add(way)
        way.loop.call(way.begin)

    # Told by ways, from their loops' threads.

    def dial(self, way: Way) -> None:
        with self._changed:
            if self._opening >= _OPENING:
                self._waiting.append(way)
                return
            self._opening += 1
        self._queue.put(way)

    def dialled(self) -> None:
        """One that was dialled carries bytes now, or has ended."""
        with self._changed:
            following = self._waiting.pop(0) if self._waiting else None
            self._opening -= following is None
        if following is not None:
            self._queue.put(following)

    def opened(self) -> None:
        with self._changed:
            self._counts.opened += 1

    def ended(self, way: Way, why: str) -> None:
        with self._changed:
            self._ways.discard(way)
            with suppress(ValueError):
                self._waiting.remove(way)
            self._counts.sent += way.sent
            self._counts.received += way.received
            self._counts.doubt = way.doubt or self._counts.doubt
            if why:
                self.count(why)
            self._changed.notify_all()

    def count(self, why: str) -> None:
        with self._changed:
            self._counts.refusals[why] += 1

    # Towards the machine's owner, on a thread of its own.

    def _dial_all(self) -> None:
        while (way := self._queue.get()) is not None:
            found: list[tuple[socket.socket, str]] = []
            try:
                for address in self._addresses():
                    found.append((self._wire.socket(family_of(address)), address))
            except Exception:  # whatever the owner answers, the thread goes on
                self.forget()
            way.loop.call(partial(way.connect, found))

    def forget(self) -> None:
        """Where it is: nobody answers there. From any thread."""
        self._known = (0.0, ())

    def _addresses(self) -> Sequence[str]:
        if is_address(self.host.name):
            return (self.host.name,)
        until, known = self._known
        if not known or time.monotonic() >= until:
            known = [each for each in self._wire.resolve() if is_address(each)][:_TRIED]
            self._known = (time.monotonic() + _KNOWN_SECONDS, known)
        return known

    # What is told

    def status(self) -> dict[str, Any]:
        with self._changed:
            counts, live = self._counts, list(self._ways)
            return {
                "host": self.host.name,
                "port": self.host.port,
                "tls": "program" if self.host.context is None else "enclave",
                "connections": sum(each.carries for each in live),
                "opened": counts.opened,
                "sent": counts.sent + sum(each.sent for each in live),
                "received": counts.received + sum(each.received for each in live),
                "refusals": dict(sorted(counts.refusals.items())),
                **({"doubt": counts.doubt} if counts.doubt else {}),
            }

    def drain(self, ends: float) -> None:
        accepted = threading.Event()

        def last() -> None:
            self._listening.accept()
            self._listening.close()
            accepted.set()

        self._loops[0].call(last)
        accepted.wait(_CLOSE_SECONDS)
        with self._changed:
            for way in self._ways:
                way.loop.call(way.drain)
            self._changed.wait_for(lambda: not self._ways, timeout=max(0.0, ends - time.monotonic()))

    def close(self) -> None:
        self._queue.put(None)
        self._listening.close()
        with self._changed:
            ways = list(self._ways)
        for way in ways:
            with suppress(Exception):
                way.abandon()
        self._dialler.join(_CLOSE_SECONDS)
        for loop in self._loops:
            loop.finish()  # what it has dialled meanwhile is let go
