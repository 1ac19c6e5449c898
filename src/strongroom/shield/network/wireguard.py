"""WireGuard devices, by whichever way one is configured: the kernel's by netlink, a program's by its socket.

A device belongs to the network in which it was made: there it sends and receives. What it carries appears where it was
moved to, from peers whose keys it knows, and from each under its own address alone.

Sources: ``linux/wireguard.h`` and ``linux/genetlink.h``; https://www.wireguard.com/xplatform/ for a program's socket.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, ip_address
from typing import Final, Protocol

from strongroom.errors import ChannelError
from strongroom.shield.network.members import Endpoint
from strongroom.shield.network.netlink import ACK, DUMP, Netlink, attribute, attributes, elements

KEY_SIZE: Final = 32
KEEPALIVE_SECONDS: Final = 25
"""How often a device says that it is there to whom it greets, for the first time at once."""

_GENERIC = 16
_CONTROL, _GET_FAMILY, _FAMILY_ID, _FAMILY_NAME = 16, 3, 1, 2
_NAME, _VERSION = b"wireguard\0", 1
_GET_DEVICE, _SET_DEVICE = 0, 1
_INTERFACE_NAME, _PRIVATE_KEY, _DEVICE_FLAGS, _LISTEN_PORT, _PEERS = 2, 3, 5, 6, 8
_PUBLIC_KEY, _PEER_FLAGS, _ENDPOINT, _KEEPALIVE, _HANDSHAKE, _RECEIVED, _SENT, _ALLOWED = 1, 3, 4, 5, 6, 7, 8, 9
_REPLACE_PEERS, _REMOVE, _REPLACE_ALLOWED = 1, 1, 2
_FAMILY, _ADDRESS, _PREFIX = 1, 2, 3
_PEERS_AT_ONCE = 256  # an attribute is at most 64 KiB long, and a peer takes some 120 bytes
_LONGEST_LINE = 1 << 10
_LONGEST_ANSWER = 1 << 24


@dataclass(frozen=True)
class Peer:
    """Whom a device knows: what is sent to its address goes to its endpoint, and it speaks under no other.

    Attributes:
        greeted: say to it at once that we are there. Not by both: handshakes that cross fail, and wait for seconds.
    """

    key: bytes
    address: IPv4Address
    endpoint: Endpoint
    greeted: bool = True

    @property
    def keepalive(self) -> int:
        """Seconds; 0 for none."""
        return KEEPALIVE_SECONDS if self.greeted else 0


@dataclass(frozen=True)
class Carried:
    """Bytes to and from a peer, with what the protocol adds, and whether both have ever agreed on keys."""

    sent: int
    received: int
    met: bool


class Device(Protocol):
    """One of them."""

    def begin(self, private: bytes) -> None:
        """Take this key, and know nobody. Raises OSError."""

    def listen(self, port: int) -> None:
        """Send from this port, and receive there. Who may not change the network where it was made may not either.

        Raises:
            OSError: it may not, or the port is taken.
        """

    def change(self, gone: Sequence[bytes], come: Sequence[Peer]) -> None:
        """Know these keys no more, and these as said now. Raises OSError."""

    def carried(self) -> Mapping[bytes, Carried]:
        """By the keys of those that it knows. Raises OSError."""

    def close(self) -> None:
        """Hold it no more; it stays what it is."""


class KernelDevice:
    """A device of the kernel's, in the network that the caller is in. Not to be used from several threads at once.

    Raises:
        OSError: the kernel has no WireGuard.
    """

    def __init__(self, name: str) -> None:
        self._name = name.encode() + b"\0"
        self._link = Netlink(_GENERIC)
        try:
            self._family = wireguard_family(self._link)
        except BaseException:
            self._link.close()
            raise

    def begin(self, private: bytes) -> None:
        flags = attribute(_DEVICE_FLAGS, struct.pack("=I", _REPLACE_PEERS))
        self._set(attribute(_PRIVATE_KEY, private), flags)

    def listen(self, port: int) -> None:
        self._set(attribute(_LISTEN_PORT, struct.pack("=H", port)))

    def change(self, gone: Sequence[bytes], come: Sequence[Peer]) -> None:
        told = [attribute(0, [attribute(_PUBLIC_KEY, key), _flags(_REMOVE)]) for key in gone]
        told += [attribute(0, _known(peer)) for peer in come]
        for at in range(0, len(told), _PEERS_AT_ONCE):
            self._set(attribute(_PEERS, told[at : at + _PEERS_AT_ONCE]))

    def carried(self) -> Mapping[bytes, Carried]:
        found: dict[bytes, Carried] = {}
        for body in self._ask(_GET_DEVICE, DUMP):
            for raw in elements(attributes(body[4:]).get(_PEERS, b"")):
                peer = attributes(raw)
                if len(key := peer.get(_PUBLIC_KEY, b"")) != KEY_SIZE:
                    continue
                # A peer whose addresses do not fit is told of again, without these numbers.
                sent, received = (int.from_bytes(peer.get(each, b""), "little") for each in (_SENT, _RECEIVED))
                if _SENT in peer or key not in found:
                    found[key] = Carried(sent, received, any(peer.get(_HANDSHAKE, b"")))
        return found

    def close(self) -> None:
        self._link.close()

    def _set(self, *parts: bytes) -> None:
        self._ask(_SET_DEVICE, ACK, *parts)

    def _ask(self, command: int, flags: int, *parts: bytes) -> list[bytes]:
        body = struct.pack("=BBH", command, _VERSION, 0) + attribute(_INTERFACE_NAME, self._name) + b"".join(parts)
        return self._link.send(self._link.message(self._family, flags, body))


def wireguard_family(link: Netlink) -> int:
    """The kernel's number for WireGuard. Raises OSError if it has none."""
    body = struct.pack("=BBH", _GET_FAMILY, 1, 0) + attribute(_FAMILY_NAME, _NAME)
    for answer in link.send(link.message(_CONTROL, ACK, body)):
        if len(number := attributes(answer[4:]).get(_FAMILY_ID, b"")) == 2:
            return int(struct.unpack("=H", number)[0])
    raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))


def _known(peer: Peer) -> list[bytes]:
    host, port = peer.endpoint
    address = ip_address(host)
    if address.version == 4:
        endpoint = struct.pack("=H", socket.AF_INET) + struct.pack(">H", port) + address.packed + bytes(8)
    else:
        endpoint = struct.pack("=H", socket.AF_INET6) + struct.pack(">HI", port, 0) + address.packed + bytes(4)
    allowed = [
        attribute(_FAMILY, struct.pack("=H", socket.AF_INET)),
        attribute(_ADDRESS, peer.address.packed),
        attribute(_PREFIX, b"\x20"),
    ]
    return [
        attribute(_PUBLIC_KEY, peer.key),
        _flags(_REPLACE_ALLOWED),
        attribute(_ENDPOINT, endpoint),
        attribute(_KEEPALIVE, struct.pack("=H", peer.keepalive)),
        attribute(_ALLOWED, [attribute(0, allowed)]),
    ]


def _flags(value: int) -> bytes:
    return attribute(_PEER_FLAGS, struct.pack("=I", value))


class ProgramDevice:
    """A device of a program's, such as wireguard-go, over its socket. Not to be used from several threads at once.

    Args:
        connection: to that socket.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._lines = connection.makefile("rb")

    def begin(self, private: bytes) -> None:
        self._ask("set=1", f"private_key={private.hex()}", "replace_peers=true")

    def listen(self, port: int) -> None:
        self._ask("set=1", f"listen_port={port}")

    def change(self, gone: Sequence[bytes], come: Sequence[Peer]) -> None:
        lines = [line for key in gone for line in (f"public_key={key.hex()}", "remove=true")]
        for peer in come:
            host, port = peer.endpoint
            place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            lines += [f"public_key={peer.key.hex()}", "replace_allowed_ips=true", f"endpoint={place}"]
            lines += [f"persistent_keepalive_interval={peer.keepalive}", f"allowed_ip={peer.address}/32"]
        if lines:
            self._ask("set=1", *lines)

    def carried(self) -> Mapping[bytes, Carried]:
        found: dict[bytes, Carried] = {}
        key, numbers = b"", dict[str, int]()
        for name, value in (*self._ask("get=1"), ("public_key", "")):
            if name == "public_key":
                if key:
                    met = bool(numbers.get("last_handshake_time_sec"))
                    found[key] = Carried(numbers.get("tx_bytes", 0), numbers.get("rx_bytes", 0), met)
                key, numbers = _hex(value), {}
            elif value.isascii() and value.isdigit():
                numbers[name] = int(value[:20])
        return found

    def close(self) -> None:
        self._lines.close()
        self._socket.close()

    def _ask(self, *lines: str) -> list[tuple[str, str]]:
        """What it answers, by names; raises OSError if that is an error."""
        self._socket.sendall(("\n".join(lines) + "\n\n").encode())
        found, size = list[tuple[str, str]](), 0
        while (line := self._lines.readline(_LONGEST_LINE)) != b"\n":
            size += len(line)
            name, equals, value = line.decode("ascii", "replace").rstrip("\n").partition("=")
            if not line.endswith(b"\n") or not equals or size > _LONGEST_ANSWER:
                raise ChannelError("wireguard: the device's program answered in another form")
            found.append((name, value))
        code = abs(int(value)) if found and (value := found[-1][1]).lstrip("-").isdigit() else errno.EIO
        if not found or found[-1][0] != "errno" or code:
            raise OSError(code, os.strerror(code))
        return found[:-1]


def _hex(value: str) -> bytes:
    try:
        return bytes.fromhex(value)
    except ValueError:
        raise ChannelError("wireguard: the device's program answered in another form") from None
