"""Enclaves of a mesh within one process: each has threads in a network namespace of its own, and wires to look at."""

from __future__ import annotations

import datetime as dt
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Any

from strongroom.channel import Identity
from strongroom.crypto import CertificateAuthority, SigningKey
from strongroom.shield.network.identity import Credentials
from strongroom.shield.network.members import Directory, Member
from strongroom.shield.network.namespace import enter_namespace, listen_inside
from strongroom.shield.network.proxy import Proxy
from strongroom.shield.network.rules import Rules

POLICY = "acme/train"
HOUR = dt.timedelta(hours=1)


def now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


@dataclass
class Wire:
    """What lies between two proxies: it shows all that passes, and may change it.

    Attributes:
        seen: the pieces that passed, with whether they went to the listener.
        change: what becomes of a piece; None cuts the connection.
    """

    target: tuple[str, int]
    seen: list[tuple[bool, bytes]] = field(default_factory=list)
    ends: list[socket.socket] = field(default_factory=list)
    change: Callable[[bool, bytes, list[tuple[bool, bytes]]], bytes | None] | None = None

    def __post_init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = self._listener.getsockname()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                one, _ = self._listener.accept()
            except OSError:
                return
            other = socket.create_connection(self.target)
            self.ends += [one, other]
            for source, sink, forth in ((one, other, True), (other, one, False)):
                threading.Thread(target=self._carry, args=(source, sink, forth), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket, forth: bool) -> None:
        try:
            while data := source.recv(1 << 16):
                before = list(self.seen)
                self.seen.append((forth, data))
                changed = data if self.change is None else self.change(forth, data, before)
                if changed is None:
                    break
                sink.sendall(changed)
        except OSError:
            pass
        for each in (sink, source):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        for each in (self._listener, *self.ends):
            each.close()


class Enclave:
    """One of them. What it runs, it runs in its namespace."""

    def __init__(self, world: MeshWorld, number: int, policy: str, key: SigningKey, **options: Any) -> None:
        self.world, self.key = world, key
        self.outside = socket.create_server(("127.0.0.1", 0))
        self.address = IPv4Address("10.0.0.1") + number
        self.member = Member(policy, number, self.address, key.public.fingerprint, self.outside.getsockname())
        self.identity = world.identity(key, policy)
        self.credentials = Credentials(lambda: self.identity)
        self.asked = threading.Event()
        self._inside = ThreadPoolExecutor(1)
        self.proxy, self.rules = self.run(self._raise, options)

    def _raise(self, options: dict[str, Any]) -> tuple[Proxy, Rules]:
        enter_namespace(self.address, f"replica-{self.member.number}")
        inside = listen_inside()
        rules = Rules(self.address, inside.getsockname()[1])
        proxy = Proxy(
            self.address,
            inside=inside,
            outside=self.outside,
            dial=self.world.socket,
            credentials=self.credentials,
            ask=self.asked.set,
            **options,
        )
        proxy.start()
        return proxy, rules

    def run(self, what: Callable[..., Any], *arguments: Any) -> Any:
        return self._inside.submit(what, *arguments).result(30)

    def knows(self, *others: Member | Enclave) -> None:
        members = [each if isinstance(each, Member) else each.member for each in others]
        directory = Directory(members)
        self.proxy.update(directory)
        self.rules.admit(directory.by_address)

    def serve(self, port: int, address: str = "") -> socket.socket:
        listener: socket.socket = self.run(socket.create_server, (address, port))
        listener.settimeout(20)
        return self.world.hold(listener)

    def accept(self, listener: socket.socket) -> tuple[socket.socket, str]:
        """A connection, and the address that it comes from."""
        connection, peer = listener.accept()
        connection.settimeout(20)
        return self.world.hold(connection), str(peer[0])

    def connect(self, other: Enclave, port: int) -> socket.socket:
        return self.reach(str(other.address), port)

    def reach(self, address: str, port: int) -> socket.socket:
        def connected() -> socket.socket:
            return socket.create_connection((address, port), 20)

        return self.world.hold(self.run(connected))

    @property
    def refusals(self) -> dict[str, int]:
        found: dict[str, int] = self.proxy.status()["refusals"]
        return found

    def close(self) -> None:
        self.proxy.close()
        self.rules.close()
        self._inside.shutdown()


@dataclass
class MeshWorld:
    """An authority, and what is closed at the end."""

    resources: ExitStack
    authority: CertificateAuthority = field(default_factory=lambda: CertificateAuthority.create("CAS", now=now()))
    _host: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))

    def __post_init__(self) -> None:
        self._host.submit(int).result()  # a thread begins where it is first asked for
        self.resources.callback(self._host.shutdown)

    def hold(self, sock: socket.socket) -> socket.socket:
        """Have it closed at the end."""
        self.resources.callback(sock.close)
        return sock

    def socket(self, family: int) -> socket.socket:
        """Of the host's network: from a thread that has never left it."""
        return self._host.submit(socket.socket, family, socket.SOCK_STREAM).result()

    def identity(
        self,
        key: SigningKey,
        policy: str = POLICY,
        *,
        issuer: CertificateAuthority | None = None,
        at: dt.datetime | None = None,
    ) -> Identity:
        """Two hours' worth of a certificate, from an hour before `at`."""
        by = issuer or self.authority
        uri = f"spiffe://strongroom/{policy}"
        leaf = by.issue(key.public, policy, now=(at or now()) - HOUR, lifetime=2 * HOUR, uris=[uri])
        return Identity(key, (leaf, by.certificate))

    def enclave(self, number: int, policy: str = POLICY, **options: Any) -> Enclave:
        made = Enclave(self, number, policy, SigningKey.generate(), **options)
        self.resources.callback(made.close)
        return made

    def pair(self, **options: Any) -> tuple[Enclave, Enclave]:
        """Two that know each other."""
        one, other = (self.enclave(number, **options) for number in range(2))
        one.knows(other)
        other.knows(one)
        return one, other

    def wired(self, one: Enclave, other: Enclave) -> Wire:
        """A wire on the way from the one to the other."""
        wire = Wire(other.member.endpoint)
        self.resources.callback(wire.close)
        member = other.member
        one.knows(Member(member.policy, member.number, member.address, member.key, wire.endpoint))
        return wire


@contextmanager
def mesh_world() -> Iterator[MeshWorld]:
    with ExitStack() as resources:
        yield MeshWorld(resources)


def receive(sock: socket.socket, size: int) -> bytes:
    """Exactly so many bytes, or what came before the end."""
    data = b""
    while len(data) < size and (piece := sock.recv(size - len(data))):
        data += piece
    return data


def joined(pieces: Sequence[tuple[bool, bytes]]) -> bytes:
    return b"".join(data for _, data in pieces)
