"""Clients that are not ours, pinned to a key: nothing is sent to a peer of another one."""

from __future__ import annotations

import asyncio
import datetime as dt
import http.client
import socket
import ssl
import threading

import pytest

from strongroom.channel import Identity, Server, bind, expect_key
from strongroom.channel.pinned import pinned_context
from strongroom.errors import PeerIdentityError

MOMENT = dt.datetime.now(dt.UTC)
IDENTITY = Identity.fresh("service", now=MOMENT)
KEY = IDENTITY.key.public.fingerprint
OTHER = "sha256:" + "00" * 32


@pytest.fixture(scope="module")
def served():
    """The port of a service, and the paths that it was asked for."""
    paths = []

    async def app(scope, receive, send):
        paths.append(scope["path"])
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    with Server(app, bind("127.0.0.1", 0), IDENTITY) as server:
        yield server.port, paths


def test_the_standard_library_s_client(served):
    port, paths = served
    right = http.client.HTTPSConnection("127.0.0.1", port, context=pinned_context(expect_key(KEY)))
    right.request("GET", "/right")
    assert right.getresponse().read() == b"ok"
    right.close()
    wrong = http.client.HTTPSConnection("127.0.0.1", port, context=pinned_context(expect_key(OTHER)))
    with pytest.raises(PeerIdentityError, match=f"peer key: got {KEY}, wanted {OTHER}"):
        wrong.request("GET", "/wrong")
    wrong.close()
    assert "/right" in paths
    assert "/wrong" not in paths


def test_asyncio(served):
    port, paths = served

    async def ask(key, path):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=pinned_context(expect_key(key)))
        writer.write(f"GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n".encode())
        answer = await reader.read()
        writer.close()
        return answer

    assert asyncio.run(ask(KEY, "/async")).endswith(b"ok")
    with pytest.raises(PeerIdentityError):
        asyncio.run(ask(OTHER, "/wrong"))
    assert "/async" in paths
    assert "/wrong" not in paths


def test_httpx_where_it_is_installed(served):
    httpx = pytest.importorskip("httpx")
    port, paths = served
    with httpx.Client(verify=pinned_context(expect_key(KEY)), trust_env=False) as client:
        assert client.get(f"https://127.0.0.1:{port}/httpx").text == "ok"
    with (
        httpx.Client(verify=pinned_context(expect_key(OTHER)), trust_env=False) as client,
        pytest.raises(PeerIdentityError),
    ):
        client.get(f"https://127.0.0.1:{port}/wrong")
    assert "/httpx" in paths
    assert "/wrong" not in paths


def test_nothing_older_than_tls_1_3(tmp_path):
    pem = tmp_path / "key.pem"
    pem.write_bytes(IDENTITY.key.pem() + IDENTITY.chain[0].pem())
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    old.load_cert_chain(pem)
    listening = bind("127.0.0.1", 0)

    def serve():
        with listening.accept()[0] as sock, pytest.raises(ssl.SSLError):
            old.wrap_socket(sock, server_side=True)

    thread = threading.Thread(target=serve)
    thread.start()
    with (
        socket.create_connection(listening.getsockname()) as sock,
        pytest.raises(ssl.SSLError, match=r"(?i)protocol.version"),
    ):
        pinned_context(expect_key(KEY)).wrap_socket(sock)
    thread.join()
    listening.close()
