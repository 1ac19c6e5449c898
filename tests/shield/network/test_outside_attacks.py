"""What programs, hosts and outsiders try with their proxies: each attempt here once came through."""

from __future__ import annotations

import itertools
import os
import socket
import ssl
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from strongroom.crypto import SigningKey
from strongroom.errors import EnclaveError
from strongroom.shield.network import egress as egress_module
from strongroom.shield.network import published as published_module
from strongroom.shield.network import relay as relay_module
from strongroom.shield.network.egress import egress_context
from strongroom.shield.network.identity import tunnel_context
from strongroom.shield.network.published import FURTHER, OUTSIDERS
from strongroom.shield.network.roles import HEADER, VERSION
from strongroom.shield.network.sockets import reset, unacknowledged, whose
from strongroom.shield.network.way import Host
from tests.shield.network.mesh_world import now, receive
from tests.shield.network.outside import (
    AT,
    NAME,
    Outside,
    OwnersWire,
    Server,
    authority,
    client_context,
    server_context,
    waited,
)
from tests.shield.network.records import ByHand

OTHER = "other.example.com"
_LITTLE = 4096


@pytest.fixture
def outside(mesh):
    return Outside(mesh.enclave(0))


def server(outside, context):
    made = Server(context)
    outside.world.resources.callback(made.close)
    return made


def listener(outside):
    made = outside.world.hold(socket.create_server(("127.0.0.1", 0)))
    made.settimeout(20)
    return made


def program(outside, port):
    return outside.enclave.reach(str(AT), port)


def turns(outside):
    """Let the proxies see what has come."""
    seen = itertools.count()
    for loop in outside.loops:
        waited(lambda: next(seen) % 8 == 7, loop)


def outsider(outside, service, source="127.0.0.1"):
    host, _, port = service.endpoint.rpartition(":")
    made = socket.create_connection((host, int(port)), 20, (source, 0))
    return outside.world.hold(made)


def trusting():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


# Keys that are changed for ever, with answers that nobody takes.


def flood(by_hand):
    with suppress(OSError):
        for _ in range(100):  # more than buffers take, however it is read
            by_hand.change_keys(250)
            by_hand.flush()


def test_an_outsider_who_changes_keys_for_ever_is_ended(outside, tmp_path):
    outside.enclave.serve(8000)
    service = outside.publish(8000)
    service.listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _LITTLE)
    connection = outsider(outside, service)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _LITTLE)
    by_hand = ByHand(trusting(), connection, tmp_path / "secrets")
    by_hand.shake()
    flood(by_hand)
    waited(lambda: outside.refusals == {"broken": 1}, outside.loops[0])


def test_a_host_that_changes_keys_for_ever_is_ended(outside, tmp_path):
    by, there = authority(), listener(outside)

    class Little(OwnersWire):
        def socket(self, family):
            made = super().socket(family)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _LITTLE)
            return made

    host = Host(NAME, there.getsockname()[1], egress_context([by.certificate.der]))
    outside.doors((host, Little(outside.world)))
    client = program(outside, host.port)
    connection = outside.world.hold(there.accept()[0])
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _LITTLE)
    by_hand = ByHand(server_context(by, NAME), connection, tmp_path / "secrets", server=True)
    by_hand.shake()
    client.sendall(b"hello")
    flood(by_hand)
    waited(lambda: outside.refusals == {"broken": 1}, outside.loops[0])


def test_a_member_that_changes_keys_for_ever_is_ended(mesh, tmp_path):
    one, other = mesh.pair()
    served = other.serve(7000)
    other.outside.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _LITTLE)
    connection = mesh.hold(socket.create_connection(other.member.endpoint, 20))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _LITTLE)
    context = tunnel_context(ssl.PROTOCOL_TLS_CLIENT, one.identity)
    by_hand = ByHand(context, connection, tmp_path / "secrets")
    by_hand.shake()
    by_hand.say(HEADER.pack(VERSION, 7000))
    other.accept(served)
    flood(by_hand)
    waited(lambda: other.proxy.status()["refusals"] == {"broken": 1}, other.proxy._loops[0])


# A host that is down.


@pytest.mark.parametrize("named", [True, False], ids=["refused", "no-name"])
def test_a_host_that_was_down_for_long_is_reached_when_it_is_back(outside, monkeypatch, named):
    monkeypatch.setattr(egress_module, "_OPENING", 2)
    by = authority()
    there = listener(outside)
    port = there.getsockname()[1]
    there.close()

    class Down(OwnersWire):
        up = named

        def resolve(self):
            if not self.up:
                raise EnclaveError("host: no such name")
            return super().resolve()

    wire = Down(outside.world)
    outside.doors((Host(NAME, port, egress_context([by.certificate.der])), wire))
    for _ in range(4):
        with pytest.raises(ConnectionResetError):
            program(outside, port).recv(1)
    wire.up = True
    outside.world.resources.callback(Server(server_context(by, NAME), port=port).close)
    client = program(outside, port)
    client.sendall(b"hello")
    assert receive(client, 5) == b"HELLO"


def test_sockets_of_another_kind_are_no_way_to_a_host(outside, monkeypatch):
    monkeypatch.setattr(egress_module, "_OPENING", 1)
    by = authority()
    there = server(outside, server_context(by, NAME))
    kinds = [
        (socket.AF_UNIX, socket.SOCK_STREAM),
        (socket.AF_INET, socket.SOCK_DGRAM),
        (socket.AF_INET6, socket.SOCK_STREAM),
    ]

    class Odd(OwnersWire):
        def socket(self, family):
            return socket.socket(*kinds.pop()) if kinds else super().socket(family)

    outside.door(there, by, wire=Odd(outside.world))
    for _ in range(3):
        with pytest.raises(ConnectionResetError):
            program(outside, there.port).recv(1)
    client = program(outside, there.port)
    client.sendall(b"hello")
    assert receive(client, 5) == b"HELLO"
    assert outside.refusals == {"unreachable": 3}


def test_a_certificate_with_a_name_in_its_subject_alone_is_refused(outside):
    by, key = authority(), SigningKey.generate()
    leaf = by.issue(key.public, NAME, now=now(), lifetime=by.certificate.native.not_valid_after_utc - now())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    descriptor = os.memfd_create("server")
    os.write(descriptor, key.pem() + leaf.pem())
    context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    os.close(descriptor)
    there = server(outside, context)
    outside.door(there, by)
    with pytest.raises(ConnectionResetError):
        program(outside, there.port).recv(1)
    assert outside.refusals == {"certificate": 1}


def test_a_hello_whose_first_byte_comes_alone_is_tls_all_the_same(outside):
    by = authority()
    there = server(outside, server_context(by, NAME))
    outside.door(there, by)
    client = program(outside, there.port)
    came, goes = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = client_context(outside.within.root).wrap_bio(came, goes, server_hostname=NAME)
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    waited(lambda: there.stands, outside.loops[0])
    hello = goes.read()
    for piece in (hello[:1], hello[1:2], hello[2:]):
        client.sendall(piece)
        turns(outside)
    came.write(client.recv(1 << 16))
    while True:
        try:
            tls.do_handshake()
            break
        except ssl.SSLWantReadError:
            came.write(client.recv(1 << 16))
    tls.write(b"hello")
    client.sendall(goes.read())
    came.write(client.recv(1 << 16))
    assert tls.read() == b"HELLO"
    assert there.got == [b"hello"]


# Through a relay, which knows the hellos alone.


def asks_again(by, names):
    """A server that takes no key share of a client's first hello, and notes what names it is told."""
    context = server_context(by, NAME, OTHER)
    context.set_ecdh_curve("secp384r1")
    context.sni_callback = lambda connection, name, _: names.append(name)
    return context


def test_a_host_may_ask_for_another_hello_and_a_program_names_none_but_it(outside):
    by, names = authority(), []
    there = server(outside, asks_again(by, names))
    outside.door(there, None)
    context = client_context(by.certificate.der)
    client = outside.world.hold(context.wrap_socket(program(outside, there.port), server_hostname=NAME))
    client.sendall(b"hello")
    assert receive(client, 5) == b"HELLO"
    names.clear()
    raw = program(outside, there.port)
    came, goes = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(came, goes, server_hostname=NAME)
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    raw.sendall(goes.read())
    came.write(raw.recv(1 << 16))
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    again = goes.read()
    assert again.count(NAME.encode()) == 1
    raw.sendall(again.replace(NAME.encode(), OTHER.encode()))
    with pytest.raises(ConnectionResetError):
        raw.recv(1 << 16)
    assert outside.refusals == {"name": 1}
    assert OTHER not in names


@pytest.mark.parametrize("together", [True, False])
def test_nothing_but_its_hello_leaves_before_the_host_has_chosen_tls(outside, together):
    there = listener(outside)
    port = there.getsockname()[1]
    outside.doors((Host(NAME, port, None), OwnersWire(outside.world)))
    goes = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        trusting().wrap_bio(ssl.MemoryBIO(), goes, server_hostname=NAME).do_handshake()
    hello = goes.read()
    raw = program(outside, port)
    raw.sendall(hello + b"secret: 1\r\n" * together)
    there = outside.world.hold(there.accept()[0])
    there.settimeout(20)
    assert receive(there, len(hello)) == hello
    raw.sendall(b"secret: 2\r\n")
    turns(outside)
    there.setblocking(False)
    with pytest.raises(BlockingIOError):
        there.recv(1)
    there.sendall(b"HTTP/1.0 200 OK\r\n\r\n")
    with pytest.raises(ConnectionResetError):
        raw.recv(1)
    assert outside.refusals == {"hello": 1}


def test_a_host_that_never_answers_a_hello_is_given_up(outside, monkeypatch):
    monkeypatch.setattr(relay_module, "DEADLINE", 0.1)
    there = listener(outside)
    outside.doors((Host(NAME, there.getsockname()[1], None), OwnersWire(outside.world)))
    with pytest.raises(OSError):
        trusting().wrap_socket(program(outside, there.getsockname()[1]), server_hostname=NAME)
    assert outside.refusals == {"timeout": 1}


def test_a_host_that_cuts_a_connection_takes_nothing_from_the_program(outside):
    by, there, size = authority(), listener(outside), 300_000
    host = Host(NAME, there.getsockname()[1], None)
    outside.doors((host, OwnersWire(outside.world)))
    client = program(outside, host.port)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * _LITTLE)
    came, goes = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = client_context(by.certificate.der).wrap_bio(came, goes, server_hostname=NAME)
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    client.sendall(goes.read())
    connection = there.accept()[0]
    connection.settimeout(20)
    theirs, answers = ssl.MemoryBIO(), ssl.MemoryBIO()
    server_side = server_context(by, NAME).wrap_bio(theirs, answers, server_side=True)
    theirs.write(connection.recv(1 << 16))
    with pytest.raises(ssl.SSLWantReadError):
        server_side.do_handshake()
    said = answers.read()
    connection.sendall(said + bytes(size))
    waited(lambda: not unacknowledged(connection), outside.loops[0])
    reset(connection)
    turns(outside)
    got = 0
    with pytest.raises(ConnectionResetError):
        while True:
            got += len(client.recv(1 << 16))
    assert got == len(said) + size
    assert outside.refusals == {"cut": 1}


# Outsiders that leave no room.


def test_an_address_that_has_its_share_gives_way_to_itself(outside, monkeypatch):
    monkeypatch.setattr(published_module, "LIMIT", 8)
    monkeypatch.setattr(published_module, "_IDLE_SECONDS", 0.0)
    served = outside.enclave.serve(8000)
    service = outside.publish(8000)
    kept = []
    for _ in range(3):
        kept.append(outside.world.hold(trusting().wrap_socket(outsider(outside, service))))
        kept[-1].sendall(b"hello")
        assert receive(outside.enclave.accept(served)[0], 5) == b"hello"
        outside.published._services[0]._idle(None)  # as others come, it is seen that these have carried something
    kept[0].settimeout(20)
    with suppress(OSError):
        assert kept[0].recv(1) == b""
    waited(lambda: outside.refusals == {"crowded": 1}, outside.loops[0])
    assert outside.published.status()[0]["connections"] == 2


def test_addresses_that_hold_idle_connections_leave_room_for_others(outside, monkeypatch):
    monkeypatch.setattr(published_module, "LIMIT", 8)
    served = outside.enclave.serve(8000)
    service = outside.publish(8000)
    idle = [
        outside.world.hold(trusting().wrap_socket(outsider(outside, service, f"127.0.0.{last}")))
        for last in (2, 2, 3, 3, 4, 4, 5, 5)
    ]
    for _ in idle:
        outside.enclave.accept(served)
    with pytest.raises(OSError):
        trusting().wrap_socket(outsider(outside, service, "127.0.0.9"))
    monkeypatch.setattr(published_module, "_IDLE_SECONDS", 0.0)
    waited(lambda: outside.published.status()[0]["connections"] == 8, outside.loops[0])
    client = outside.world.hold(trusting().wrap_socket(outsider(outside, service, "127.0.0.9")))
    client.sendall(b"hello")
    assert receive(outside.enclave.accept(served)[0], 5) == b"hello"
    waited(lambda: outside.refusals == {"limit": 1, "crowded": 1}, outside.loops[0])
    with suppress(OSError):
        assert idle[0].recv(1) == b""  # the oldest


@pytest.mark.parametrize(
    ("address", "holder"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2::7", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::8", "2001:db8:1:2::/64"),
        ("fe80::7%lo", "fe80::/64"),
    ],
)
def test_a_network_of_ipv6_has_one_share(address, holder):
    assert whose(address) == holder


def _few_ports():
    Path("/proc/sys/net/ipv4/ip_local_port_range").write_text("40000 40009")


def test_outsiders_do_not_use_up_the_ports_by_which_a_service_is_reached(outside):
    outside.enclave.run(_few_ports)
    served = outside.enclave.serve(8000)
    service = outside.publish(8000)
    sources = []
    with ThreadPoolExecutor(1) as outsiders:
        for _ in range(15):
            client = trusting().wrap_socket(outsider(outside, service))
            client.sendall(b"hello")
            inner, source = outside.enclave.accept(served)
            sources.append(source)
            assert receive(inner, 5) == b"hello"
            ends = outsiders.submit(client.unwrap)  # first
            assert inner.recv(1) == b""
            inner.close()
            ends.result().close()
    assert outside.refusals == {}
    assert sources[0] == str(OUTSIDERS)
    assert any(each.startswith(str(FURTHER.network_address)[:-1]) for each in sources)


def test_a_member_s_short_connections_rest_its_ports_for_no_minute(mesh):
    one, other = mesh.pair()
    other.run(_few_ports)
    served = other.serve(7000)

    def came() -> bool:
        client = one.connect(other, 7000)
        try:
            client.sendall(b"x")
            client.shutdown(socket.SHUT_WR)  # first
            client.recv(1)
        except OSError:
            return False
        finally:
            client.close()
        return True

    def serve() -> None:
        with suppress(OSError):
            while True:
                inner, _ = served.accept()
                with inner:
                    while inner.recv(100):
                        pass

    threading.Thread(target=serve, daemon=True).start()
    for _ in range(100):
        if not came():  # all ports rest; a slow machine may never see that
            break
    waited(came, other.proxy._loops[0])
