"""Machines for a test: network namespaces on one bridge, with nothing else in common but this machine's disk."""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

_CLONE_NEWNET = 0x40000000
_EVERY_PROTOCOL = 3  # linux/if_ether.h, in network order where it is used
PROGRAMS = ("ip", "nsenter", "unshare")


def needs_namespaces() -> None:
    """Skip the test, aloud, where no such machines can be made."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if os.geteuid() != 0 or missing:
        pytest.skip(f"several hosts are not tried: {', '.join(missing) or 'root makes networks, and this is not root'}")


class Host:
    """One machine, from `Hosts` on.

    Attributes:
        address: which the others reach.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        # It says when it is in a namespace of its own, and ends with its standard input.
        self._holder = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", "echo; read -r line"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._holder.stdout is not None
        self._holder.stdout.readline()

    @property
    def pid(self) -> int:
        return self._holder.pid

    def command(self, *words: str | Path) -> list[str]:
        """The same, as run there."""
        return ["nsenter", "-t", str(self.pid), "-n", *map(str, words)]

    def ip(self, *words: str) -> None:
        subprocess.run(self.command("ip", *words), check=True, capture_output=True)

    def close(self) -> None:
        self._holder.communicate()


class Hosts:
    """So many machines, and the bridge between them; a context manager."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._switch = self._host("")
        self._switch.ip("link", "add", "br0", "type", "bridge")
        self._switch.ip("link", "set", "br0", "up")
        self.all = [self._host(f"192.0.2.{number + 1}") for number in range(self._count)]  # RFC 5737: nobody's
        for number, host in enumerate(self.all):
            port = f"v{number}"
            self._switch.ip("link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", str(host.pid))
            self._switch.ip("link", "set", port, "master", "br0", "up")
            host.ip("addr", "add", f"{host.address}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                host.ip("link", "set", device, "up")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _host(self, address: str) -> Host:
        host = Host(address)
        self._stack.callback(host.close)
        return host

    def listen(self, seen: bytearray) -> None:
        """Collect every frame that goes over the bridge."""
        with socket_in(self._switch, socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_EVERY_PROTOCOL)) as made:
            sniffer = made.dup()
        self._stack.callback(sniffer.close)

        def collect() -> None:
            try:
                while frame := sniffer.recv(1 << 16):
                    seen.extend(frame)
            except OSError:
                return

        threading.Thread(target=collect, daemon=True).start()


def socket_in(host: Host, *kind: int) -> socket.socket:
    """A socket of that machine's network."""
    return next(iter(_sockets_in(host, [kind])))


def _sockets_in(host: Host, kinds: Sequence[tuple[int, ...]]) -> list[socket.socket]:
    made: list[socket.socket] = []

    def make() -> None:  # in a thread of its own, whose network is another's afterwards
        libc = ctypes.CDLL(None, use_errno=True)
        with Path(f"/proc/{host.pid}/ns/net").open() as namespace:
            if libc.setns(namespace.fileno(), _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
        made.extend(socket.socket(*kind) for kind in kinds)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    return made
