"""Hosts outside that a program may reach: what is carried, and what is refused and counted."""

from __future__ import annotations

import datetime as dt
import socket
import ssl
import threading

import pytest

from strongroom.errors import EnclaveError
from strongroom.shield.network import egress as egress_module
from strongroom.shield.network.egress import egress_context
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


@pytest.fixture
def outside(mesh):
    return Outside(mesh.enclave(0))


def server(outside, context, address="127.0.0.1"):
    made = Server(context, address)
    outside.world.resources.callback(made.close)
    return made


def reach(outside, port, address=str(AT)):
    return outside.enclave.reach(address, port)


def test_a_program_reaches_a_host_in_clear_and_its_proxy_makes_tls(outside):
    by = authority()
    there = server(outside, server_context(by, NAME))
    outside.door(there, by)
    client = reach(outside, there.port)
    client.sendall(b"hello" * 50_000)
    client.shutdown(socket.SHUT_WR)
    assert receive(client, 1 << 20) == b"HELLO" * 50_000
    assert outside.refusals == {}
    (told,) = outside.egress.status()
    assert (told["opened"], told["sent"], told["received"]) == (1, 250_000, 250_000)


@pytest.mark.parametrize(
    ("context", "why", "doubt"),
    [
        (lambda by: server_context(authority(), NAME), "certificate", "issuer"),
        (lambda by: server_context(by, "other.example.com"), "certificate", NAME),
        (lambda by: server_context(by, NAME, at=now() - dt.timedelta(days=1)), "certificate", "expired"),
        (lambda by: server_context(by, NAME, highest=ssl.TLSVersion.TLSv1_2), "handshake", ""),
        (lambda by: None, "handshake", ""),
    ],
    ids=["authority", "name", "expired", "tls-1.2", "plain"],
)
def test_who_is_not_the_host_gets_nothing_of_the_programs(outside, context, why, doubt):
    by = authority()
    there = server(outside, context(by))
    outside.door(there, by)
    client = reach(outside, there.port)
    with pytest.raises(ConnectionResetError):
        while True:
            client.sendall(b"secret")
            client.recv(1)
    assert outside.refusals == {why: 1}
    (told,) = outside.egress.status()
    assert ("doubt" in told, doubt in told.get("doubt", "")) == (bool(doubt), True)
    assert b"secret" not in b"".join(there.got)


def test_a_program_s_own_tls_goes_through_to_the_named_host(outside):
    by = authority()
    there = server(outside, server_context(by, NAME))
    outside.door(there, None)
    client = client_context(by.certificate.der).wrap_socket(reach(outside, there.port), server_hostname=NAME)
    client.sendall(b"hello" * 50_000)
    assert receive(client, 250_000) == b"HELLO" * 50_000
    client.unwrap().close()
    (told,) = outside.egress.status()
    assert (told["opened"], told["refusals"]) == (1, {})
    assert told["sent"] > 250_000 < told["received"]


def _other_name(outside, port, by):
    client_context(by.certificate.der).wrap_socket(reach(outside, port), server_hostname="other.example.com")


def _old(outside, port, by):
    context = client_context(by.certificate.der)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.wrap_socket(reach(outside, port), server_hostname=NAME)


def _no_tls(outside, port, by):
    client = reach(outside, port)
    client.sendall(b"GET / HTTP/1.0\r\n\r\n")
    client.recv(1)


@pytest.mark.parametrize(("attempt", "why"), [(_other_name, "name"), (_old, "version"), (_no_tls, "hello")])
def test_a_program_s_own_tls_is_tls_1_3_to_the_named_host_and_nothing_else(outside, attempt, why):
    by = authority()
    there = server(outside, server_context(by, NAME, "other.example.com"))
    wire = OwnersWire(outside.world)
    outside.door(there, None, wire=wire)
    with pytest.raises(OSError):  # a reset, in the words of whoever reads
        attempt(outside, there.port, by)
    assert outside.refusals == {why: 1}
    assert wire.asked == 0  # nobody was told anything


def test_a_host_that_chooses_an_older_tls_is_cut_off(outside):
    by = authority()
    there = server(outside, server_context(by, NAME, highest=ssl.TLSVersion.TLSv1_2))
    outside.door(there, None)
    with pytest.raises(OSError):
        client_context(by.certificate.der).wrap_socket(reach(outside, there.port), server_hostname=NAME)
    assert outside.refusals == {"version": 1}


def test_a_host_that_answers_in_no_tls_is_cut_off_and_one_that_refuses_is_heard(outside):
    by = authority()
    there = server(outside, None)
    outside.door(there, None)
    with pytest.raises(OSError):
        client_context(by.certificate.der).wrap_socket(reach(outside, there.port), server_hostname=NAME)
    assert outside.refusals == {"hello": 1}
    there.context = server_context(by, NAME, highest=ssl.TLSVersion.TLSv1_2)
    newest = client_context(by.certificate.der)
    newest.minimum_version = ssl.TLSVersion.TLSv1_3
    with pytest.raises(ssl.SSLError, match="ALERT_PROTOCOL_VERSION"):
        newest.wrap_socket(reach(outside, there.port), server_hostname=NAME)
    assert outside.refusals == {"hello": 1}


def within(outside, port, name=NAME):
    """TLS of the program's, which trusts the enclave's own authority."""
    context = client_context(outside.within.root)
    return outside.world.hold(context.wrap_socket(reach(outside, port), server_hostname=name))


def test_a_program_s_tls_ends_at_its_proxy_which_judges_the_host(outside):
    by = authority()
    there = server(outside, server_context(by, NAME))
    outside.door(there, by)
    client = within(outside, there.port)
    assert client.version() == "TLSv1.3"
    client.sendall(b"hello" * 50_000)
    assert receive(client, 250_000) == b"HELLO" * 50_000
    client.unwrap().close()
    waited(lambda: not outside.egress.status()[0]["connections"], outside.loops[0])
    (told,) = outside.egress.status()
    assert (told["opened"], told["sent"], told["received"], told["refusals"]) == (1, 250_000, 250_000, {})


def test_a_host_that_speaks_first_is_heard(outside):
    by = authority()
    there = server(outside, server_context(by, NAME))
    there.greeting = b"220 welcome"
    outside.door(there, by)
    client = reach(outside, there.port)
    assert receive(client, 11) == b"220 welcome"
    client.sendall(b"hello")
    assert receive(client, 5) == b"HELLO"


def test_a_program_may_begin_its_tls_long_after_the_host_is_known(outside):
    by = authority()
    there = server(outside, server_context(by, NAME))
    outside.door(there, by)
    raw = reach(outside, there.port)
    waited(lambda: there.stands, outside.loops[0])
    client = client_context(outside.within.root).wrap_socket(raw, server_hostname=NAME)
    outside.world.hold(client).sendall(b"hello")
    assert receive(client, 5) == b"HELLO"


def test_a_program_that_ends_its_tls_without_a_word_has_sent_all(outside):
    by = authority()
    there = server(outside, server_context(by, NAME))
    outside.door(there, by)
    client = within(outside, there.port)
    client.sendall(b"the last")
    client.close()
    outside.egress.drain(20)
    assert b"".join(there.got) == b"the last"
    assert outside.refusals == {}


@pytest.mark.parametrize("at_the_host", [True, False], ids=["host", "program"])
def test_another_authority_is_refused_on_either_side(outside, at_the_host):
    by = authority()
    there = server(outside, server_context(authority() if at_the_host else by, NAME))
    outside.door(there, by)
    if at_the_host:
        with pytest.raises(ConnectionResetError):
            within(outside, there.port)
    else:
        with pytest.raises(ssl.SSLCertVerificationError):
            client_context(by.certificate.der).wrap_socket(reach(outside, there.port), server_hostname=NAME)
        waited(lambda: outside.refusals, outside.loops[0])
    assert outside.refusals == ({"certificate": 1} if at_the_host else {"handshake": 1})
    assert there.got == []


@pytest.mark.parametrize("own", [False, True], ids=["clear", "tls"])
def test_a_host_that_goes_without_a_word_is_cut_off_once_the_program_has_what_it_said(outside, own):
    by = authority()
    there = server(outside, server_context(by, NAME))
    there.rude = True
    outside.door(there, by)
    client = within(outside, there.port) if own else reach(outside, there.port)
    if own:
        client.suppress_ragged_eofs = False
    client.sendall(b"hello")
    assert receive(client, 5) == b"HELLO"
    with pytest.raises(ssl.SSLEOFError if own else ConnectionResetError):
        client.recv(100)
    assert outside.refusals == {"cut": 1}


def test_nothing_but_the_declared_port_of_the_declared_host_is_there(outside):
    by = authority()
    there = server(outside, server_context(by, NAME))
    outside.door(there, by)
    before = outside.enclave.run(outside.enclave.rules.refused).tcp
    for address, port in ((AT, there.port + 1), (AT + 1, there.port)):
        with pytest.raises(ConnectionRefusedError):
            reach(outside, port, str(address))
    assert outside.enclave.run(outside.enclave.rules.refused).tcp == before + 2


@pytest.mark.parametrize("name", ["127.0.0.2", "::1"])
def test_a_host_that_is_an_address(outside, name):
    by = authority()
    there = server(outside, server_context(by, name), name)
    outside.door(there, by, name=name)
    client = reach(outside, there.port, name)
    client.sendall(b"hello")
    assert receive(client, 5) == b"HELLO"


@pytest.mark.parametrize("name", ["192.0.2.9", "2001:db8::9"])
def test_addresses_of_machines_elsewhere_lead_to_the_proxy(outside, name):
    class Refuses(OwnersWire):
        def socket(self, family):
            raise EnclaveError("host: no sockets")

    context = egress_context([authority().certificate.der])
    outside.doors((Host(name, 443, context), Refuses(outside.world)))
    with pytest.raises(ConnectionResetError):
        reach(outside, 443, name).recv(1)
    assert outside.refusals == {"unreachable": 1}
    with pytest.raises(ConnectionRefusedError):
        reach(outside, 444, name)


def test_a_host_is_tried_at_all_its_addresses(outside):
    by = authority()
    there = server(outside, server_context(by, NAME))
    outside.door(there, by, wire=OwnersWire(outside.world, ("::1", "127.0.0.2", "nonsense", "127.0.0.1")))
    client = reach(outside, there.port)
    client.sendall(b"hello")
    assert receive(client, 5) == b"HELLO"


def test_a_host_whose_name_is_never_looked_up_holds_no_other_up(outside):
    by = authority()
    there = server(outside, server_context(by, NAME, "slow.example.com"))
    context = egress_context([by.certificate.der])
    slow = OwnersWire(outside.world, held=threading.Event())
    outside.doors(
        (Host(NAME, there.port, context), OwnersWire(outside.world)),
        (Host("slow.example.com", there.port, context), slow),
        at=(AT, AT + 1),
    )
    waits = reach(outside, there.port, str(AT + 1))
    client = reach(outside, there.port)
    for each, word in ((client, b"one"), (waits, b"two")):
        each.sendall(word)
        assert receive(each, 3) == word.upper()
        slow.held.set()


def test_connections_that_say_nothing_keep_no_other_from_a_host(outside, monkeypatch):
    monkeypatch.setattr(egress_module, "_OPENING", 2)
    by = authority()
    there = server(outside, server_context(by, NAME))
    outside.door(there, by)
    silent = [reach(outside, there.port) for _ in range(4)]
    for each in (reach(outside, there.port), *silent):
        each.sendall(b"hello")
        assert receive(each, 5) == b"HELLO"


def test_a_program_that_has_ended_waits_for_no_host_to_which_it_has_said_nothing(outside):
    by = authority()
    wire = OwnersWire(outside.world, held=threading.Event())
    outside.door(server(outside, server_context(by, NAME)), by, wire=wire)
    reach(outside, outside.egress.status()[0]["port"]).close()
    outside.egress.drain(20)
    assert outside.egress.status()[0]["refusals"] == {}
    assert not wire.held.is_set()
    wire.held.set()
    waited(lambda: not outside.egress._doors[0]._opening, outside.loops[0])  # sockets that came have been let go


def test_connections_to_a_host_are_bounded(outside, monkeypatch):
    monkeypatch.setattr(egress_module, "LIMIT", 2)
    by = authority()
    there = server(outside, server_context(by, NAME))
    outside.door(there, by)
    kept = [reach(outside, there.port) for _ in range(2)]
    for each in kept:
        each.sendall(b"a")
        assert receive(each, 1) == b"A"
    with pytest.raises(ConnectionResetError):
        reach(outside, there.port).recv(1)
    assert outside.refusals == {"limit": 1}


def test_what_a_program_sends_last_reaches_the_host(outside):
    by = authority()
    there = server(outside, server_context(by, NAME))
    outside.door(there, by)
    client = reach(outside, there.port)
    client.sendall(b"the last")
    client.close()
    outside.egress.drain(20)
    assert outside.egress.status()[0]["connections"] == 0
    assert outside.egress.status()[0]["sent"] == 8
