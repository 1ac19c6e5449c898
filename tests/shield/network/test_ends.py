"""What becomes of bytes when a program, its enclave or its membership ends, and of connections that others hold up."""

from __future__ import annotations

import select
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address
from types import SimpleNamespace

import pytest

from strongroom.enclave import meshed
from strongroom.shield.network import openings
from strongroom.shield.network.members import Directory, Member, Place
from tests.shield.network.mesh_world import receive

LAST = bytes(range(250)) * 12_000  # more than a reader's kernel takes before it reads


def _sent_and_ended(one, other, listener):
    client = one.connect(other, 7000)
    client.sendall(b"x")
    server, _ = other.accept(listener)
    assert receive(server, 1) == b"x"
    return client, server


def test_what_a_program_sends_last_arrives_after_its_enclave_has_ended(mesh):
    one, other = mesh.pair()
    listener = other.serve(7000)
    client, server = _sent_and_ended(one, other, listener)
    client.sendall(LAST)
    client.close()
    with ThreadPoolExecutor(1) as threads:
        ended = threads.submit(one.proxy.drain, 30)
        got = receive(server, 1)
        ended.result(30)
        one.proxy.close()
        other.knows()  # its lease is over
        got += receive(server, len(LAST))
    assert got == LAST
    assert server.recv(1) == b""
    assert one.refusals == other.refusals == {}


def test_a_connection_made_and_ended_just_before_the_end_arrives_too(mesh):
    one, other = mesh.pair()
    client = one.connect(other, 7001)
    client.sendall(b"hello")
    client.close()
    with ThreadPoolExecutor(1) as threads:
        ended = threads.submit(one.proxy.drain, 30)
        server, _ = other.accept(other.serve(7001))
        ended.result(30)
    one.proxy.close()
    assert receive(server, 6) == b"hello"


def test_what_is_sent_to_who_has_ended_is_reset_once_all_was_read(mesh):
    one, other = mesh.pair()
    client, server = _sent_and_ended(one, other, other.serve(7000))
    client.sendall(b"last")
    client.close()
    one.proxy.drain(30)
    other.knows()
    assert receive(server, 5) == b"last"
    with pytest.raises(OSError):  # a reset, or a broken pipe
        while True:
            server.sendall(b"y")


def test_a_host_that_gives_no_socket_holds_up_no_open_tunnel(mesh, monkeypatch):
    one, other = mesh.pair()
    listener = other.serve(7000)
    held = [_sent_and_ended(one, other, listener) for _ in range(4)]
    go_on, dial = threading.Event(), one.proxy._dial

    def slow(family):
        go_on.wait(20)
        return dial(family)

    monkeypatch.setattr(one.proxy, "_dial", slow)
    new = one.connect(other, 7000)
    new.sendall(b"new")
    for client, server in held:
        client.sendall(b"open")
        assert receive(server, 4) == b"open"
    go_on.set()
    server, _ = other.accept(listener)
    assert receive(server, 3) == b"new"


def test_a_member_that_waits_for_ports_keeps_nobody_else_from_it(mesh, monkeypatch):
    monkeypatch.setattr(openings, "IN_SHARE", 2)
    one, other = mesh.pair()
    third = mesh.enclave(2)
    third.knows(one)
    one.knows(other, third)
    listener = one.serve(7000)
    waits = [other.connect(one, 7100) for _ in range(4)]
    for _ in range(2):  # of them, whichever come last
        ended, _, _ = select.select(waits, [], [], 20)
        waits.remove(ended[0])
        with pytest.raises(ConnectionResetError):
            ended[0].recv(1)
    _sent_and_ended(third, one, listener)
    assert one.refusals == {"crowded": 2}


def test_what_a_program_waits_for_at_one_member_keeps_it_from_no_other(mesh, monkeypatch):
    monkeypatch.setattr(openings, "OUT_SHARE", 2)
    one, other = mesh.pair()
    third = mesh.enclave(2)
    third.knows(one)
    one.knows(other, third)
    waits = [one.connect(other, 7100) for _ in range(5)]
    _sent_and_ended(one, third, third.serve(7000))
    for each in waits:
        each.sendall(b"w")
    listener = other.serve(7100)
    assert [receive(other.accept(listener)[0], 1) for _ in waits] == [b"w"] * 5
    waits = [one.connect(other, 7200) for _ in range(3)]
    one.knows(third)
    for each in waits:
        with pytest.raises(ConnectionResetError):
            each.recv(1)


def test_strangers_that_say_nothing_keep_nobody_from_it(mesh, monkeypatch):
    monkeypatch.setattr(openings, "STRANGERS", 3)
    one, other = mesh.pair()
    silent = [mesh.hold(socket.create_connection(other.member.endpoint, 20)) for _ in range(5)]
    for each in silent[:2]:
        assert each.recv(1) == b""
    _sent_and_ended(one, other, other.serve(7000))
    _sent_and_ended(other, one, one.serve(7000))


def test_an_enclave_reaches_itself_whatever_it_is_told_of_its_address(mesh):
    one, other = mesh.pair()
    told = other.member
    one.knows(Member(told.policy, 0, one.address, told.key, told.endpoint))
    listener = one.serve(7000)
    _sent_and_ended(one, one, listener)


def test_an_enclave_whose_place_has_gone_to_another_talks_to_nobody(mesh, tmp_path, monkeypatch):
    monkeypatch.setattr(meshed, "_HOSTS", tmp_path / "hosts")
    (tmp_path / "hosts").touch()
    one, other = mesh.pair()
    client, _ = _sent_and_ended(one, other, other.serve(7000))
    notices = []
    answer = {"number": 1, "address": "10.0.0.2"}
    booted = SimpleNamespace(
        provisions=SimpleNamespace(wanted=["mesh"]),
        session=SimpleNamespace(join_mesh=lambda endpoint, wireguard: answer),
        control=SimpleNamespace(event=lambda event, **detail: notices.append(detail["text"])),
    )
    shield = meshed.Meshed(booted)
    shield._own, shield._proxy, shield.rules = one.member, one.proxy, one.rules
    shield._join_again()
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    shield._news({"members": [answer], "places": []})  # whatever it is told later
    with pytest.raises(ConnectionRefusedError):
        one.connect(other, 7000)
    assert ["gone to another" in text for text in notices] == [True]


def test_a_host_name_that_two_policies_make_is_the_own_ones_or_nobodys():
    own = Member("uni/agg", 0, IPv4Address("10.0.0.1"), "key", ("127.0.0.1", 9))
    first = {"a.b/c": "10.0.64.1", "b/c.a": "10.0.128.1", "uni/replica-0.agg": "10.0.192.1", "uni/agg": "10.0.0.1"}
    places = [Place(policy, IPv4Address(address), 1) for policy, address in first.items()]
    addresses = {line.split()[1]: line.split()[0] for line in Directory(places=places).hosts(own).splitlines()}
    assert "c.a.b.mesh" not in addresses
    assert "replica-0.c.a.b.mesh" not in addresses
    assert addresses["replica-0.agg.uni.mesh"] == "10.0.0.1"
    assert addresses["replica-0.replica-0.agg.uni.mesh"] == "10.0.192.1"
