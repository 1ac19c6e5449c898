"""Where a part on another machine listens, and TCP connections that notice when the other machine is gone."""

from __future__ import annotations

import errno
import socket
from dataclasses import dataclass
from typing import Self

from strongroom.errors import ChannelError, UsageError

_IDLE, _INTERVAL, _PROBES = 2, 2, 3  # seconds, seconds, how many
_UNHEARD = 8_000  # milliseconds that what was sent may stay unacknowledged


@dataclass(frozen=True)
class Place:
    """``HOST:PORT``, resolved once."""

    host: str
    port: int
    address: tuple[socket.AddressFamily, tuple[str, int]]

    @classmethod
    def parse(cls, text: str, option: str) -> Self:
        """Raises UsageError if it is none, or the host has no address."""
        host, _, port = text.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if not host or not port.isascii() or not port.isdecimal() or not 0 < int(port) < 65536:
            raise UsageError(f"{option}: got {text[:200]!r}, wanted HOST:PORT")
        try:
            family, _, _, _, found = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0]
        except (OSError, UnicodeError) as error:
            why = getattr(error, "strerror", None) or "no name of a host"
            raise UsageError(f"{option}: {host[:200]}: {why.lower()}") from None
        return cls(host, int(port), (socket.AddressFamily(family), (str(found[0]), int(found[1]))))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def dial(self) -> socket.socket:
        """A connection that is being made: whoever writes to it learns whether it was.

        So a machine that does not answer holds up its own link alone, and not the host that dials for all of them.

        Raises:
            ChannelError: there is no way there.
        """
        family, address = self.address
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            watch(sock)
            sock.setblocking(False)
            code = sock.connect_ex(address)
        except BaseException:
            sock.close()
            raise
        if code not in (0, errno.EINPROGRESS):
            sock.close()
            raise ChannelError(f"{self}: {errno.errorcode.get(code, str(code))}")
        return sock


def watch(sock: socket.socket) -> None:
    """Have the kernel end a TCP connection whose other end does not answer for some seconds, though it is idle."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", _IDLE),
        ("TCP_KEEPINTVL", _INTERVAL),
        ("TCP_KEEPCNT", _PROBES),
        ("TCP_USER_TIMEOUT", _UNHEARD),
    ):
        if hasattr(socket, name):  # Linux has all of them
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
