"""The kernel's rules for a namespace (nf_tables), spoken to it without a program in between.

- A new TCP connection to an address of the set goes to the proxy, which asks where it was meant for.
- Everything else that does not stay within the enclave is refused at once, and counted: TCP with a reset, the rest with
  an ICMP message, so that the program gets its error instead of waiting.
- What answers a connection that the proxy has made into the namespace passes.

Sources of the constants: ``linux/netfilter.h``, ``linux/netfilter/nfnetlink.h``, ``linux/netfilter/nf_tables.h``.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Final

from strongroom.errors import UnsupportedPlatformError
from strongroom.shield.network.netlink import (
    CREATE,
    DUMP,
    NETFILTER,
    Netlink,
    acknowledged,
    attribute,
    attributes,
    elements,
)

_TABLE, _SET = b"strongroom\0", b"members\0"
_REDIRECTED, _REFUSED = b"redirected\0", b"refused\0"

_BATCH_BEGIN, _BATCH_END, _SUBSYSTEM = 16, 17, 10
_NEW_TABLE, _NEW_CHAIN, _NEW_RULE, _GET_RULE, _NEW_SET, _NEW_ELEMENTS, _DEL_ELEMENTS = 0, 3, 6, 7, 9, 12, 14
_APPEND = 0x800
_OUTPUT, _NAT_PRIORITY, _FILTER_PRIORITY = 3, -100, 0
_VERDICT, _REGISTER = 0, 1
_NETWORK_HEADER, _TRANSPORT_HEADER, _TRANSPORT_PROTOCOL = 1, 2, 16
_DESTINATION = (16, 4)  # in the header of IPv4
_DESTINATION_PORT = (2, 2)  # in that of TCP
_EQUAL, _NOT_EQUAL = 0, 1
_ACCEPT = 1
_ESTABLISHED_RELATED: Final = 0x2 | 0x4
_RESET, _ICMP, _PROHIBITED = 1, 0, 13
_ELEMENTS = 1000  # of one message, whose attributes are at most 64 KiB long


@dataclass(frozen=True)
class Refused:
    """How many packets the kernel has refused: connections of TCP, and everything else."""

    tcp: int
    other: int


def _number(value: int) -> bytes:
    return struct.pack(">i", value)


def _expression(name: str, *parts: bytes) -> bytes:
    return attribute(1, [attribute(1, name.encode() + b"\0"), attribute(2, parts)])


def _load(header: int, place: tuple[int, int]) -> bytes:
    """What stands in a header, at that offset, of that size."""
    parts = (_REGISTER, header, *place)
    return _expression("payload", *(attribute(kind, _number(value)) for kind, value in enumerate(parts, 1)))


def _load_destination() -> bytes:
    return _load(_NETWORK_HEADER, _DESTINATION)


def _compare(value: bytes, how: int = _EQUAL) -> bytes:
    data = attribute(3, [attribute(1, value)])
    return _expression("cmp", attribute(1, _number(_REGISTER)), attribute(2, _number(how)), data)


def _masked(mask: bytes) -> bytes:
    return _expression(
        "bitwise",
        attribute(1, _number(_REGISTER)),
        attribute(2, _number(_REGISTER)),
        attribute(3, _number(len(mask))),
        attribute(4, [attribute(1, mask)]),
        attribute(5, [attribute(1, bytes(len(mask)))]),
    )


def _protocol(number: int, how: int = _EQUAL) -> list[bytes]:
    load = _expression("meta", attribute(1, _number(_REGISTER)), attribute(2, _number(_TRANSPORT_PROTOCOL)))
    return [load, _compare(bytes([number]), how)]


def _answers() -> list[bytes]:
    """What belongs to a connection that there is already."""
    state = _expression("ct", attribute(1, _number(_REGISTER)), attribute(2, _number(0)))
    return [state, _masked(struct.pack("=I", _ESTABLISHED_RELATED)), _compare(bytes(4), _NOT_EQUAL)]


def _accept() -> bytes:
    verdict = attribute(2, [attribute(2, [attribute(1, _number(_ACCEPT))])])
    return _expression("immediate", attribute(1, _number(_VERDICT)), verdict)


def _reject(kind: int, code: int) -> list[bytes]:
    counter = _expression("counter", attribute(1, bytes(8)), attribute(2, bytes(8)))
    return [counter, _expression("reject", attribute(1, _number(kind)), attribute(2, bytes([code])))]


class Rules:
    """The rules of the namespace that the caller is in, which they stay with. May be used from several threads.

    Args:
        own: the enclave's address.
        port: where the proxy listens.

    Raises:
        UnsupportedPlatformError: the kernel has no nf_tables, or keeps them from this enclave.
    """

    def __init__(self, own: IPv4Address, port: int) -> None:
        self._own, self._members = own, set[IPv4Address]()
        self._lock = threading.Lock()
        try:
            self._link = Netlink(NETFILTER)
            self._make(own, port)
        except OSError as error:
            why = (error.strerror or os.strerror(error.errno or errno.EIO)).lower()
            raise UnsupportedPlatformError(
                f"network shield: nf_tables: {why}",
                hint="the kernel needs nf_tables, with NFT_NAT, NFT_REDIR, NFT_CT and NFT_REJECT",
            ) from None

    def _message(self, kind: int, flags: int, *parts: bytes) -> bytes:
        body = struct.pack(">BBH", socket.AF_INET, 0, 0) + b"".join(parts)
        return self._link.message(_SUBSYSTEM << 8 | kind, flags, body)

    def _batch(self, *messages: bytes) -> None:
        begin = self._link.message(_BATCH_BEGIN, 0, struct.pack(">BBH", socket.AF_UNSPEC, 0, _SUBSYSTEM))
        end = self._link.message(_BATCH_END, 0, struct.pack(">BBH", socket.AF_UNSPEC, 0, _SUBSYSTEM))
        # Of all of it the last request is acknowledged, once it is done: before Linux 6.10 its end never is.
        self._link.send(begin, *messages[:-1], acknowledged(messages[-1]), end)

    def _chain(self, name: bytes, kind: bytes, priority: int) -> bytes:
        hook = attribute(4, [attribute(1, _number(_OUTPUT)), attribute(2, _number(priority))])
        return self._message(
            _NEW_CHAIN, CREATE, attribute(1, _TABLE), attribute(3, name), hook, attribute(7, kind + b"\0")
        )

    def _rule(self, chain: bytes, *expressions: bytes) -> bytes:
        return self._message(
            _NEW_RULE, CREATE | _APPEND, attribute(1, _TABLE), attribute(2, chain), attribute(4, expressions)
        )

    def _make(self, own: IPv4Address, port: int) -> None:
        lookup = _expression("lookup", attribute(1, _SET), attribute(2, _number(_REGISTER)))
        value = attribute(2, [attribute(1, struct.pack(">H", port))])
        target = _expression("immediate", attribute(1, _number(_REGISTER)), value)
        redirect = _expression("redir", attribute(1, _number(_REGISTER)))
        answers = [*_answers(), _accept()]
        loopback = [_load_destination(), _masked(b"\xff\0\0\0"), _compare(b"\x7f\0\0\0"), _accept()]
        tcp, other = _protocol(socket.IPPROTO_TCP), _protocol(socket.IPPROTO_TCP, _NOT_EQUAL)
        self._batch(
            self._message(_NEW_TABLE, CREATE, attribute(1, _TABLE)),
            self._message(
                _NEW_SET,
                CREATE,
                attribute(1, _TABLE),
                attribute(2, _SET),
                attribute(4, _number(7)),  # TYPE_IPADDR, for whoever lists it
                attribute(5, _number(4)),
                attribute(10, _number(1)),
            ),
            self._chain(_REDIRECTED, b"nat", _NAT_PRIORITY),
            self._chain(_REFUSED, b"filter", _FILTER_PRIORITY),
            self._rule(_REDIRECTED, *tcp, _load_destination(), lookup, target, redirect),
            self._rule(_REFUSED, *loopback),
            self._rule(_REFUSED, _load_destination(), _compare(own.packed), _accept()),
            self._rule(_REFUSED, *answers),
            self._rule(_REFUSED, *tcp, *_reject(_RESET, 0)),
            self._rule(_REFUSED, *other, *_reject(_ICMP, _PROHIBITED)),
        )

    def admit(self, members: Collection[IPv4Address]) -> None:
        """Have exactly these addresses lead to the proxy, never the own one. Raises OSError if the kernel refused."""
        now = set(members) - {self._own}
        with self._lock:
            new, gone = sorted(now - self._members), sorted(self._members - now)
            for kind, flags, some in ((_NEW_ELEMENTS, CREATE, new), (_DEL_ELEMENTS, 0, gone)):
                for at in range(0, len(some), _ELEMENTS):
                    self._batch(self._elements(kind, flags, some[at : at + _ELEMENTS]))
            self._members = now

    def open(self, address: IPv4Address, port: int) -> None:
        """Let connections to one port of an address pass, at which this enclave listens. Raises OSError."""
        tcp, at = _protocol(socket.IPPROTO_TCP), _load(_TRANSPORT_HEADER, _DESTINATION_PORT)
        to = [*tcp, _load_destination(), _compare(address.packed)]
        # What is connected to an address that is the loopback's comes from it, too.
        rules = ([*to, at, _compare(struct.pack(">H", port)), _accept()], [*to, *_answers(), _accept()])
        parts = ((attribute(1, _TABLE), attribute(2, _REFUSED), attribute(4, each)) for each in rules)
        with self._lock:
            self._batch(*(self._message(_NEW_RULE, CREATE, *each) for each in parts))  # before all others

    def _elements(self, kind: int, flags: int, addresses: Sequence[IPv4Address]) -> bytes:
        each = [attribute(1, [attribute(1, [attribute(1, one.packed)])]) for one in addresses]
        return self._message(kind, flags, attribute(1, _TABLE), attribute(2, _SET), attribute(3, each))

    def refused(self) -> Refused:
        """What has been refused until now. Raises OSError."""
        tcp, other = [*self._counts(_REFUSED), 0, 0][:2]
        return Refused(tcp, other)

    def _counts(self, chain: bytes) -> list[int]:
        """What the counters of a chain say, in order."""
        counts = []
        parts = (attribute(1, _TABLE), attribute(2, chain))
        with self._lock:
            bodies = self._link.send(self._message(_GET_RULE, DUMP, *parts))
        for body in bodies:
            for expression in elements(attributes(body[4:]).get(4, b"")):
                found = attributes(expression)
                if found.get(1, b"") == b"counter\0":
                    counts.append(struct.unpack(">Q", attributes(found[2])[2])[0])
        return counts

    def close(self) -> None:
        """Forget them here; the namespace keeps them."""
        self._link.close()
