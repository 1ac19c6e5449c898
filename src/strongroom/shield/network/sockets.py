"""What the network shield asks of sockets beyond sending and receiving."""

from __future__ import annotations

import fcntl
import socket
import struct
import termios
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

from strongroom.shield.network.netlink import UNPACED

_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: to close is to reset
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 10), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 4))
_UNSENT_MS = 30_000
_BIND_ADDRESS_NO_PORT = 24  # linux/in.h; Python has it since 3.12
_NOT_ENDED = (1, 2, 3, 4, 5)  # states of TCP in which more may come, linux/tcp_states.h


def reset(sock: socket.socket) -> None:
    """Close a connection so that whoever is at its other end gets an error."""
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    sock.close()


def prepare(sock: socket.socket, *, outer: bool = False) -> None:
    """No waiting for more to send; and a peer whose machine is gone is found out within half a minute."""
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if not outer:
        unpace(sock)
    else:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE:
            sock.setsockopt(socket.IPPROTO_TCP, name, value)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNSENT_MS)


def bind_late(sock: socket.socket, address: IPv4Address) -> None:
    """Have it come from this address of the loopback's, from a port that is free for where it will connect to.

    A port that is chosen before is free for all, so that those of connections that ended in the last minute are for
    nobody. Of what is bound to the loopback the kernel takes them again after a second (``tcp_tw_reuse`` 2).

    Raises:
        OSError: the address is not here.
    """
    with suppress(OSError):  # before Linux 5.7 it is a right of its own
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")
    sock.setsockopt(socket.IPPROTO_IP, _BIND_ADDRESS_NO_PORT, 1)
    sock.bind((str(address), 0))


def whose(address: str) -> str:
    """Who has one share: an address of IPv4, or a network of 64 bits of IPv6 (RFC 4291, section 2.5.4)."""
    found = ip_address(address)
    if isinstance(found, IPv6Address):
        if found.ipv4_mapped is None:
            return str(IPv6Network((found.packed, 64), strict=False))
        found = found.ipv4_mapped
    return str(found)


def stays_here(sock: socket.socket) -> bool:
    """Whether the other end of a connection is on this machine."""
    try:
        return bool(sock.getsockname()[0] == sock.getpeername()[0])
    except OSError:  # it is over
        return False


def unpace(sock: socket.socket) -> None:
    """Both ends are on this machine: TCP need not find out how much the way between them takes."""
    with suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, UNPACED)


def unacknowledged(sock: socket.socket) -> int:
    """Bytes that the other machine's kernel has not confirmed; an end counts as one."""
    return int(struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)))[0])


def ended(sock: socket.socket) -> bool:
    """Whether nothing more comes from the other end: it has said so, or the connection is over. Raises OSError."""
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] not in _NOT_ENDED
