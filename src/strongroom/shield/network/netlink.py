"""Netlink (RFC 3549): messages to the kernel's network stack, in the namespace that the caller is in.

Sources of the constants: ``linux/netlink.h``, ``linux/rtnetlink.h``, ``linux/if_addr.h``, ``linux/if_link.h``.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network
from types import TracebackType
from typing import Final, Self

from strongroom.errors import ChannelError

ROUTE, NETFILTER = 0, 12
REQUEST, ACK, DUMP, CREATE = 0x1, 0x4, 0x300, 0x400
NESTED: Final = 0x8000
_ERROR, _DONE, _OVERRUN = 2, 3, 4
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_ANSWER = 1 << 17

_NEW_LINK, _NEW_ADDRESS, _NEW_ROUTE = 16, 20, 24
_UP = 1
_LOOPBACK = 1  # its index is 1 in every namespace
_ADDRESS, _LOCAL = 1, 2
_DESTINATION, _OUT, _SOURCE = 1, 4, 7
_MAIN, _STATIC, _HOST_SCOPE, _LOCAL_ROUTE = 254, 4, 254, 2


def attribute(kind: int, value: bytes | Sequence[bytes]) -> bytes:
    """An attribute; with a sequence one that holds these."""
    if not isinstance(value, bytes):
        kind, value = kind | NESTED, b"".join(value)
    return _ATTRIBUTE.pack(4 + len(value), kind) + value + bytes(-len(value) % 4)


def attributes(raw: bytes) -> dict[int, bytes]:
    """The attributes in an answer, by their kinds; of several of one kind the last."""
    found, at = {}, 0
    while at + 4 <= len(raw):
        length, kind = _ATTRIBUTE.unpack_from(raw, at)
        if length < 4:
            break
        found[kind & 0x3FFF] = raw[at + 4 : at + length]
        at += length + (-length % 4)
    return found


def elements(raw: bytes) -> list[bytes]:
    """The attributes of a list, in order, without their kinds."""
    found, at = [], 0
    while at + 4 <= len(raw):
        length, _ = _ATTRIBUTE.unpack_from(raw, at)
        if length < 4:
            break
        found.append(raw[at + 4 : at + length])
        at += length + (-length % 4)
    return found


class Netlink:
    """A socket to one of the kernel's families. May be used as a context manager."""

    def __init__(self, family: int) -> None:
        """Raises OSError if the kernel has no such family."""
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, family)
        self._socket.bind((0, 0))
        self._number = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def message(self, kind: int, flags: int, body: bytes) -> bytes:
        """A request, to be sent alone or with others."""
        self._number += 1
        return _HEADER.pack(_HEADER.size + len(body), kind, REQUEST | flags, self._number, 0) + body

    def send(self, *messages: bytes) -> list[bytes]:
        """Send requests, of which the last asks for an acknowledgement or a dump; the bodies of what comes back.

        Raises:
            OSError: the kernel refused.
        """
        wanted = self._number
        self._socket.send(b"".join(messages))
        bodies: list[bytes] = []
        while True:
            raw, at = self._socket.recv(_ANSWER), 0
            while at + _HEADER.size <= len(raw):
                length, kind, _, number, _ = _HEADER.unpack_from(raw, at)
                if length < _HEADER.size:
                    raise ChannelError("netlink: an answer of another form")
                body, at = raw[at + _HEADER.size : at + length], at + length + (-length % 4)
                if kind == _ERROR:
                    code = -struct.unpack_from("=i", body)[0]
                    if code:
                        raise OSError(code, os.strerror(code))
                    if number == wanted:
                        return bodies
                elif kind == _DONE:
                    return bodies
                elif kind == _OVERRUN:
                    raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))
                else:
                    bodies.append(body)


def raise_loopback(own: IPv4Address, network: IPv4Network, *others: IPv4Network) -> None:
    """Set the loopback up, with an address, and have it carry what goes to these networks.

    Nothing else leads anywhere: other addresses are unreachable, at once.

    Raises:
        OSError: the kernel refused.
    """
    with Netlink(ROUTE) as link:
        interface = struct.pack("=BxHiII", socket.AF_UNSPEC, 0, _LOOPBACK, _UP, _UP)
        link.send(link.message(_NEW_LINK, ACK, interface))
        address = struct.pack("=BBBBI", socket.AF_INET, 32, 0, _HOST_SCOPE, _LOOPBACK)
        address += attribute(_LOCAL, own.packed) + attribute(_ADDRESS, own.packed)
        link.send(link.message(_NEW_ADDRESS, ACK | CREATE, address))
        for each in (network, *others):
            # Local: so that a socket here may have the address of a member for which it stands.
            route = struct.pack(
                "=BBBBBBBBI", socket.AF_INET, each.prefixlen, 0, 0, _MAIN, _STATIC, _HOST_SCOPE, _LOCAL_ROUTE, 0
            )
            route += attribute(_DESTINATION, each.network_address.packed)
            route += attribute(_OUT, struct.pack("=I", _LOOPBACK)) + attribute(_SOURCE, own.packed)
            link.send(link.message(_NEW_ROUTE, ACK | CREATE, route))
