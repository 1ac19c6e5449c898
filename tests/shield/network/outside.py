"""What lies outside an enclave: servers with certificates of authorities, and a wire by which it gets there."""

from __future__ import annotations

import datetime as dt
import os
import socket
import ssl
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

from strongroom.crypto import CertificateAuthority, SigningKey
from strongroom.shield.network.egress import Egress, egress_context
from strongroom.shield.network.loop import Loop
from strongroom.shield.network.netlink import add_address
from strongroom.shield.network.published import Published, Service
from strongroom.shield.network.way import Host
from strongroom.shield.network.within import Within
from tests.shield.network.mesh_world import Enclave, MeshWorld, now

NAME = "files.example.com"
AT = IPv4Address("198.18.0.2")


def authority() -> CertificateAuthority:
    return CertificateAuthority.create("somebody's", now=now())


def server_context(
    by: CertificateAuthority, *names: str, at: dt.datetime | None = None, highest: ssl.TLSVersion | None = None
) -> ssl.SSLContext:
    key, hour = SigningKey.generate(), dt.timedelta(hours=1)
    leaf = by.issue(key.public, names[0], now=(at or now()) - hour, lifetime=2 * hour, hosts=list(names))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    descriptor = os.memfd_create("server")
    os.write(descriptor, key.pem() + leaf.pem())
    context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    os.close(descriptor)
    if highest is not None:
        context.maximum_version = highest
    return context


def client_context(root: bytes) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=root)
    return context


@dataclass
class Server:
    """Answers what it gets, in capitals, to the end; notes what came before TLS stood or failed."""

    context: ssl.SSLContext | None
    address: str = "127.0.0.1"
    got: list[bytes] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    rude: bool = False  # answers, and goes without a word
    greeting: bytes = b""
    stands: bool = False  # TLS does
    port: int = 0

    def __post_init__(self) -> None:
        family = socket.AF_INET6 if ":" in self.address else socket.AF_INET
        self.listener = socket.create_server((self.address, self.port), family=family)
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        connection.settimeout(20)
        with connection:
            try:
                stream = self.context.wrap_socket(connection, server_side=True) if self.context else connection
            except (ssl.SSLError, OSError) as error:
                self.failed.append(str(error))
                return
            self.stands = True
            with suppress(OSError), stream:
                stream.sendall(self.greeting)
                while data := stream.recv(1 << 16):
                    self.got.append(data)
                    stream.sendall(data.upper())
                    if self.rude:
                        return
                if isinstance(stream, ssl.SSLSocket):
                    stream.unwrap()

    def close(self) -> None:
        self.listener.close()


@dataclass
class OwnersWire:
    """By which the machine's owner does what he is asked, and not what he should if he is told another place."""

    world: MeshWorld
    addresses: Sequence[str] = ("127.0.0.1",)
    asked: int = 0
    held: threading.Event | None = None

    def resolve(self) -> Sequence[str]:
        self.asked += 1
        if self.held is not None:
            self.held.wait(20)
        return self.addresses

    def socket(self, family: int) -> socket.socket:
        return self.world.socket(family)


class Outside:
    """An enclave's doors to hosts, and its services for outsiders."""

    def __init__(self, enclave: Enclave) -> None:
        self.enclave, self.world = enclave, enclave.world
        self.loops = [enclave.run(self._loop) for _ in range(2)]
        self.egress: Egress | None = None
        self.published: Published | None = None
        self.world.resources.callback(self.close)

    @staticmethod
    def _loop() -> Loop:
        loop = Loop("outside")
        loop.start()
        return loop

    def doors(self, *hosts: tuple[Host, Any], at: Sequence[IPv4Address | IPv6Address] = (AT,)) -> Egress:
        """Each host's behind the address of its name; a program's own address, where the host has none."""

        def listen(address: IPv4Address | IPv6Address, port: int) -> socket.socket:
            if address not in at and not address.is_loopback:
                add_address(address)
            if isinstance(address, IPv4Address):
                self.enclave.rules.open(address, port)
            family = socket.AF_INET if isinstance(address, IPv4Address) else socket.AF_INET6
            return socket.create_server((str(address), port), family=family)

        doors = []
        for number, (host, wire) in enumerate(hosts):
            try:
                place = ip_address(host.name)
            except ValueError:
                place = at[min(number, len(at) - 1)]
            doors.append((host, self.enclave.run(listen, place, host.port), wire))
        self.within = Within()
        self.egress = self.enclave.run(Egress, doors, self.loops, self.within)
        self.enclave.run(self.egress.start)
        return self.egress

    def door(
        self,
        server: Server,
        by: CertificateAuthority | None,
        *,
        name: str = NAME,
        wire: Any = None,
    ) -> Egress:
        """To one server, through TLS of this enclave's under that authority; of the program's, where there is none."""
        context = egress_context([by.certificate.der]) if by is not None else None
        return self.doors((Host(name, server.port, context), wire or OwnersWire(self.world)))

    def publish(self, port: int) -> Service:
        listener = self.world._host.submit(socket.create_server, ("127.0.0.1", 0)).result()
        service = Service.at(listener, "api", port)
        self.published = Published(self.enclave.address, [service], self.enclave.credentials, self.loops)
        self.enclave.run(self.published.start)
        return service

    @property
    def refusals(self) -> dict[str, int]:
        (only,) = self.egress.status() if self.egress is not None else self.published.status()
        return only["refusals"]

    def close(self) -> None:
        for loop in self.loops:
            loop.close()
        for each in (self.egress, self.published):
            if each is not None:
                each.close()


def waited(what: Callable[[], object], loop: Loop) -> None:
    """Until that is so, as seen between the loop's turns."""
    for _ in range(2000):
        if what():
            return
        turned = threading.Event()
        loop.call(partial(loop.later, 0.005, turned.set))
        turned.wait(20)
    raise AssertionError
