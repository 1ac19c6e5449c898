"""Services for outsiders: who is shown what, and what nobody can hold up."""

from __future__ import annotations

import datetime as dt
import socket
import ssl
import threading
from contextlib import suppress

import pytest

from strongroom.channel import connect, expect_authority
from strongroom.shield.network import openings as openings_module
from strongroom.shield.network import published as published_module
from strongroom.shield.network import tunnel as tunnel_module
from strongroom.shield.network.published import OUTSIDERS
from tests.shield.network.mesh_world import POLICY, now, receive
from tests.shield.network.outside import Outside, client_context, waited


@pytest.fixture
def outside(mesh):
    return Outside(mesh.enclave(0))


def expect(outside, policy=POLICY):
    root = outside.world.authority.certificate.key.fingerprint
    return expect_authority(root, uri=f"spiffe://strongroom/{policy}", now=now)


def raw(outside, service):
    host, _, port = service.endpoint.rpartition(":")
    return outside.world.hold(socket.create_connection((host, int(port)), 20))


def reach(outside, service):
    """As an outsider who knows the CAS's root."""
    return connect(raw(outside, service), expect=expect(outside))


def test_an_outsider_who_knows_the_root_reaches_the_program(outside):
    listener = outside.enclave.serve(8000)
    service = outside.publish(8000)
    stream = reach(outside, service)
    stream.send(b"hello")
    inner, address = outside.enclave.accept(listener)
    assert (receive(inner, 5), address) == (b"hello", str(OUTSIDERS))
    inner.sendall(b"x" * 300_000)
    inner.shutdown(socket.SHUT_WR)
    got = b""
    while piece := stream.recv():
        got += piece
    assert got == b"x" * 300_000
    stream.close()
    assert inner.recv(1) == b""
    inner.close()
    waited(lambda: not outside.published.status()[0]["connections"], outside.loops[0])
    (told,) = outside.published.status()
    assert (told["opened"], told["sent"], told["received"], told["refusals"]) == (1, 300_000, 5, {})


def test_who_speaks_no_tls_1_3_reaches_nothing(outside):
    listener = outside.enclave.serve(8000)
    service = outside.publish(8000)
    plain = raw(outside, service)
    plain.sendall(b"GET / HTTP/1.0\r\n\r\n")
    while plain.recv(100):
        pass  # an alert
    old = client_context(outside.world.authority.certificate.der)
    old.check_hostname, old.maximum_version = False, ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError):
        old.wrap_socket(raw(outside, service))
    waited(lambda: outside.refusals == {"handshake": 2}, outside.loops[0])
    listener.settimeout(0)
    with pytest.raises(BlockingIOError):
        listener.accept()


def test_who_says_nothing_gives_way_and_ends(outside, monkeypatch):
    monkeypatch.setattr(openings_module, "STRANGERS", 4)
    listener = outside.enclave.serve(8000)
    service = outside.publish(8000)
    silent = [raw(outside, service) for _ in range(6)]
    stream = reach(outside, service)
    stream.send(b"a")
    inner, _ = outside.enclave.accept(listener)
    assert receive(inner, 1) == b"a"
    waited(lambda: outside.refusals == {"crowded": 3}, outside.loops[0])
    for each in silent[:3]:
        assert gone(each)
    monkeypatch.setattr(tunnel_module, "DEADLINE", 0.2)
    last = raw(outside, service)
    assert gone(last)
    waited(lambda: outside.refusals.get("timeout"), outside.loops[0])
    stream.send(b"b")
    assert receive(inner, 1) == b"b"


def gone(sock):
    """Whether it was closed, in whichever way, with nothing said."""
    with suppress(ConnectionResetError):
        return sock.recv(1) == b""
    return True


def test_one_address_holds_a_quarter_of_the_connections(outside, monkeypatch):
    monkeypatch.setattr(published_module, "LIMIT", 8)
    outside.enclave.serve(8000)
    service = outside.publish(8000)
    kept = [reach(outside, service) for _ in range(2)]
    with pytest.raises(ConnectionResetError):
        raw(outside, service).recv(1)
    assert outside.refusals == {"limit": 1}
    for each in kept:
        each.close()


def test_what_a_slow_reader_does_not_take_is_not_read_for_it(outside):
    listener = outside.enclave.serve(8000)
    service = outside.publish(8000)
    slow, quick = reach(outside, service), reach(outside, service)
    slow.send(b"s")
    stuck, _ = outside.enclave.accept(listener)
    assert receive(stuck, 1) == b"s"
    quick.send(b"q")
    inner, _ = outside.enclave.accept(listener)
    assert receive(inner, 1) == b"q"
    stuck.settimeout(0)
    with pytest.raises(BlockingIOError):
        while True:
            stuck.send(bytes(1 << 16))
            inner.sendall(b"y")
            assert quick.recv() == b"y"


def test_a_port_at_which_the_program_does_not_listen(outside):
    service = outside.publish(8000)
    stream = reach(outside, service)
    with pytest.raises(Exception, match="connection"):
        stream.recv()
    waited(lambda: outside.refusals == {"refused": 1}, outside.loops[0])


def test_a_program_that_listens_on_its_loopback_alone_is_reached(outside):
    listener = outside.enclave.serve(8000, "127.0.0.1")
    stream = reach(outside, outside.publish(8000))
    stream.send(b"hello")
    inner, address = outside.enclave.accept(listener)
    assert (receive(inner, 5), address) == (b"hello", str(OUTSIDERS))


def test_a_renewed_certificate_is_shown_to_whoever_comes_next(outside):
    listener = outside.enclave.serve(8000)
    service = outside.publish(8000)
    first = reach(outside, service)
    first.send(b"1")
    inner, _ = outside.enclave.accept(listener)
    assert receive(inner, 1) == b"1"
    enclave = outside.enclave
    enclave.identity = outside.world.identity(enclave.key, at=now() + dt.timedelta(minutes=1))
    second = reach(outside, service)
    assert second.peer[0] == enclave.identity.chain[0] != first.peer[0]
    inner.sendall(b"still there")
    assert first.recv() == b"still there"


def test_the_end_of_an_enclave_cuts_outsiders_off_but_for_what_was_sent(outside):
    listener = outside.enclave.serve(8000)
    service = outside.publish(8000)
    stream = reach(outside, service)
    stream.send(b"a")
    inner, _ = outside.enclave.accept(listener)
    assert receive(inner, 1) == b"a"
    inner.sendall(b"the last")
    inner.close()
    draining = threading.Thread(target=outside.published.drain, args=(20,))
    draining.start()
    assert stream.recv() == b"the last"
    assert stream.recv() == b""
    stream.close()
    draining.join()
    with pytest.raises(ConnectionRefusedError):
        raw(outside, service)
