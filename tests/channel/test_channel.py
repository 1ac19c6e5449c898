"""Both ends of a channel: who the peer is, the exporter, HTTP over it, and what happens when something is wrong."""

import asyncio
import contextlib
import datetime as dt
import json
import os
import signal
import socket
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
from OpenSSL import SSL

from strongroom.channel import (
    HttpClient,
    Identity,
    Server,
    accept,
    bind,
    connect,
    expect_authority,
    expect_key,
    tls_info,
)
from strongroom.channel.connections import have_descriptors
from strongroom.channel.records import ciphertext_into, read_into
from strongroom.crypto import CertificateAuthority, SigningKey
from strongroom.errors import ChannelError, PeerIdentityError, PortInUseError, UnknownPolicyError, UsageError

NOW = dt.datetime.now(dt.UTC)
LABEL = b"EXPORTER-test"


def clock():
    return dt.datetime.now(dt.UTC)


async def application(scope, receive, send):
    body = b""
    while True:
        event = await receive()
        body += event.get("body", b"")
        if not event.get("more_body"):
            break
    info = tls_info(scope)
    status = 200
    if scope["path"] == "/echo":
        answer = body
    elif scope["path"] == "/missing":
        status, answer = (
            404,
            json.dumps({"error": "policy: no such", "code": "unknown-policy", "hint": "look"}).encode(),
        )
    elif scope["path"] == "/odd":
        status, answer = 500, b"<html>"
    else:
        count = info.session["count"] = info.session.get("count", 0) + 1
        peer = info.peer.key.fingerprint if info.peer else None
        exported = info.export(LABEL, b"context").hex()
        answer = json.dumps({"peer": peer, "exporter": exported, "count": count}).encode()
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [(b"content-length", str(len(answer)).encode())],
        }
    )
    await send({"type": "http.response.body", "body": answer})


@pytest.fixture
def server():
    identity = Identity.fresh("server", now=NOW)
    with Server(application, bind("127.0.0.1", 0), identity) as running:
        running.key = identity.key.public.fingerprint
        yield running


def client(server, **options):
    options.setdefault("expect", expect_key(server.key))
    return HttpClient.to("127.0.0.1", server.port, **options)


def test_the_exporter_is_equal_at_both_ends_and_differs_between_connections(server):
    seen = []
    for _ in range(2):
        with client(server) as http:
            stream = http.connect()
            answer = http.get("/")
            assert answer["exporter"] == stream.export(LABEL, b"context").hex()
            assert answer["exporter"] != stream.export(LABEL, b"other").hex()
            seen.append(answer["exporter"])
    assert seen[0] != seen[1]


def test_the_server_sees_the_key_that_the_client_proved(server):
    identity = Identity.fresh("client", now=NOW)
    with client(server, identity=identity) as http:
        assert http.get("/")["peer"] == identity.key.public.fingerprint
    with client(server) as http:
        assert http.get("/")["peer"] is None


def test_a_connection_is_kept_and_its_session_with_it(server):
    with client(server) as http:
        assert [http.get("/")["count"] for _ in range(3)] == [1, 2, 3]
        http.close()
        assert http.get("/")["count"] == 1


@pytest.mark.parametrize("size", [0, 1, 16_384, 5_000_001])
def test_bodies_of_any_size_arrive_whole(server, size):
    body = bytes(range(256)) * (size // 256 + 1)
    with client(server) as http:
        assert http.request("POST", "/echo", body=[body[: size // 2], body[size // 2 : size]]).body == body[:size]


class Public:
    """A connection with what pyOpenSSL documents, and no more."""

    def __init__(self, connection):
        self.recv_into, self.bio_read = connection.recv_into, connection.bio_read


@pytest.mark.parametrize("shown", [lambda connection: connection, Public])
def test_records_go_to_memory_of_the_reader_s(shown):
    identity, (near, far) = Identity.fresh("server", now=NOW), socket.socketpair()
    with ThreadPoolExecutor(1) as pool, near, far:
        other = pool.submit(accept, far, expect=lambda chain: None, identity=identity)
        ours, _ = connect(near, expect=expect_key(identity.key.public.fingerprint), identity=identity).release()
        theirs, _ = other.result().release()
        near.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            ours.bio_write(near.recv(1 << 16))  # what TLS says after the handshake
    message, wire, got = os.urandom(40_000), memoryview(bytearray(1000)), memoryview(bytearray(50_000))
    assert not ciphertext_into(shown(theirs), wire)
    theirs.send(message)
    while size := ciphertext_into(shown(theirs), wire):
        ours.bio_write(wire[:size])
    filled = 0
    with pytest.raises(SSL.WantReadError):
        while True:
            filled += read_into(shown(ours), got[filled:])
    assert got[:filled] == message
    theirs.send(message)
    forged = bytearray(theirs.bio_read(50_000))
    forged[20_000] ^= 1
    ours.bio_write(forged)
    assert read_into(shown(ours), got) == 1 << 14
    with pytest.raises(SSL.Error, match="bad record mac"):
        read_into(shown(ours), got)


def test_an_answer_over_the_limit_is_refused(server):
    with client(server, max_body=1000) as http, pytest.raises(ChannelError, match="limit of 1000"):
        http.request("POST", "/echo", body=bytes(1001))


def test_another_key_is_refused_before_a_byte_of_the_request_is_sent(server):
    other = SigningKey.generate().public.fingerprint
    with client(server, expect=expect_key(other)) as http, pytest.raises(PeerIdentityError, match="peer key"):
        http.get("/")
    with client(server) as http:
        assert http.get("/")["count"] == 1


def test_an_error_is_raised_here_as_the_class_it_was_raised_as_there(server):
    with client(server) as http:
        with pytest.raises(UnknownPolicyError, match="no such") as caught:
            http.get("/missing")
        assert caught.value.hint == "look"
        with pytest.raises(ChannelError, match="HTTP 500"):
            http.get("/odd")


def test_an_authority_names_its_leaves():
    authority = CertificateAuthority.create("CAS", now=NOW)
    key = SigningKey.generate()
    hour = dt.timedelta(hours=1)
    leaf = authority.issue(key.public, "a", now=NOW, lifetime=hour, uris=["spiffe://x/a"])
    identity = Identity(key, (leaf, authority.certificate))
    root = authority.key.public.fingerprint

    def fetch(**expected):
        http = HttpClient.to("127.0.0.1", running.port, expect=expect_authority(**{"now": clock} | expected))
        with http:
            return http.get("/")

    with Server(application, bind("127.0.0.1", 0), identity) as running:
        assert fetch(root_key=root, uri="spiffe://x/a")["count"] == 1
        with pytest.raises(PeerIdentityError, match="peer name"):
            fetch(root_key=root, uri="spiffe://x/b")
        with pytest.raises(PeerIdentityError, match="peer authority"):
            fetch(root_key=key.public.fingerprint, uri="spiffe://x/a")
        with pytest.raises(PeerIdentityError, match="not valid at"):
            fetch(root_key=root, uri="spiffe://x/a", now=lambda: NOW + 2 * hour)


def test_a_leaf_of_a_forged_authority_with_the_real_root_attached_is_refused():
    real = CertificateAuthority.create("CAS", now=NOW)
    forged = CertificateAuthority.create("CAS", now=NOW)
    key = SigningKey.generate()
    leaf = forged.issue(key.public, "a", now=NOW, lifetime=dt.timedelta(hours=1), uris=["spiffe://x/a"])
    expect = expect_authority(real.key.public.fingerprint, uri="spiffe://x/a", now=clock)
    identity = Identity(key, (leaf, real.certificate))
    with (
        Server(application, bind("127.0.0.1", 0), identity) as running,
        HttpClient.to("127.0.0.1", running.port, expect=expect) as http,
        pytest.raises(PeerIdentityError, match="not issued by"),
    ):
        http.get("/")


def test_a_port_in_use_is_its_own_error(server):
    with pytest.raises(PortInUseError, match="in use"):
        bind("127.0.0.1", server.port)


def test_nobody_listening_and_a_peer_without_tls_are_channel_errors():
    with socket.create_server(("127.0.0.1", 0)) as plain:
        port = plain.getsockname()[1]
        http = HttpClient.to("127.0.0.1", port, expect=expect_key("sha256:"), timeout=5)
        import threading

        def speak_plainly():
            peer, _ = plain.accept()
            with peer:
                peer.recv(10_000)
                peer.sendall(b"HTTP/1.0 400 no\r\n\r\n")

        thread = threading.Thread(target=speak_plainly)
        thread.start()
        with pytest.raises(ChannelError, match="TLS handshake"):
            http.get("/")
        thread.join()
    with pytest.raises(ChannelError, match=f":{port}"):
        http.get("/")


def test_the_server_refuses_what_is_not_tls(server):
    with socket.create_connection(("127.0.0.1", server.port)) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
        answer = plain.recv(1000)
        assert not answer.startswith(b"HTTP")


def test_tls_1_2_is_refused(server):
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with (
        socket.create_connection(("127.0.0.1", server.port)) as plain,
        pytest.raises(ssl.SSLError),
    ):
        context.wrap_socket(plain)


def converse(server, *pieces):
    """Send raw bytes over TLS; what came back before the server hung up."""
    answer = b""
    with connect(socket.create_connection(("127.0.0.1", server.port)), expect=expect_key(server.key)) as stream:
        try:
            for piece in pieces:
                stream.send(piece)
            while data := stream.recv():
                answer += data
        except ChannelError:
            pass
    return answer


@pytest.mark.parametrize(
    "head",
    [
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"".join(b"h%d: x\r\n" % i for i in range(200)) + b"\r\n",
        b"GET / HTTP/1.1\r\nh: " + b"a" * 100_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nh: " + b"a" * 10_000_000,
        b"GET /" + b"a" * 10_000_000,
    ],
    ids=["url", "many headers", "one header", "an endless header", "an endless url"],
)
def test_a_request_whose_head_is_too_long_is_cut_off(server, head):
    answer = converse(server, head)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 400 "), answer[:200]
    with client(server) as http:
        assert http.get("/")["count"] == 1


def test_a_port_that_is_none_is_named():
    for port in (-1, 65_536, 99_999):
        with pytest.raises(UsageError, match="wanted 0 to 65535"):
            bind("127.0.0.1", port)


def silent(server):
    return socket.create_connection(("127.0.0.1", server.port))


def test_those_that_say_nothing_count_and_give_way(monkeypatch):
    """Who opens all connections there may be and says nothing keeps nobody out, and takes no more than these."""
    monkeypatch.setattr("strongroom.channel.server._MAX_CONNECTIONS", 3)
    identity = Identity.fresh("server", now=NOW)
    with Server(application, bind("127.0.0.1", 0), identity) as running, contextlib.ExitStack() as held:
        running.key = identity.key.public.fingerprint
        first, *_ = [held.enter_context(silent(running)) for _ in range(3)]
        with client(running) as http:
            assert http.get("/")["count"] == 1
            assert first.recv(1) == b""
            for _ in range(2):
                held.enter_context(client(running)).get("/")
            with pytest.raises(ChannelError):
                held.enter_context(client(running)).get("/")  # nobody who has ended a handshake gives way
            assert http.get("/")["count"] == 2


def test_a_server_may_open_what_its_connections_need():
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    least = 256 if soft == resource.RLIM_INFINITY else min(soft, 256)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (least, hard))
        have_descriptors(least + 1)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] in (least + 1, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_who_does_not_read_an_answer_is_cut_off(monkeypatch):
    monkeypatch.setattr("strongroom.channel.server._READ_SECONDS", 0.0)
    ended = threading.Event()

    async def endless(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await receive()
        gone = asyncio.ensure_future(receive())
        while not gone.done():
            await send({"type": "http.response.body", "body": bytes(1 << 18), "more_body": True})
            await asyncio.sleep(0)
        ended.set()

    identity = Identity.fresh("server", now=NOW)
    with Server(endless, bind("127.0.0.1", 0), identity) as running:
        stream = connect(silent(running), expect=expect_key(identity.key.public.fingerprint))
        stream.send(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        assert ended.wait(60)
        stream.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_says_nothing_on_its_parent_s_connection(server):
    with client(server) as http:
        assert http.get("/")["count"] == 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # there are threads: the server's
            child = os.fork()
        if not child:
            signal.alarm(30)
            # With the parent's keys and counters, what it sent would share a nonce with what the parent sends; so it
            # makes a connection of its own.
            os._exit(int(http.get("/")["count"] != 1))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert http.get("/")["count"] == 2  # the same connection, still in order


def test_a_handshake_has_an_end_however_the_peer_drips(monkeypatch):
    """A byte now and then is progress, and would hold a server for hours."""
    ours, theirs = socket.socketpair()
    ours.settimeout(5)
    now = [0.0]

    class Clock:
        @staticmethod
        def monotonic():
            now[0] += 1
            return now[0]

    monkeypatch.setattr("strongroom.channel.tls.time", Clock)
    with ours, theirs:
        theirs.sendall(b"\x16\x03\x01\x05\xfa")  # the header of a record, and then a byte for each time it is read
        real = ours.recv_into

        class Drips:
            def __getattr__(self, name):
                return getattr(ours, name)

            def recv_into(self, out):
                theirs.sendall(b"\x01")
                return real(out, 1)

        with pytest.raises(ChannelError, match="not complete after 5 s"):
            accept(Drips(), expect=lambda chain: None, identity=Identity.fresh("x", now=dt.datetime.now(dt.UTC)))
