"""Netlink (RFC 3549): messages to the kernel's network stack, in the namespace that the caller is in.

Sources of the constants: ``linux/netlink.h``, ``linux/rtnetlink.h``, ``linux/if_addr.h``, ``linux/if_link.h``.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from collections.abc import Sequence
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Network, IPv6Address
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
UNPACED: Final = b"reno"
"""TCP's congestion control for what stays on one machine: the plainest, which every kernel has and lets anybody use."""
_ROUTE_SECONDS = 2.0
_FLAGS = 8
_AT_ONCE = 0x2 | 0x200  # IFA_F_NODAD, IFA_F_NOPREFIXROUTE: ask nobody whether he has it; no way to it but its own
_DESTINATION, _OUT, _SOURCE, _METRICS = 1, 4, 7, 8
_CONGESTION = 16  # of a route's metrics
_SEGMENT = 63  # of a link: the most that one packet of IPv4 holds before it is cut, since Linux 6.3
_LARGE = 1 << 18
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


def acknowledged(message: bytes) -> bytes:
    """The same request, asking for an acknowledgement."""
    length, kind, flags, number, sender = _HEADER.unpack_from(message)
    return _HEADER.pack(length, kind, flags | ACK, number, sender) + message[_HEADER.size :]


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
        """Send requests, of which one asks for an acknowledgement or a dump; the bodies of what comes back.

        Raises:
            OSError: the kernel refused.
        """
        heads = [_HEADER.unpack_from(each) for each in messages]
        sent = {number for _, _, _, number, _ in heads}
        wanted = next(number for _, _, flags, number, _ in reversed(heads) if flags & (ACK | DUMP))
        self._socket.send(b"".join(messages))
        bodies: list[bytes] = []
        while True:
            raw, at = self._socket.recv(_ANSWER), 0
            while at + _HEADER.size <= len(raw):
                length, kind, _, number, _ = _HEADER.unpack_from(raw, at)
                if length < _HEADER.size:
                    raise ChannelError("netlink: an answer of another form")
                body, at = raw[at + _HEADER.size : at + length], at + length + (-length % 4)
                if number not in sent and kind != _OVERRUN:
                    continue  # more of what the kernel had to say to one that it refused
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
        _give(link, own)
        for each in (network, *others):
            # Local: so that a socket here may have the address of a member for which it stands.
            route = struct.pack(
                "=BBBBBBBBI", socket.AF_INET, each.prefixlen, 0, 0, _MAIN, _STATIC, _HOST_SCOPE, _LOCAL_ROUTE, 0
            )
            route += attribute(_DESTINATION, each.network_address.packed)
            route += attribute(_OUT, struct.pack("=I", _LOOPBACK)) + attribute(_SOURCE, own.packed)
            # What never leaves a machine meets no congestion; the machine's own way may measure and pace.
            route += attribute(_METRICS, [attribute(_CONGESTION, UNPACED + b"\0")])
            link.send(link.message(_NEW_ROUTE, ACK | CREATE, route))
        with suppress(OSError):  # else packets are smaller
            link.send(link.message(_NEW_LINK, ACK, interface + attribute(_SEGMENT, struct.pack("=I", _LARGE))))


def add_address(address: IPv4Address | IPv6Address) -> None:
    """Have the loopback stand for one more address, also of a machine elsewhere. Raises OSError."""
    with Netlink(ROUTE) as link:
        _give(link, address)
    ends = time.monotonic() + _ROUTE_SECONDS
    while address.version == 6:  # whose route the kernel adds a moment later
        try:
            with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
                probe.connect((str(address), 9))  # nothing is sent
                return
        except OSError:
            if time.monotonic() > ends:
                raise
            time.sleep(0.001)


def _give(link: Netlink, address: IPv4Address | IPv6Address) -> None:
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    body = struct.pack("=BBBBI", family, address.max_prefixlen, 0, _HOST_SCOPE, _LOOPBACK)
    body += attribute(_LOCAL, address.packed) + attribute(_ADDRESS, address.packed)
    if family == socket.AF_INET6:
        body += attribute(_FLAGS, struct.pack("=I", _AT_ONCE))
    link.send(link.message(_NEW_ADDRESS, ACK | CREATE, body))
