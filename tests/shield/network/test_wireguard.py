"""WireGuard devices: what the kernel and a program are told, and members over a real device of either."""

from __future__ import annotations

import dataclasses
import os
import socket
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from ipaddress import IPv4Address
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strongroom.crypto import exchange_pair
from strongroom.enclave.devices import Devices
from strongroom.errors import ChannelError, UnsupportedPlatformError
from strongroom.shield.network.links import raise_link
from strongroom.shield.network.members import Directory, Member
from strongroom.shield.network.namespace import MESH, enter_namespace
from strongroom.shield.network.netlink import add_address, attributes, elements
from strongroom.shield.network.wired import Wired
from strongroom.shield.network.wired_rules import WiredRules
from strongroom.shield.network.wireguard import KernelDevice, Peer, ProgramDevice, _known

KEY = bytes(range(32))
PORT = 7000


@pytest.mark.parametrize(
    ("endpoint", "wire"),
    [
        # struct sockaddr_in, struct sockaddr_in6
        (("192.0.2.7", 0x1234), b"\x02\x00\x12\x34\xc0\x00\x02\x07" + bytes(8)),
        (
            ("2001:db8::7", 0x1234),
            b"\x0a\x00\x12\x34" + bytes(4) + b"\x20\x01\x0d\xb8" + bytes(11) + b"\x07" + bytes(4),
        ),
    ],
)
def test_a_peer_as_the_kernel_is_told_of_it(endpoint, wire):
    """By the layout of linux/wireguard.h: WGPEER_A_PUBLIC_KEY 1, FLAGS 3, ENDPOINT 4, KEEPALIVE 5, ALLOWEDIPS 9."""
    peer = attributes(b"".join(_known(Peer(KEY, IPv4Address("10.0.0.9"), endpoint))))
    assert (peer[1], peer[3], peer[4], peer[5]) == (KEY, struct.pack("=I", 2), wire, struct.pack("=H", 25))
    [allowed] = elements(peer[9])
    assert attributes(allowed) == {1: struct.pack("=H", socket.AF_INET), 2: b"\x0a\x00\x00\x09", 3: b"\x20"}


def answered(raw: bytes) -> ProgramDevice:
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.sendall(raw)
        theirs.shutdown(socket.SHUT_WR)
    return ProgramDevice(ours)


def test_what_a_program_tells_of_its_peers():
    lines = f"private_key=00\npublic_key={KEY.hex()}\nlast_handshake_time_sec=3\ntx_bytes=5\nrx_bytes=7\n"
    device = answered(f"{lines}public_key={KEY[::-1].hex()}\ntx_bytes=1\nerrno=0\n\n".encode())
    with suppress(BrokenPipeError):
        told = device.carried()
        assert {key: (each.sent, each.received, each.met) for key, each in told.items()} == {
            KEY: (5, 7, True),
            KEY[::-1]: (1, 0, False),
        }
    device.close()


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=80))
def test_whatever_a_program_answers_is_an_answer_or_an_error(raw):
    device = answered(raw)
    with suppress(ChannelError, OSError):
        for key, each in device.carried().items():
            assert isinstance(key, bytes) and each.sent >= 0
    device.close()


class Enclave:
    """One of them: threads in a network of its own, with a device that was made in the world's."""

    def __init__(self, world: World, number: int) -> None:
        self._world = world
        self.address = IPv4Address("10.0.0.1") + number
        self._private, public = exchange_pair()
        kept = world.run(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
        kept.bind(("127.0.0.1", 0))
        key, endpoint = f"sha256:{number:064x}", kept.getsockname()
        self.member = Member("acme/train", number, self.address, key, endpoint, wireguard=public)
        self._give = world.devices.giver(kept, world.stack)
        self.failed: list[OSError] = []
        self._inside = ThreadPoolExecutor(1)
        self.rules, self.wired = self.run(self._raise)
        world.stack.callback(self.rules.close)
        world.stack.callback(self.run, self.wired.close)

    def _raise(self) -> tuple[WiredRules, Wired]:
        enter_namespace(self.address, f"replica-{self.member.number}", wired=True)
        namespace = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        try:
            name, connection = self._world.run(self._give, namespace)
        finally:
            os.close(namespace)
        rules = WiredRules(self.address)
        device = ProgramDevice(connection.dup()) if connection is not None else KernelDevice(name)
        device.begin(self._private)
        raise_link(name, self.address, MESH)
        return rules, Wired(device, rules, self.failed.append)

    def run(self, what: Any, *arguments: Any) -> Any:
        return self._inside.submit(what, *arguments).result(30)

    def knows(self, *others: Member | Enclave) -> None:
        self.run(self.wired.update, Directory([each.member if isinstance(each, Enclave) else each for each in others]))
        assert self.failed == []

    def serve(self, port: int = PORT) -> socket.socket:
        listener = self._world.hold(self.run(socket.create_server, (str(self.address), port)))
        listener.settimeout(20)
        return listener

    def reach(self, address: IPv4Address | str, port: int = PORT, seconds: float = 20.0) -> socket.socket:
        return self._world.hold(self.run(socket.create_connection, (str(address), port), seconds))


class World:
    """A machine with a loopback alone, on which devices are made, and their enclaves."""

    def __init__(self, devices: Devices) -> None:
        self.devices, self.stack = devices, ExitStack()
        self._outside = ThreadPoolExecutor(1)
        self.run(enter_namespace, IPv4Address("192.0.2.1"), "host")

    def run(self, what: Any, *arguments: Any) -> Any:
        return self._outside.submit(what, *arguments).result(30)

    def hold(self, made: socket.socket) -> socket.socket:
        return self.stack.enter_context(made)

    def accept(self, listener: socket.socket) -> tuple[socket.socket, str]:
        """A connection, and the address that it comes from."""
        connection, peer = listener.accept()
        connection.settimeout(20)
        return self.hold(connection), str(peer[0])

    def members(self, count: int) -> list[Enclave]:
        """So many that have come one after the other, each told of those before it."""
        made: list[Enclave] = []
        for number in range(count):
            fresh = Enclave(self, number)
            for each in made:
                each.knows(fresh, *(other for other in made if other is not each))
            fresh.knows(*made)
            made.append(fresh)
        return made


@pytest.fixture
def world() -> Iterator[World]:
    try:
        made = World(Devices.here(simulated=True))
    except UnsupportedPlatformError as error:
        pytest.skip(f"no WireGuard: {error.message}")
    with made.stack:
        yield made


def test_members_talk_over_the_device_and_everything_else_is_refused(world):
    one, other = world.members(2)
    listener = other.serve()
    connection = one.reach(other.address)
    accepted, address = world.accept(listener)
    assert address == str(one.address)
    threading.Thread(target=connection.sendall, args=(KEY * 10_000,), daemon=True).start()
    with accepted.makefile("rb") as stream:
        assert stream.read(320_000) == KEY * 10_000
    with pytest.raises(ConnectionRefusedError):
        one.reach("10.0.0.77")  # a member's network, and nobody's address
    with pytest.raises(OSError, match="unreachable"):
        one.reach("192.0.2.1")
    datagrams = world.hold(one.run(socket.socket, socket.AF_INET, socket.SOCK_DGRAM))
    with pytest.raises(PermissionError):
        datagrams.sendto(b"x", (str(other.address), 9))
    refused = one.run(one.rules.refused)
    assert (refused.tcp, refused.other) == (1, 1)
    [member] = one.run(one.wired.status)["members"]
    assert member["tunnels"] == 1 and member["sent"] > 320_000


def test_a_member_connects_to_its_ports_alone(world):
    one, other = world.members(2)
    other.knows(dataclasses.replace(one.member, ports=frozenset({PORT})))
    listeners = [other.serve(), other.serve(PORT + 1)]
    one.reach(other.address)
    assert world.accept(listeners[0])[1] == str(one.address)
    with pytest.raises(ConnectionRefusedError):
        one.reach(other.address, PORT + 1)
    assert other.run(other.wired.status)["refusals"] == {"incoming": 1}


def test_a_revoked_member_is_cut_off_and_comes_in_no_more(world):
    one, other = world.members(2)
    listener = other.serve()
    one.reach(other.address)
    accepted, _ = world.accept(listener)
    other.wired.revoke(one.member.key)  # from a thread that is in another network, as one may be
    with pytest.raises(ConnectionError):
        accepted.recv(1)
    other.knows(one)
    with pytest.raises(OSError, match="timed out"):
        one.reach(other.address, seconds=1.0)
    with pytest.raises(ConnectionRefusedError):
        other.reach(one.address)


def test_a_key_that_two_members_name_stays_that_of_who_had_it(world):
    one, other = world.members(2)
    listener = other.serve()
    one.reach(other.address)
    world.accept(listener)
    thief = Member("acme/train", 7, IPv4Address("10.0.0.8"), "sha256:" + "f" * 64, ("127.0.0.1", 9))
    other.knows(dataclasses.replace(thief, wireguard=one.member.wireguard), one)
    one.reach(other.address)
    assert world.accept(listener)[1] == str(one.address)


def test_hosts_outside_and_services_for_outsiders_stand_beside_the_device(world):
    [one] = world.members(1)
    door, outsiders = IPv4Address("198.18.0.2"), "198.18.0.1"
    one.run(add_address, door)
    one.run(one.rules.open, door, 443)
    at_door = world.hold(one.run(socket.create_server, (str(door), 443)))
    one.reach(door, 443)
    world.accept(at_door)
    with pytest.raises(ConnectionRefusedError):
        one.reach(door, 80)
    service = one.serve()
    outside = world.hold(one.run(socket.create_connection, (str(one.address), PORT), 20.0, (outsiders, 0)))
    accepted, address = world.accept(service)
    accepted.sendall(b"answer")
    assert (address, outside.recv(6)) == (outsiders, b"answer")
