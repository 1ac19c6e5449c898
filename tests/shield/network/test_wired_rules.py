"""Rules of a namespace with a device: what a member's packets reach. The device here is a plain one of the kernel's."""

from __future__ import annotations

import ctypes
import os
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import pytest

from strongroom.shield.network.links import make_link, move_link, raise_link
from strongroom.shield.network.members import Member
from strongroom.shield.network.namespace import MESH, enter_namespace
from strongroom.shield.network.netlink import raise_loopback
from strongroom.shield.network.wired_rules import WiredRules

OWN, DOOR, MEMBER = IPv4Address("10.0.0.1"), IPv4Address("198.18.0.2"), IPv4Address("10.0.0.2")
PORT = 8443
_CLONE_NEWNET = 0x40000000


class Place:
    """A thread in a network of its own."""

    def __init__(self, enter: Callable[[], None]) -> None:
        self._thread = ThreadPoolExecutor(1)
        self.run(enter)

    def run(self, what: Any, *arguments: Any) -> Any:
        return self._thread.submit(what, *arguments).result(30)


def _enter() -> None:
    """A network in which the addresses that the enclave's boot stands for are elsewhere."""
    assert ctypes.CDLL(None).unshare(_CLONE_NEWNET) == 0
    raise_loopback(MEMBER, IPv4Network("192.0.2.0/24"))


@pytest.fixture
def places() -> Iterator[tuple[Place, Place]]:
    """An enclave with rules to come, and a machine that speaks as a member and sends it what it likes."""
    if os.geteuid() != 0:
        pytest.skip("not root")
    here, there = Place(lambda: enter_namespace(OWN, "host", wired=True)), Place(_enter)
    try:
        there.run(make_link, "far", "veth")
    except OSError as error:
        pytest.skip(f"no pairs of devices: {error.strerror}")
    near = next(name for _, name in there.run(socket.if_nameindex) if name not in ("lo", "far"))
    with ExitStack() as stack:
        network = here.run(os.open, "/proc/thread-self/ns/net", os.O_RDONLY)
        stack.callback(os.close, network)
        there.run(move_link, near, network)
        here.run(raise_link, near, OWN, MESH)
        there.run(raise_link, "far", MEMBER, MESH)
        there.run(raise_link, "far", MEMBER, IPv4Network(DOOR))
        yield here, there


@pytest.mark.parametrize("ports", [frozenset(), frozenset({PORT})], ids=["all", "some"])
def test_a_member_reaches_the_enclave_s_own_address_and_none_that_boot_stands_for(places, ports):
    here, there = places
    rules = here.run(WiredRules, OWN)
    member = Member("acme/other", 0, MEMBER, "sha256:" + "0" * 64, ("192.0.2.1", 1), ports=ports, wireguard=bytes(32))
    here.run(rules.hold, [member])
    here.run(rules.open, DOOR, PORT)
    with ExitStack() as stack:
        stack.callback(rules.close)
        for address in (DOOR, OWN):
            stack.enter_context(here.run(socket.create_server, (str(address), PORT)))
        with pytest.raises(ConnectionRefusedError):
            there.run(socket.create_connection, (str(DOOR), PORT), 20)
        assert here.run(rules.incoming) == 1
        stack.enter_context(there.run(socket.create_connection, (str(OWN), PORT), 20))
