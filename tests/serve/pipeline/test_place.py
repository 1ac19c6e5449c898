"""Where a part on another machine listens."""

from __future__ import annotations

import socket

import pytest

from strongroom.channel import bind
from strongroom.errors import UsageError
from strongroom.serve.pipeline.place import Place


@pytest.mark.parametrize("text", ["", "host", ":9002", "host:", "host:0", "host:65536", "host:9a", "host:²", "a b:1"])
def test_what_is_no_place_is_refused(text):
    with pytest.raises(UsageError, match="--at"):
        Place.parse(text, "--at")


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_dialled_without_waiting_and_watched(host):
    try:
        listener = bind(host.strip("[]"), 0)
    except Exception:
        pytest.skip(f"no {host} here")
    with listener:
        place = Place.parse(f"{host}:{listener.getsockname()[1]}", "--at")
        assert str(place) == f"{host}:{place.port}"
        with place.dial() as sock:
            accepted, _ = listener.accept()
            with accepted:
                sock.settimeout(10)
                sock.sendall(b"hello")
                assert accepted.recv(5) == b"hello"
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
