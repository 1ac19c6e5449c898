"""Bytes in pieces of all sizes, both ways at once, past readers that are slow and quick in turns."""

from __future__ import annotations

import random
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

RECORD = 1 << 14  # of TLS
SIZES = (1, 5, 22, RECORD - 1, RECORD, RECORD + 1, 2 * RECORD, (1 << 18) - 1, 1 << 18, (1 << 18) + 1, 1 << 20)


def _pieces(seed: int) -> list[bytes]:
    drawn = random.Random(seed)  # noqa: S311  # the same each time
    return [drawn.randbytes(drawn.choice(SIZES)) for _ in range(40)]


def _send(sock, pieces):
    for piece in pieces:
        sock.sendall(piece)
    sock.shutdown(socket.SHUT_WR)


def _receive(sock, seed):
    """All until the end, in bites of which the small ones leave much behind."""
    drawn, got = random.Random(seed), bytearray()  # noqa: S311
    while bite := sock.recv(drawn.choice(SIZES[2:])):
        got += bite
    return bytes(got)


@pytest.mark.parametrize("seed", range(3))
def test_pieces_of_all_sizes_arrive_in_order_both_ways(mesh, seed):
    one, other = mesh.pair()
    listener = other.serve(7000)
    client = one.connect(other, 7000)
    forth, back = _pieces(2 * seed), _pieces(2 * seed + 1)
    client.sendall(forth[0])
    server, _ = other.accept(listener)
    with ThreadPoolExecutor(4) as threads:
        arrived = threads.submit(_receive, server, seed), threads.submit(_receive, client, seed)
        sent = threads.submit(_send, client, forth[1:]), threads.submit(_send, server, back)
        assert [each.result(30) for each in arrived] == [b"".join(forth), b"".join(back)]
        for each in sent:
            each.result(30)
    assert one.refusals == other.refusals == {}
    [member] = one.proxy.status()["members"]
    assert (member["sent"], member["received"]) == (len(b"".join(forth)), len(b"".join(back)))


def test_messages_there_and_back_pass_while_another_stream_flows(mesh):
    one, other = mesh.pair()
    listener = other.serve(7000)
    ends = []
    for _ in range(2):
        client = one.connect(other, 7000)
        client.sendall(b"x")
        server, _ = other.accept(listener)
        assert server.recv(1) == b"x"
        ends.append((client, server))
    (client, server), (streaming, streamed) = ends
    with ThreadPoolExecutor(2) as threads:
        pieces = _pieces(7)
        sent, arrived = threads.submit(_send, streaming, pieces), threads.submit(_receive, streamed, 7)
        for number in range(200):
            message = b"%d" % number
            client.sendall(message)
            assert server.recv(100) == message
            server.sendall(message * 2)
            assert client.recv(100) == message * 2
        assert arrived.result(30) == b"".join(pieces)
        sent.result(30)


def test_what_stays_on_one_machine_is_not_paced(mesh):
    one, other = mesh.pair()
    listener = other.serve(7000)
    client = one.connect(other, 7000)
    client.sendall(b"x")
    server, _ = other.accept(listener)
    assert server.recv(1) == b"x"
    for sock in (client, server):
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0") == b"reno"
