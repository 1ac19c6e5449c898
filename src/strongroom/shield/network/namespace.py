"""A network namespace of the enclave's own, made by its boot before the program starts.

It has a loopback and nothing else, so that nothing leaves it but through sockets that come from outside. The process
that makes it must be able to make namespaces and to change networks in its own user namespace; the program keeps
neither right.
"""

from __future__ import annotations

import ctypes
import os
import socket
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Final

from strongroom.errors import EnclaveError
from strongroom.shield.network.netlink import raise_loopback

_CLONE_NEWUTS, _CLONE_NEWNET = 0x04000000, 0x40000000
MESH: Final = IPv4Network("10.0.0.0/8")
"""Where members have their addresses."""
OUTSIDE: Final = IPv4Network("198.18.0.0/15")
"""Where the hosts have theirs that a program may reach (RFC 2544: addresses that are nobody's)."""


def enter_namespace(own: IPv4Address, host: str, *, wired: bool = False) -> None:
    """Leave the present network for a new one, with this address and this host name.

    Args:
        wired: members will be reached over a device, and not through a proxy.

    Raises:
        EnclaveError: the kernel refused.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET | _CLONE_NEWUTS):
        raise EnclaveError(f"network shield: no namespace: {os.strerror(ctypes.get_errno()).lower()}")
    name = host.encode()
    try:
        raise_loopback(own, OUTSIDE, *(() if wired else (MESH,)))
        if libc.sethostname(name, len(name)):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    except OSError as error:
        raise EnclaveError(f"network shield: {(error.strerror or str(error)).lower()}") from None


def listen_inside(port: int = 0) -> socket.socket:
    """The socket to which connections are redirected."""
    return socket.create_server(("127.0.0.1", port), backlog=1024)


def unreachable() -> int:
    """How many packets had no way out of this namespace, of IPv4 and IPv6."""
    total = 0
    lines = Path("/proc/thread-self/net/snmp").read_text().splitlines()
    for names, values in zip(lines[::2], lines[1::2], strict=False):
        found = dict(zip(names.split(), values.split(), strict=False))
        total += int(found.get("OutNoRoutes", 0))
    try:
        six = dict(line.split() for line in Path("/proc/thread-self/net/snmp6").read_text().splitlines())
    except OSError:
        return total  # a kernel without IPv6
    return total + int(six.get("Ip6OutNoRoutes", 0))
