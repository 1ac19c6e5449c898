"""Connections of the program's, as the kernel knows them: reset from here, and waited for (``linux/sock_diag.h``)."""

from __future__ import annotations

import socket
import struct
from collections.abc import Collection
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Network
from typing import Final

from strongroom.shield.network.netlink import ACK, DUMP, Netlink

_DIAGNOSIS, _BY_FAMILY, _DESTROY = 4, 20, 21
_ALL = 0xFFFFFFFF
_REQUEST = struct.Struct("=BBBxI")  # family, protocol, extensions, states
_SOCKET = struct.Struct("=BBxx")  # family, state
_IDENTITY = slice(4, 52)  # inet_diag_sockid: ports, addresses, interface, cookie
_PEER = slice(24, 28)  # an address of IPv4 there
_TO_TELL: Final = (4, 9, 11)  # include/net/tcp_states.h: FIN_WAIT1, LAST_ACK, CLOSING


class Connections:
    """Those of the network that the caller is in, from whatever thread they are asked for later.

    Raises:
        OSError: the kernel tells nothing of them.
    """

    def __init__(self) -> None:
        self._link = Netlink(_DIAGNOSIS)

    def sever(self, addresses: Collection[IPv4Address]) -> None:
        """Reset every connection with these addresses, so that the program hears of it, if the kernel can.

        Without CONFIG_INET_DIAG_DESTROY it hears of it when it sends, by the rules of the namespace.
        """
        if not addresses:
            return
        packed = {each.packed for each in addresses}
        with suppress(OSError):
            for body in self._all():
                if body[_PEER] in packed:
                    request = _REQUEST.pack(socket.AF_INET, socket.IPPROTO_TCP, 0, _ALL) + body[_IDENTITY]
                    with suppress(OSError):  # it has ended meanwhile
                        self._link.send(self._link.message(_DESTROY, ACK, request))

    def untold(self, network: IPv4Network) -> int:
        """How many closed ones still have something to tell a machine of this network. Raises OSError."""
        states = [(_SOCKET.unpack_from(body)[1], IPv4Address(body[_PEER])) for body in self._all()]
        return sum(state in _TO_TELL and peer in network for state, peer in states)

    def close(self) -> None:
        self._link.close()

    def _all(self) -> list[bytes]:
        request = _REQUEST.pack(socket.AF_INET, socket.IPPROTO_TCP, 0, _ALL) + bytes(48)
        return self._link.send(self._link.message(_BY_FAMILY, DUMP, request))
