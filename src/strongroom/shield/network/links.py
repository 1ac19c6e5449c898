"""Devices of the kernel's network stack: made, moved into another network, set up there (``linux/if_link.h``)."""

from __future__ import annotations

import socket
import struct
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Network
from typing import Final

from strongroom.shield.network.netlink import ACK, CREATE, ROUTE, Netlink, attribute

_NEW_LINK, _DEL_LINK, _NEW_ROUTE = 16, 17, 24
_EXCLUSIVE = 0x200
_UP = 1
_NAME, _INFO, _AF_SPEC, _NAMESPACE = 3, 18, 26, 28
_KIND = 1
_ADDRESS_MODE, _NO_ADDRESS = 8, b"\1"  # IFLA_INET6_ADDR_GEN_MODE
_DESTINATION, _OUT, _SOURCE = 1, 4, 7
_MAIN, _STATIC, _LINK_SCOPE, _UNICAST = 254, 4, 253, 1
NAME_SIZE: Final = 15


def make_link(name: str, kind: str) -> None:
    """A new device of that kind, in the network that the caller is in. Raises OSError."""
    _change(0, attribute(_NAME, _text(name)), attribute(_INFO, [attribute(_KIND, _text(kind))]), new=True)


def remove_link(name: str) -> None:
    """Raises OSError."""
    with Netlink(ROUTE) as link:
        link.send(link.message(_DEL_LINK, ACK, _header(0, 0) + attribute(_NAME, _text(name))))


def move_link(name: str, namespace: int) -> None:
    """Move a device into the network that a descriptor is of. Raises OSError."""
    _change(0, attribute(_NAME, _text(name)), attribute(_NAMESPACE, struct.pack("=I", namespace)))


def raise_link(name: str, own: IPv4Address, network: IPv4Network) -> None:
    """Set a device up, and have it carry what goes to this network, from this address. Raises OSError."""
    index = socket.if_nametoindex(name)
    with suppress(OSError):  # a kernel without IPv6
        _change(index, attribute(_AF_SPEC, [attribute(socket.AF_INET6, [attribute(_ADDRESS_MODE, _NO_ADDRESS)])]))
    _change(index, flags=_UP)
    with Netlink(ROUTE) as link:
        route = struct.pack(
            "=BBBBBBBBI", socket.AF_INET, network.prefixlen, 0, 0, _MAIN, _STATIC, _LINK_SCOPE, _UNICAST, 0
        )
        route += attribute(_DESTINATION, network.network_address.packed)
        route += attribute(_OUT, struct.pack("=I", index)) + attribute(_SOURCE, own.packed)
        link.send(link.message(_NEW_ROUTE, ACK | CREATE, route))


def _change(index: int, *parts: bytes, flags: int = 0, new: bool = False) -> None:
    with Netlink(ROUTE) as link:
        how = ACK | (CREATE | _EXCLUSIVE if new else 0)
        link.send(link.message(_NEW_LINK, how, _header(index, flags) + b"".join(parts)))


def _header(index: int, flags: int) -> bytes:
    return struct.pack("=BxHiII", socket.AF_UNSPEC, 0, index, flags, flags)


def _text(text: str) -> bytes:
    return text.encode() + b"\0"
