"""The rules of a namespace whose members come over a WireGuard device (nf_tables, as in `rules`).

- To a member goes TCP, and nothing else. What goes elsewhere is refused at once, and counted, as with a proxy.
- From a member comes TCP to the enclave's own address, to the ports that it may connect to there, and what answers; the
  rest is refused and counted.
  The device has seen to it that a packet with a member's address is that member's.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address
from typing import Final

from strongroom.shield.network.members import Member
from strongroom.shield.network.namespace import OUTSIDE
from strongroom.shield.network.netlink import CREATE, attribute
from strongroom.shield.network.rules import (
    _DEL_ELEMENTS,
    _DESTINATION_PORT,
    _ELEMENTS,
    _EQUAL,
    _ESTABLISHED_RELATED,
    _FILTER_PRIORITY,
    _ICMP,
    _NETWORK_HEADER,
    _NEW_CHAIN,
    _NEW_ELEMENTS,
    _NEW_SET,
    _NEW_TABLE,
    _NOT_EQUAL,
    _PROHIBITED,
    _REFUSED,
    _REGISTER,
    _RESET,
    _TABLE,
    _TRANSPORT_HEADER,
    Rules,
    _accept,
    _compare,
    _expression,
    _load_destination,
    _masked,
    _number,
    _protocol,
    _reject,
)

_INCOMING: Final = b"incoming\0"
_MEMBERS, _FREE, _PORTS = b"members\0", b"free\0", b"ports\0"
_INPUT = 1
_SOURCE = (12, 4)  # in the header of IPv4
_SECOND = 9  # the register after the first four bytes of _REGISTER
_INTERFACE, _LOOPBACK = 4, 1
_ADDRESS_TYPE, _PORT_TYPE = 7, 13  # for whoever lists them


class WiredRules(Rules):
    """As `Rules`, without a proxy.

    Args:
        own: the enclave's address.

    Raises:
        UnsupportedPlatformError: as `Rules`.
    """

    def __init__(self, own: IPv4Address) -> None:
        self._held: dict[bytes, set[bytes]] = {_MEMBERS: set(), _FREE: set(), _PORTS: set()}
        super().__init__(own, 0)

    def _make(self, own: IPv4Address, port: int) -> None:
        state = _expression("ct", attribute(1, _number(_REGISTER)), attribute(2, _number(0)))
        answers = [state, _masked(struct.pack("=I", _ESTABLISHED_RELATED)), _compare(bytes(4), _NOT_EQUAL), _accept()]
        # To what boot stands for, and not to who was a member: that is reset.
        within = [_load_destination(), _masked(OUTSIDE.netmask.packed), _compare(OUTSIDE.network_address.packed)]
        loopback = [_load_destination(), _masked(b"\xff\0\0\0"), _compare(b"\x7f\0\0\0"), _accept()]
        interface = _expression("meta", attribute(1, _number(_REGISTER)), attribute(2, _number(_INTERFACE)))
        inner = [interface, _compare(struct.pack("=I", _LOOPBACK), _EQUAL), _accept()]
        tcp, other = _protocol(socket.IPPROTO_TCP), _protocol(socket.IPPROTO_TCP, _NOT_EQUAL)
        at_port = [_into(_REGISTER, _NETWORK_HEADER, _SOURCE), _into(_SECOND, _TRANSPORT_HEADER, _DESTINATION_PORT)]
        source = _into(_REGISTER, _NETWORK_HEADER, _SOURCE)
        here = [_load_destination(), _compare(own.packed)]  # and not what boot stands for, such as hosts outside
        self._batch(
            self._message(_NEW_TABLE, CREATE, attribute(1, _TABLE)),
            self._set(_MEMBERS, 1, _ADDRESS_TYPE, 4),
            self._set(_FREE, 2, _ADDRESS_TYPE, 4),
            self._set(_PORTS, 3, _ADDRESS_TYPE << 6 | _PORT_TYPE, 8),
            self._chain(_REFUSED, b"filter", _FILTER_PRIORITY),
            self._rule(_REFUSED, *loopback),
            self._rule(_REFUSED, _load_destination(), _compare(own.packed), _accept()),
            self._rule(_REFUSED, *tcp, _load_destination(), _lookup(_MEMBERS), _accept()),
            self._rule(_REFUSED, *within, *answers),
            self._rule(_REFUSED, *tcp, *_reject(_RESET, 0)),
            self._rule(_REFUSED, *other, *_reject(_ICMP, _PROHIBITED)),
            self._input(),
            self._rule(_INCOMING, *inner),
            self._rule(_INCOMING, *answers),
            self._rule(_INCOMING, *tcp, *here, source, _lookup(_FREE), _accept()),
            self._rule(_INCOMING, *tcp, *here, *at_port, _lookup(_PORTS), _accept()),
            self._rule(_INCOMING, *tcp, *_reject(_RESET, 0)),
            self._rule(_INCOMING, *other, *_reject(_ICMP, _PROHIBITED)),
        )

    def hold(self, members: Iterable[Member]) -> None:
        """Let exactly these pass, each to its ports. Raises OSError if the kernel refused."""
        wanted: dict[bytes, set[bytes]] = {_MEMBERS: set(), _FREE: set(), _PORTS: set()}
        for member in members:
            if member.address == self._own:
                continue
            address = member.address.packed
            wanted[_MEMBERS].add(address)
            if not member.ports:
                wanted[_FREE].add(address)
            wanted[_PORTS] |= {address + struct.pack(">H2x", port) for port in member.ports}
        with self._lock:
            for name, now in wanted.items():
                before = self._held[name]
                for kind, flags, some in (
                    (_NEW_ELEMENTS, CREATE, sorted(now - before)),
                    (_DEL_ELEMENTS, 0, sorted(before - now)),
                ):
                    for at in range(0, len(some), _ELEMENTS):
                        self._batch(self._some(kind, flags, name, some[at : at + _ELEMENTS]))
                self._held[name] = now

    def incoming(self) -> int:
        """How many packets of members have been refused here. Raises OSError."""
        return sum(self._counts(_INCOMING))

    def _some(self, kind: int, flags: int, name: bytes, keys: Sequence[bytes]) -> bytes:
        each = [attribute(1, [attribute(1, [attribute(1, key)])]) for key in keys]
        return self._message(kind, flags, attribute(1, _TABLE), attribute(2, name), attribute(3, each))

    def _set(self, name: bytes, number: int, kind: int, size: int) -> bytes:
        parts = (attribute(at, _number(value)) for at, value in ((4, kind), (5, size), (10, number)))
        return self._message(_NEW_SET, CREATE, attribute(1, _TABLE), attribute(2, name), *parts)

    def _input(self) -> bytes:
        hook = attribute(4, [attribute(1, _number(_INPUT)), attribute(2, _number(_FILTER_PRIORITY))])
        name = attribute(3, _INCOMING)
        return self._message(_NEW_CHAIN, CREATE, attribute(1, _TABLE), name, hook, attribute(7, b"filter\0"))


def _lookup(name: bytes) -> bytes:
    return _expression("lookup", attribute(1, name), attribute(2, _number(_REGISTER)))


def _into(register: int, header: int, place: tuple[int, int]) -> bytes:
    """Load what stands in a header, at that offset, of that size."""
    parts = (register, header, *place)
    return _expression("payload", *(attribute(kind, _number(value)) for kind, value in enumerate(parts, 1)))
