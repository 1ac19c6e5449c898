"""Peers that do not do their part: nothing hangs for them, and each is counted by why."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import select
import socket
import ssl
import threading
from contextlib import suppress
from dataclasses import replace

import pytest

from strongroom.shield.network import carrier, roles, sockets, tunnel
from strongroom.shield.network.identity import Credentials
from tests.shield.network.mesh_world import receive

_ATTACH_FILTER = 26  # asm-generic/socket.h


def opened(one, other, port):
    """A connection of the one's program to the other's, that has carried a byte."""
    listener = other.serve(port)
    client = one.connect(other, port)
    client.sendall(b"x")
    server, _ = other.accept(listener)
    assert receive(server, 1) == b"x"
    return client, server


def deafen(sock):
    """Have the kernel drop whatever comes for a socket, confirmations too, as where a machine has lost its power."""
    drop = ctypes.create_string_buffer((0x06).to_bytes(2, "little") + bytes(6))  # BPF: return 0
    program = (1).to_bytes(8, "little") + ctypes.addressof(drop).to_bytes(8, "little")
    sock.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, program)


def as_member(mesh, one, other):
    """A connection to the other's proxy by somebody who has the one's key."""
    sock = mesh.hold(socket.create_connection(other.member.endpoint, 20))
    return mesh.hold(Credentials(lambda: one.identity).client.wrap_socket(sock))


@pytest.mark.parametrize("busy", [True, pytest.param(False, marks=pytest.mark.slow)])  # an idle one takes seconds
def test_a_peer_whose_machine_is_gone_is_found_out(mesh, monkeypatch, busy):
    monkeypatch.setattr(sockets, "_UNSENT_MS", 300)
    quick = ((socket.TCP_KEEPIDLE, 1), (socket.TCP_KEEPINTVL, 1), (socket.TCP_KEEPCNT, 1))
    monkeypatch.setattr(sockets, "_KEEPALIVE", quick)
    one, other = mesh.pair()
    wire = mesh.wired(one, other)
    client, _ = opened(one, other, 7000)
    deafen(wire.ends[0])
    if busy:
        client.sendall(b"into the void")
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    assert one.refusals == {"cut": 1}


def test_a_member_that_shakes_hands_and_says_no_more_is_ended(mesh, monkeypatch):
    monkeypatch.setattr(tunnel, "DEADLINE", 0.1)
    monkeypatch.setattr(roles, "PATIENCE", 0.1)
    one, other = mesh.pair()
    silent = as_member(mesh, one, other)
    assert silent.recv(1) == b""
    assert other.refusals == {"timeout": 1}
    monkeypatch.setattr(tunnel, "DEADLINE", 30.0)
    opened(one, other, 7000)


@pytest.mark.parametrize(
    ("said", "why"),
    [(b"\x02\x1b\x58", "version"), (b"\x01\x00\x00", "refused"), (b"\x01\x1b\x59", "port")],
    ids=["another version", "no port", "a port that it may not connect to"],
)
def test_a_member_that_says_what_cannot_be_is_refused(mesh, monkeypatch, said, why):
    monkeypatch.setattr(roles, "PATIENCE", 0.0)
    one, other = mesh.pair()
    if why == "port":
        other.knows(replace(one.member, ports=frozenset([7000])))
    peer = as_member(mesh, one, other)
    peer.sendall(said)
    answer = b""
    with suppress(ssl.SSLEOFError, ConnectionResetError):
        while piece := peer.recv(10):
            answer += piece
    assert answer == (roles.REFUSED if why == "refused" else b"")
    while not other.refusals:
        pass
    assert other.refusals == {why: 1}


def test_bytes_that_are_no_tls_are_refused(mesh):
    one, other = mesh.pair()
    for said in (b"GET / HTTP/1.1\r\n\r\n", bytes(1 << 16), b"\x16\x03\x01\xff\xff" + bytes(1 << 16)):
        stranger = mesh.hold(socket.create_connection(other.member.endpoint, 20))
        with suppress(ConnectionError):
            stranger.sendall(said)
            while stranger.recv(100):  # an alert, if it gets that far
                pass
    assert other.refusals == {"handshake": 3}
    opened(one, other, 7000)


def test_where_there_are_no_descriptors_left_it_waits_for_some(mesh, monkeypatch):
    one, other = mesh.pair()
    accept, calls = socket.socket.accept, []

    def scarce(listener):
        if listener is not other.outside:
            return accept(listener)
        calls.append(len(calls))
        if len(calls) <= 2:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return accept(listener)

    monkeypatch.setattr(socket.socket, "accept", scarce)
    opened(one, other, 7000)
    assert other.refusals == {"descriptors": 2}
    assert len(calls) <= 4  # it does not ask again and again


def test_readers_that_read_nothing_cost_little_more_together_than_one(mesh, monkeypatch):
    monkeypatch.setattr(carrier, "_HELD", 0)
    one, other = mesh.pair()
    stuck = 10
    held = []
    for client, _ in [opened(one, other, 7000 + number) for number in range(stuck)]:
        client.settimeout(0.1)
        with suppress(TimeoutError):
            while True:
                client.sendall(bytes(1 << 20))
    for proxy in (one.proxy, other.proxy):
        held.append(sum(loop.held for loop in proxy._loops))
        # Of each loop, one that came first may hold a whole buffer.
        assert held[-1] <= len(proxy._loops) * carrier._PIECE + stuck * 2 * carrier._LITTLE
    assert all(held)


@pytest.fixture
def descriptors():
    """Enough of them for ten thousand connections of one process, until the test ends."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, tuple(max(20_000, each) for each in before))
    except (OSError, ValueError):
        pytest.skip("this machine gives no 20,000 descriptors")
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.slow  # seconds, and thousands of descriptors
def test_ten_thousand_connections_of_one_member_leave_half_of_the_tunnels_to_others(mesh, descriptors):
    one, other = mesh.pair(limit=1_000)
    third = mesh.enclave(2)
    other.knows(one, third)
    third.knows(other)
    listener = other.serve(7000)
    listener.settimeout(None)
    taken = []

    def accept():
        with suppress(OSError):
            while True:
                taken.append(mesh.hold(listener.accept()[0]))

    threading.Thread(target=accept, daemon=True).start()
    ended, resets = select.poll(), []

    def connect():
        for number in range(500):
            try:
                sock = mesh.hold(socket.create_connection((str(other.address), 7000), 20))
            except ConnectionResetError:  # it was as quick
                resets.append(number)
            else:
                ended.register(sock, select.POLLIN)

    for _ in range(20):
        one.run(connect)
    while len(resets) < 9_500:
        found = ended.poll(20_000)
        assert found, f"{len(resets)} of 9,500 were refused"
        for descriptor, _ in found:
            ended.unregister(descriptor)
            resets.append(descriptor)
    while one.proxy.status()["tunnels"] < 500:
        pass
    assert ended.poll(0) == []
    assert one.refusals == {"limit": 9_500}
    opened(third, other, 7001)
