"""Attacks on the mesh: from the machine between two proxies, from another enclave, and from the program itself."""

from __future__ import annotations

import datetime as dt
import socket

import pytest

from strongroom.crypto import CertificateAuthority, SigningKey
from strongroom.shield.network.members import Member
from tests.shield.network.conftest import mesh  # noqa: F401
from tests.shield.network.mesh_world import joined, now, receive

MARKER = b"marker-7c1f5e2a-of-the-program"


def test_the_wire_shows_no_byte_of_the_program(mesh):  # noqa: F811
    one, other = mesh.pair()
    wire = mesh.wired(one, other)
    listener = other.serve(7000)
    client = one.connect(other, 7000)
    client.sendall(MARKER)
    server, _ = other.accept(listener)
    assert receive(server, len(MARKER)) == MARKER
    server.sendall(MARKER)
    assert receive(client, len(MARKER)) == MARKER
    seen = joined(wire.seen)
    assert len(seen) > 2 * len(MARKER)
    assert MARKER not in seen
    assert MARKER[:8] not in seen


def _flipped(forth, data, before):
    return data[:-1] + bytes([data[-1] ^ 1])


def _twice(forth, data, before):
    return data + data


def _backwards(forth, data, before):
    half = len(data) // 2
    return data[half:] + data[:half]


def _cut(forth, data, before):
    return None


@pytest.mark.parametrize("change", [_flipped, _twice, _backwards, _cut])
def test_what_is_changed_on_the_wire_reaches_no_program(mesh, change):  # noqa: F811
    one, other = mesh.pair()
    wire = mesh.wired(one, other)
    listener = other.serve(7000)
    client = one.connect(other, 7000)
    client.sendall(b"first")
    server, _ = other.accept(listener)
    assert receive(server, 5) == b"first"
    wire.change = change
    client.sendall(MARKER)
    got = b""
    with pytest.raises(ConnectionResetError):
        while True:
            got += server.recv(100)
            assert len(got) <= len(MARKER)  # an end in order would be an empty piece for ever
            if not got:
                raise AssertionError
    assert MARKER.startswith(got)


def test_a_tunnel_is_of_no_use_a_second_time(mesh):  # noqa: F811
    one, other = mesh.pair()
    wire = mesh.wired(one, other)
    listener = other.serve(7000)
    client = one.connect(other, 7000)
    client.sendall(MARKER)
    server, _ = other.accept(listener)
    assert receive(server, len(MARKER)) == MARKER
    replayed = mesh.hold(socket.create_connection(other.member.endpoint, 20))
    replayed.sendall(b"".join(data for forth, data in wire.seen if forth))
    while replayed.recv(1 << 16):
        pass
    listener.settimeout(0)
    with pytest.raises(BlockingIOError):
        listener.accept()


def test_a_key_of_another_authority_an_old_certificate_and_another_policy_open_nothing(mesh):  # noqa: F811
    one, other = mesh.pair()
    own, day = one.identity, dt.timedelta(days=1)
    listener = other.serve(7000)
    others = CertificateAuthority.create("another CAS", now=now())
    shown = (
        mesh.identity(one.key, issuer=others),
        mesh.identity(one.key, at=now() - day),
        mesh.identity(one.key, at=now() + day),
        mesh.identity(one.key, "acme/another"),
        mesh.identity(SigningKey.generate()),
    )
    for identity in shown:
        # It trusts whom it should, and shows what it should not.
        one.identity = type(own)(identity.key, (identity.chain[0], own.chain[-1]))
        client = one.connect(other, 7000)
        with pytest.raises(ConnectionResetError):
            client.sendall(MARKER)
            if identity is shown[-1]:
                assert other.asked.wait(20)
                other.knows(one)
            client.recv(1)
    assert other.refusals["certificate"] == 3
    assert (other.refusals["policy"], other.refusals["unknown"]) == (1, 1)
    listener.settimeout(0)
    with pytest.raises(BlockingIOError):
        listener.accept()


def test_who_answers_in_the_place_of_another_is_sent_nothing(mesh):  # noqa: F811
    one, other = mesh.pair()
    third = mesh.enclave(2)
    third.knows(one)
    listener = third.serve(7000)
    # The host leads the connection to another enclave of the same policy.
    member = other.member
    one.knows(third, Member(member.policy, 1, member.address, member.key, third.member.endpoint))
    client = one.connect(other, 7000)
    with pytest.raises(ConnectionResetError):
        client.sendall(MARKER)
        client.recv(1)
    assert one.refusals == {"another": 1}
    listener.settimeout(0)
    with pytest.raises(BlockingIOError):
        listener.accept()


def test_a_revoked_replica_is_cut_off_on_both_sides_and_comes_in_no_more(mesh):  # noqa: F811
    one, other = mesh.pair()
    listener = other.serve(7000)
    client = one.connect(other, 7000)
    client.sendall(b"x")
    server, _ = other.accept(listener)
    assert receive(server, 1) == b"x"
    other.proxy.revoke(one.key.public.fingerprint)
    for each in (client, server):
        with pytest.raises(ConnectionResetError):
            each.recv(1)
    again = one.connect(other, 7000)
    with pytest.raises(ConnectionResetError):
        again.recv(1)
    assert other.refusals["revoked"] == 2
    with pytest.raises(ConnectionResetError):
        other.connect(one, 7000).recv(1)


def test_a_program_gets_nowhere_past_its_proxy(mesh):  # noqa: F811
    one, other = mesh.pair()
    outside = mesh.hold(socket.create_server(("127.0.0.1", 0)))
    with pytest.raises(ConnectionRefusedError):
        one.reach("127.0.0.1", outside.getsockname()[1])  # the host's
    with pytest.raises(ConnectionRefusedError):
        one.reach("127.0.0.1", other.member.endpoint[1])
    inside = one.proxy.inside_port
    with pytest.raises(ConnectionResetError):
        one.reach("127.0.0.1", inside).recv(1)  # the proxy itself, which leads nowhere
    assert one.refusals == {"unknown": 1}
