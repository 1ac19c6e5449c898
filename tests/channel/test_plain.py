"""Heads of requests and answers: what the short way reads is what h11 reads, and nothing leaves its line."""

from __future__ import annotations

import datetime as dt
import socket
import threading

import h11
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from strongroom.channel import HttpClient, Identity, Response, accept, expect_key
from strongroom.channel.plain import read_head, request_head
from strongroom.errors import ChannelError, UsageError

USUAL = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Head: a b"

names = st.sampled_from(["content-length", "Content-Length", "x", "transfer-encoding", "connection", "a b", "é", ""])
values = st.sampled_from(
    ["0", "2", "+2", "2, 2", "-1", "0x2", "1e1", "chunked", "close", "", " ", "a\tb", "ÿ", "a\0b", "a\nb"]
)
lines = st.lists(st.tuples(names, st.sampled_from([":", ": ", " : ", ""]), values), max_size=3)
statuses = st.sampled_from(
    ["HTTP/1.1 200 OK", "HTTP/1.1 404 ", "HTTP/1.1 204 x", "HTTP/1.0 200 OK", "HTTP/1.1 200", "200"]
)


def by_h11(data: bytes) -> tuple[int, dict[str, str], bytes] | None:
    """Status, headers and body of an answer to a POST after which the connection goes on; None if h11 refuses it."""
    http = h11.Connection(our_role=h11.CLIENT)
    http.send(h11.Request(method="POST", target="/", headers=[("host", "a")]))
    http.send(h11.EndOfMessage())
    http.receive_data(data)
    status, headers, body = 0, {}, b""
    try:
        while not isinstance(event := http.next_event(), h11.EndOfMessage):
            if isinstance(event, h11.Response):
                status = event.status_code
                headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in event.headers}
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            else:
                return None
    except h11.RemoteProtocolError:
        return None
    return (status, headers, body) if http.their_state is h11.DONE else None


@given(statuses, lines, st.sampled_from(["\r\n", "\n", "\r", "\r\n "]), st.binary(max_size=3))
@example("HTTP/1.1 200 OK", [("content-length", ": ", "2"), ("transfer-encoding", ": ", "chunked")], "\r\n", b"")
@example("HTTP/1.1 200 OK", [("content-length", ": ", "2"), ("Content-Length", ": ", "0")], "\r\n", b"")
@settings(max_examples=300, deadline=None)
def test_the_short_way_reads_what_h11_reads(status, lines, end, noise):
    text = end.join([status, *("".join(line) for line in lines), "content-length: 2"[: 17 * (len(noise) % 2)]])
    head = (text.encode("latin-1") + noise).removesuffix(b"\r\n")
    found = read_head(head)
    if found is not None:
        body = b"b" * found.length
        assert by_h11(head + b"\r\n\r\n" + body) == (found.status, found.headers, body)


def test_the_usual_answer_goes_the_short_way():
    found = read_head(USUAL)
    assert found is not None
    assert (found.status, found.headers, found.length) == (200, {"content-length": "2", "x-head": "a b"}, 2)


@pytest.mark.parametrize(
    "head",
    [
        USUAL.replace(b"200", b"204"),
        USUAL.replace(b"200", b"100"),
        USUAL.replace(b"1.1", b"1.0"),
        USUAL.replace(b"Content-Length: 2\r\n", b""),
        USUAL + b"\r\ncontent-length: 2",
        USUAL + b"\r\ntransfer-encoding: chunked",
        USUAL + b"\r\nconnection: close",
        USUAL + b"\r\nx-head: again",
        USUAL + b"\r\n folded",
        USUAL + b"\nbare: line",
        USUAL + b"\r\n" + b"x" * 20_000 + b": long",
    ],
)
def test_whatever_bears_on_framing_is_left_to_h11(head):
    assert read_head(head) is None


def test_a_request_stays_on_its_lines():
    assert request_head("GET", "/a?b=c", {"host": "cas"}) == b"GET /a?b=c HTTP/1.1\r\nhost: cas\r\n\r\n"
    for method, target in (("GET", "/a b"), ("GET", "/a\r\nx: y"), ("GET", ""), ("G T", "/"), ("GET", "/é")):
        with pytest.raises(UsageError, match="wanted a method and a path"):
            request_head(method, target, {})
    for name, value in (
        ("x", "a\r\ny: z"),
        ("x", "a\nb"),
        ("x\r\ny", "z"),
        ("x:", "y"),
        ("", "y"),
        ("x", "é"),
        ("x", "\0"),
    ):
        with pytest.raises(UsageError, match="wanted printable ASCII on one line"):
            request_head("GET", "/", {name: value})


def answered(*pieces: bytes, method: str = "POST") -> Response:
    """The answer that a client reads of a server that sends these pieces and hangs up."""
    ours, theirs = socket.socketpair()
    identity = Identity.fresh("server", now=dt.datetime.now(dt.UTC))
    key = identity.key.public.fingerprint

    def serve() -> None:
        theirs.settimeout(5)
        with accept(theirs, expect=lambda _: None, identity=identity) as stream:
            stream.recv()
            for piece in pieces:
                stream.send(piece)

    thread = threading.Thread(target=serve)
    thread.start()
    client = Identity.fresh("client", now=dt.datetime.now(dt.UTC))
    try:
        with HttpClient(
            lambda: ours, host="h", expect=expect_key(key), identity=client, max_body=100, timeout=5
        ) as http:
            return http.request(method, "/", fresh=True)
    finally:
        thread.join()


@pytest.mark.parametrize(
    ("pieces", "body"),
    [
        ([USUAL + b"\r\n\r\nab"], b"ab"),
        ([USUAL[:9], USUAL[9:], b"\r\n", b"\r\na", b"b"], b"ab"),
        ([b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n"], b"ab"),
        ([b"HTTP/1.1 200 OK\r\n\r\n", b"ab"], b"ab"),
        ([b"HTTP/1.1 103 Early\r\n\r\n" + USUAL + b"\r\n\r\nab"], b"ab"),
    ],
)
def test_answers_of_every_form_arrive(pieces, body):
    assert answered(*pieces).body == body


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        ([USUAL + b"\r\n\r\na"], "closed in the middle of an answer"),
        ([USUAL + b"\r\n\r\nabc"], "goes on after its end"),
        ([USUAL.replace(b": 2", b": 101") + b"\r\n\r\n"], "limit of 100 bytes"),
        ([USUAL.replace(b": 2", b": -1") + b"\r\n\r\n"], "not HTTP/1.1"),
        ([USUAL + b"\r\ncontent-length: 3\r\n\r\nab"], "not HTTP/1.1"),
        ([b"HTTP/1.1 200 OK\r\nx: " + b"y" * 20_000], "not HTTP/1.1"),
        ([b"SSH-2.0-x\r\n\r\n"], "not HTTP/1.1"),
        ([USUAL], "not HTTP/1.1"),
        ([], "closed by the peer before it answered"),
    ],
)
def test_a_malformed_answer_is_an_error_of_the_channel_s(pieces, message):
    with pytest.raises(ChannelError, match=message):
        answered(*pieces)
