"""What programs see of a mesh: plain TCP between enclaves, and errors at once for everything else."""

from __future__ import annotations

import errno
import socket
import threading

import pytest

from strongroom.shield.network import openings, roles, tunnel
from strongroom.shield.network.namespace import unreachable
from tests.shield.network.mesh_world import receive


def test_bytes_go_both_ways_and_each_direction_ends_alone(mesh):
    one, other = mesh.pair()
    listener = other.serve(7000)
    client = one.connect(other, 7000)
    client.sendall(b"question")
    server, peer = other.accept(listener)
    assert peer == str(one.address)
    assert client.getpeername() == (str(other.address), 7000)
    assert receive(server, 8) == b"question"
    client.shutdown(socket.SHUT_WR)
    assert server.recv(1) == b""
    answer = bytes(range(256)) * 20_000
    threading.Thread(target=lambda: (server.sendall(answer), server.close()), daemon=True).start()
    assert receive(client, len(answer) + 1) == answer
    [member] = one.proxy.status()["members"]
    assert (member["opened"], member["sent"], member["received"]) == (1, 8, len(answer))


def test_what_stays_within_an_enclave_does_not_pass_its_proxy(mesh):
    one, _ = mesh.pair()
    for address, own in (("127.0.0.1", "127.0.0.1"), ("", str(one.address))):
        listener = one.serve(7001, address)
        client = one.reach(own, 7001)
        server, _ = one.accept(listener)
        client.sendall(b"x")
        assert server.recv(1) == b"x"
        for each in (client, server, listener):
            each.close()
    assert one.proxy.status()["members"][0]["opened"] == 0


def test_a_port_is_waited_for_until_somebody_has_listened_there(mesh, monkeypatch):
    one, other = mesh.pair()
    client = one.connect(other, 7002)
    client.sendall(b"early")
    listener = other.serve(7002)
    server, _ = other.accept(listener)
    assert receive(server, 5) == b"early"
    for each in (server, listener):
        each.close()
    assert client.recv(1) == b""
    late = one.connect(other, 7002)
    with pytest.raises(ConnectionResetError):
        late.recv(1)
    monkeypatch.setattr(roles, "PATIENCE", 0.0)
    with pytest.raises(ConnectionResetError):
        one.connect(other, 7003).recv(1)
    assert one.refusals == {"refused": 2}


def test_everything_else_is_refused_at_once_and_counted(mesh):
    one, other = mesh.pair()

    def tcp(address: str) -> int | None:
        with pytest.raises(OSError) as failed:
            one.reach(address, 80)
        return failed.value.errno

    def udp(family: int, address: str) -> int | None:
        with socket.socket(family, socket.SOCK_DGRAM) as sock, pytest.raises(OSError) as failed:
            sock.sendto(b"x", (address, 53))
        return failed.value.errno

    assert tcp("10.0.0.9") == errno.ECONNREFUSED
    assert [tcp(each) for each in ("192.0.2.1", "2001:db8::1")] == [errno.ENETUNREACH] * 2
    assert one.run(udp, socket.AF_INET, str(other.address)) == errno.EPERM
    assert one.run(udp, socket.AF_INET, "192.0.2.1") == errno.ENETUNREACH
    assert one.run(udp, socket.AF_INET6, "2001:db8::1") == errno.ENETUNREACH
    counted = one.run(one.rules.refused)
    assert (counted.tcp, counted.other) == (1, 1)
    assert one.run(unreachable) >= 4


def test_who_has_gone_is_refused_and_who_comes_is_found(mesh):
    one, other = mesh.pair()
    third = mesh.enclave(2)
    listener = other.serve(7004)
    client = one.connect(other, 7004)
    client.sendall(b"x")
    server, _ = other.accept(listener)
    one.knows(third)
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    with pytest.raises(ConnectionResetError):
        receive(server, 2)
    with pytest.raises(ConnectionRefusedError):
        one.connect(other, 7004)
    # Of a key that it has not been told of, the CAS is asked while the tunnel waits.
    third.knows(other)
    client = third.connect(other, 7004)
    client.sendall(b"hello")
    assert other.asked.wait(20)
    other.knows(one, third)
    server, peer = other.accept(listener)
    assert (receive(server, 5), peer) == (b"hello", str(third.address))


def test_a_new_certificate_is_shown_from_the_next_tunnel_on(mesh):
    one, other = mesh.pair()
    listener = other.serve(7005)
    first = one.connect(other, 7005)
    first.sendall(b"1")
    server, _ = other.accept(listener)
    one.identity = mesh.identity(one.key)
    one.connect(other, 7005).sendall(b"2")
    again, _ = other.accept(listener)
    assert receive(again, 1) == b"2"
    first.sendall(b"3")
    assert receive(server, 2) == b"13"


def test_tunnels_are_bounded_together_and_of_one_member(mesh):
    one, other = mesh.pair(limit=4)
    listener = other.serve(7006)
    held = []
    for _ in range(2):
        client = one.connect(other, 7006)
        client.sendall(b"x")
        server, _ = other.accept(listener)
        assert receive(server, 1) == b"x"
        held.append((client, server))
    with pytest.raises(ConnectionResetError):
        one.connect(other, 7006).recv(1)
    assert one.refusals == {"limit": 1}
    for each in held[0]:
        each.close()
    while any(each.proxy.status()["tunnels"] > 1 for each in (one, other)):
        pass
    again = one.connect(other, 7006)
    again.sendall(b"y")
    server, _ = other.accept(listener)
    assert receive(server, 1) == b"y"


def test_connections_that_say_nothing_end_and_no_more_of_them_open_at_once(mesh, monkeypatch):
    monkeypatch.setattr(tunnel, "DEADLINE", 0.2)
    monkeypatch.setattr(openings, "STRANGERS", 3)
    one, other = mesh.pair()
    listener = other.serve(7007)
    for each in [mesh.hold(socket.create_connection(other.member.endpoint, 20)) for _ in range(5)]:
        assert each.recv(1) == b""
    assert other.refusals == {"crowded": 2, "timeout": 3}
    monkeypatch.setattr(tunnel, "DEADLINE", 30.0)
    client = one.connect(other, 7007)
    client.sendall(b"x")
    server, _ = other.accept(listener)
    assert receive(server, 1) == b"x"


def test_what_a_slow_reader_does_not_take_is_not_read_for_it(mesh):
    one, other = mesh.pair()
    listener = other.serve(7008)
    client = one.connect(other, 7008)
    client.settimeout(0.5)
    sent = 0
    with pytest.raises(TimeoutError):
        while sent < 1 << 28:
            sent += client.send(bytes(1 << 16))
    assert sent < 1 << 26
    server, _ = other.accept(listener)
    client.shutdown(socket.SHUT_WR)
    got = 0
    while piece := server.recv(1 << 20):
        got += len(piece)
    assert got == sent
