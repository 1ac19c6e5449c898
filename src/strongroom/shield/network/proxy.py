"""The proxy of an enclave: what its program connects to goes to members, and what members connect to comes to it.

Rules:

- A tunnel leads to the one key that the CAS has told for the address, shown under a certificate of the CAS that names
  the member's policy and is valid now.
- It comes from a key that the CAS has told as a member. Of one that it has not told yet the CAS is asked, once, while
  the tunnel waits; a certificate alone opens nothing.
- A key that is revoked, or is no member any more, has its tunnels cut on both sides. What a member had sent before it
  ended in order still reaches the program here.
- What is refused is counted by why. How many tunnels there may be is bounded, together and of one member, and so is how
  many may be opening (`openings`).
- The host is never waited for on a thread that carries bytes.
"""

from __future__ import annotations

import os
import queue
import resource
import socket
import ssl
import struct
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from ipaddress import IPv4Address
from typing import Any, Final

from strongroom.crypto import Certificate
from strongroom.errors import ChannelError, StrongroomError
from strongroom.shield.network.identity import Credentials
from strongroom.shield.network.loop import READ, Loop
from strongroom.shield.network.members import Directory, Member
from strongroom.shield.network.openings import UNKNOWN, Openings, Wanted
from strongroom.shield.network.roles import Incoming, Outgoing
from strongroom.shield.network.sockets import bind_late, reset, whose
from strongroom.shield.network.tunnel import Tunnel

_ORIGINAL_DESTINATION = 80  # linux/netfilter_ipv4.h
_FIRST_FREE = 256  # descriptors that are for others
MAX_TUNNELS: Final = 16_384
_LOOPS = 4
_ACCEPTED = 64  # at one turn
_NO_DESCRIPTORS_SECONDS = 0.1  # for which nothing is accepted
_ACCEPT_SECONDS = _DIALLER_SECONDS = 5.0  # that these threads are waited for

Dial = Callable[[int], socket.socket]
"""Gives a socket outside, of that address family, that is not connected."""


@dataclass
class Traffic:
    """What was carried to and from one member.

    Attributes:
        opened: tunnels, until now.
        sent, received: bytes of tunnels that have ended.
    """

    opened: int = 0
    sent: int = 0
    received: int = 0


@dataclass
class _State:
    """What the proxy's threads share, under its lock."""

    directory: Directory = field(default_factory=Directory)
    tunnels: set[Tunnel] = field(default_factory=set)
    of: Counter[str] = field(default_factory=Counter)
    openings: Openings = field(default_factory=Openings)
    dialling: int = 0
    traffic: dict[str, Traffic] = field(default_factory=dict)
    refusals: Counter[str] = field(default_factory=Counter)
    waiting: list[tuple[Incoming, Loop, Certificate]] = field(default_factory=list)
    revoked: set[str] = field(default_factory=set)
    listened: set[int] = field(default_factory=set)


class Proxy:
    """One of them, from `start` to `close`.

    Args:
        own: the enclave's address.
        inside: the listener to which the program's connections are redirected.
        outside: the listener that other proxies connect to.
        dial: gives sockets for connections to these.
        ask: has the CAS asked for members anew.
        limit: of tunnels; of one member there may be half as many.
    """

    def __init__(
        self,
        own: IPv4Address,
        *,
        inside: socket.socket,
        outside: socket.socket,
        dial: Dial,
        credentials: Credentials,
        ask: Callable[[], None],
        limit: int | None = None,
    ) -> None:
        self._own, self._inside, self._outside = own, inside, outside
        self._dial, self._credentials, self._ask = dial, credentials, ask
        self._limit = min(MAX_TUNNELS, _room()) if limit is None else limit
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._state = _State()
        self._draining = False
        self._loops = [Loop(f"mesh-{number}") for number in range(min(_LOOPS, os.cpu_count() or 1))]
        self._next = 0
        self._wanted: queue.SimpleQueue[Wanted | None] = queue.SimpleQueue()
        self._dialler = threading.Thread(target=self._dial_all, name="mesh-dial", daemon=True)

    @property
    def inside_port(self) -> int:
        """Where it listens for the program."""
        return int(self._inside.getsockname()[1])

    def start(self) -> None:
        for listener in (self._inside, self._outside):
            listener.setblocking(False)
        first = self._loops[0]
        for listener, take in ((self._inside, self._out), (self._outside, self._in)):
            first.add(listener.fileno(), READ, partial(self._acceptable, listener, take))
        self._dialler.start()
        for loop in self._loops:
            loop.start()

    def drain(self, seconds: float) -> None:
        """The program has ended: wait until the others' machines have what it sent, for so many seconds at most."""
        accepted = threading.Event()

        def accept() -> None:
            while self._accept(self._inside, self._out) == _ACCEPTED:
                pass
            accepted.set()

        with self._lock:
            self._draining = True
        self._loops[0].call(accept)
        accepted.wait(_ACCEPT_SECONDS)
        with self._changed:
            state = self._state
            for tunnel in state.tunnels:
                never = isinstance(tunnel, Incoming) and not tunnel.opened
                tunnel.loop.call(partial(tunnel.close, "") if never else tunnel.drain)
            self._changed.wait_for(
                lambda: not (state.tunnels or state.dialling or state.openings.waiting), timeout=seconds
            )

    def close(self) -> None:
        """End all tunnels."""
        self._wanted.put(None)
        for loop in self._loops:
            loop.close()
        with self._lock:
            vain = self._state.openings.forget(set())
        self._close_tunnels()
        self._dialler.join(_DIALLER_SECONDS)
        self._close_tunnels()  # those that it has begun meanwhile
        with suppress(queue.Empty):
            while True:
                wanted = self._wanted.get_nowait()
                vain += [] if wanted is None else [wanted]
        for each in vain:
            reset(each.inner)
        self._inside.close()
        self._outside.close()

    def _close_tunnels(self) -> None:
        with self._lock:
            tunnels = list(self._state.tunnels)
        for tunnel in tunnels:
            with suppress(Exception):
                tunnel.close("closed")

    # Who is there

    def update(self, directory: Directory) -> None:
        """Take in who the members are now. Tunnels of those that are gone are cut; who waited is judged again."""
        with self._lock:
            state = self._state
            state.directory = directory
            keys = directory.by_key.keys()
            gone = [tunnel for tunnel in state.tunnels if tunnel.key and tunnel.key not in keys]
            waiting, state.waiting = state.waiting, []
            vain = state.openings.forget(set(keys))
        for tunnel in gone:
            tunnel.loop.call(partial(tunnel.leave, "gone"))
        for wanted in vain:
            self._count("gone")
            reset(wanted.inner)
        for tunnel, loop, certificate in waiting:
            self._judge_again(tunnel, loop, certificate)

    def revoke(self, key: str) -> None:
        """Talk with the enclave of this key no more."""
        with self._lock:
            self._state.revoked.add(key)
            gone = [tunnel for tunnel in self._state.tunnels if tunnel.key == key]
        for tunnel in gone:
            tunnel.loop.call(partial(tunnel.close, "revoked"))

    def _known(self, certificate: Certificate) -> Member | None:
        """The member that shows this certificate, which the CAS has issued; None if it has told none of that key.

        Raises:
            ChannelError: it is revoked, or the certificate is of another policy.
        """
        key = certificate.key.fingerprint
        with self._lock:
            revoked, member = key in self._state.revoked, self._state.directory.by_key.get(key)
        if revoked:
            raise ChannelError("revoked")
        if member is not None and f"spiffe://strongroom/{member.policy}" not in certificate.uris:
            raise ChannelError("policy")
        return member

    def _judge_again(self, tunnel: Incoming, loop: Loop, certificate: Certificate) -> None:
        def judge() -> None:
            if tunnel.closed:
                return
            try:
                member = self._known(certificate)
            except ChannelError as error:
                tunnel.close(error.message)
                return
            if member is None:
                tunnel.close("unknown")
            else:
                self._admit(tunnel, member)

        loop.call(judge)

    def _admit(self, tunnel: Incoming, member: Member) -> None:
        if not self._room_for(member.key):
            tunnel.close("limit")
            return
        tunnel.admitted(member.key)

    def _room_for(self, key: str) -> bool:
        with self._lock:
            state = self._state
            return state.of[key] + state.openings.to(key) < max(1, self._limit // 2)

    # Connections

    def _acceptable(self, listener: socket.socket, take: Callable[[socket.socket], None], events: int) -> None:
        self._accept(listener, take)

    def _accept(self, listener: socket.socket, take: Callable[[socket.socket], None]) -> int:
        """All that wait, but not too many at once; how many there were."""
        for count in range(_ACCEPTED):
            try:
                connection, _ = listener.accept()
            except BlockingIOError:
                return count
            except OSError:
                self._count("descriptors")
                self._loops[0].change(listener.fileno(), 0)
                self._loops[0].later(_NO_DESCRIPTORS_SECONDS, partial(self._loops[0].change, listener.fileno(), READ))
                return count
            with self._lock:
                state = self._state
                full = len(state.tunnels) + state.dialling + state.openings.waiting >= self._limit
            if full:
                self._count("limit")
                reset(connection)
                continue
            try:
                take(connection)
            except (StrongroomError, ssl.SSLError, OSError) as error:
                self._count("unreachable" if isinstance(error, OSError) else "refused")
                reset(connection)
        return _ACCEPTED

    def _loop(self) -> Loop:
        self._next = (self._next + 1) % len(self._loops)
        return self._loops[self._next]

    def _begin(self, tunnel: Tunnel) -> None:
        with self._lock:
            self._state.tunnels.add(tunnel)
            draining = self._draining
        tunnel.loop.call(tunnel.begin)
        if draining:
            tunnel.loop.call(tunnel.drain)

    def _out(self, inner: socket.socket) -> None:
        """The program has connected to somebody."""
        raw = inner.getsockopt(socket.IPPROTO_IP, _ORIGINAL_DESTINATION, 16)
        (port,), address = struct.unpack_from("!H", raw, 2), IPv4Address(raw[4:8])
        with self._lock:
            member = self._state.directory.by_address.get(address) if address != self._own else None
            revoked = member is not None and member.key in self._state.revoked
        if member is None or revoked or not self._room_for(member.key):
            self._count("unknown" if member is None else "revoked" if revoked else "limit")
            reset(inner)
            return
        wanted = Wanted(inner, member, port)
        with self._lock:
            if self._state.openings.wants(wanted):
                self._go_on(wanted)

    def _go_on(self, wanted: Wanted) -> None:
        self._state.dialling += 1
        self._wanted.put(wanted)

    def _dial_all(self) -> None:
        """Until it is closed: sockets for those that are wanted. The host gives each when it likes."""
        while (wanted := self._wanted.get()) is not None:
            why = ""
            try:
                self._tunnel_to(wanted)
            except Exception as error:  # whatever the host answers, the thread goes on
                why = "unreachable" if isinstance(error, OSError) else "refused"
            with self._changed:
                self._state.dialling -= 1
                if why:
                    self._count(why)
                    self._ended(wanted.member.key)
                self._changed.notify_all()
            if why:
                reset(wanted.inner)

    def _tunnel_to(self, wanted: Wanted) -> None:
        member = wanted.member

        def judge(certificate: bytes) -> str:
            shown = Certificate.shown(certificate)
            found = self._known(shown)
            if shown.key.fingerprint != member.key or found is None:
                raise ChannelError("another")
            return member.key

        host, at = member.endpoint
        outer = self._dial(socket.AF_INET6 if ":" in host else socket.AF_INET)
        try:
            outer.setblocking(False)
            with suppress(BlockingIOError):
                outer.connect((host, at))
            tunnel = Outgoing(
                self._loop(),
                outer,
                self._credentials.client,
                inner=wanted.inner,
                port=wanted.port,
                judge=judge,
                on_open=self._opened,
                on_close=self._closed,
            )
        except BaseException:
            outer.close()
            raise
        tunnel.wanted = member.key
        self._begin(tunnel)

    def _ended(self, key: str) -> None:
        """One of the program's to that member is opening no more. With the lock held."""
        following = self._state.openings.ended(key)
        if following is not None:
            self._go_on(following)

    def _in(self, outer: socket.socket) -> None:
        """Somebody has connected to us."""
        if self._draining:
            reset(outer)
            return
        address = whose(outer.getpeername()[0])
        tunnel = Incoming(
            self._loop(),
            outer,
            self._credentials.server,
            judge=self._judge,
            connect=self._connect,
            awaited=lambda port: port > 0 and port not in self._state.listened,
            on_open=self._opened,
            on_close=self._closed,
        )
        with self._lock:
            pushed = self._state.openings.came(tunnel, address)
        if pushed is not None:
            pushed.loop.call(partial(pushed.close, "crowded"))
        self._begin(tunnel)

    def _judge(self, tunnel: Incoming, certificate: bytes) -> None:
        shown = Certificate.shown(certificate)
        member = self._known(shown)
        with self._lock:
            room = self._state.openings.shown(tunnel, shown.key.fingerprint, member=member is not None)
            if not room or (member is None and len(self._state.waiting) >= UNKNOWN):
                raise ChannelError("crowded")
        if member is not None:
            self._admit(tunnel, member)
            return
        with self._lock:
            self._state.waiting.append((tunnel, tunnel.loop, shown))
        self._ask()

    def _connect(self, key: str, port: int) -> socket.socket:
        """To the program here, as if the member had connected to it."""
        with self._lock:
            member = self._state.directory.by_key.get(key)
        if member is None or self._draining:
            raise ChannelError("gone")
        if member.ports and port not in member.ports:
            raise ChannelError("port")
        inner = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        inner.setblocking(False)
        try:
            bind_late(inner, member.address)
            with suppress(BlockingIOError):
                inner.connect((str(self._own), port))
        except OSError:
            inner.close()
            raise ChannelError("refused") from None
        return inner

    # What is told

    def _opened(self, tunnel: Tunnel) -> None:
        with self._lock:
            self._no_more_opening(tunnel)
            self._state.of[tunnel.key] += 1
            self._traffic(tunnel.key).opened += 1
            if isinstance(tunnel, Incoming):
                self._state.listened.add(tunnel.port)

    def _closed(self, tunnel: Tunnel, why: str) -> None:
        with self._lock:
            state = self._state
            state.tunnels.discard(tunnel)
            state.waiting = [each for each in state.waiting if each[0] is not tunnel]
            if tunnel.opened:
                state.of[tunnel.key] -= 1
                state.of += Counter()
                traffic = self._traffic(tunnel.key)
                traffic.sent += tunnel.sent
                traffic.received += tunnel.received
            else:
                self._no_more_opening(tunnel)
            if why:
                self._count(why)
            self._changed.notify_all()

    def _no_more_opening(self, tunnel: Tunnel) -> None:
        if isinstance(tunnel, Outgoing):
            self._ended(tunnel.wanted)
        else:
            self._state.openings.done(tunnel)

    def _traffic(self, key: str) -> Traffic:
        return self._state.traffic.setdefault(key, Traffic())

    def _count(self, why: str) -> None:
        with self._lock:
            self._state.refusals[why] += 1

    def status(self) -> dict[str, Any]:
        """Members, tunnels, bytes and refusals, as JSON."""
        with self._lock:
            state, live = self._state, list(self._state.tunnels)
            members = [
                {
                    "name": member.name,
                    "address": str(member.address),
                    "key": member.key,
                    "endpoint": "{}:{}".format(*member.endpoint),
                    "tunnels": sum(each.key == member.key and each.opened for each in live),
                    "opened": (traffic := state.traffic.get(member.key, Traffic())).opened,
                    "sent": traffic.sent + sum(each.sent for each in live if each.key == member.key),
                    "received": traffic.received + sum(each.received for each in live if each.key == member.key),
                }
                for member in state.directory.members
            ]
            return {
                "members": members,
                "tunnels": sum(each.opened for each in live),
                "opening": sum(not each.opened for each in live) + state.dialling + state.openings.waiting,
                "limit": self._limit,
                "refusals": dict(sorted(state.refusals.items())),
            }


def _room() -> int:
    """How many tunnels there are descriptors for, once this process may have as many as it can."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * MAX_TUNNELS + _FIRST_FREE
    most = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
    if soft != resource.RLIM_INFINITY and soft < most:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
            soft = most
    free = wanted if soft == resource.RLIM_INFINITY else soft
    return max(1, (free - _FIRST_FREE) // 2)
