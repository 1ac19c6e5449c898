"""Authenticated byte channels between named peers: TLS 1.3, and HTTP over it for both ends.

Rules:

- TLS 1.3 only, no session resumption: every connection has its own handshake, certificate proof and exporter.
- TLS itself accepts any certificate. Who the peer is, is decided by an `Expect` that every client must pass and that
  runs before a byte of the request leaves: a key that evidence was shown for, or a leaf of a pinned authority.
- Private keys live in memory only.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from strongroom.channel.duplex import Channel, TlsChannel
from strongroom.channel.http import HttpClient, Response
from strongroom.channel.tls import Expect, Identity, TlsStream, accept, connect, expect_authority, expect_key

if TYPE_CHECKING:
    from strongroom.channel.server import Server, TlsInfo, bind, tls_info

__all__ = [
    "Channel",
    "Expect",
    "HttpClient",
    "Identity",
    "Response",
    "Server",
    "TlsChannel",
    "TlsInfo",
    "TlsStream",
    "accept",
    "bind",
    "connect",
    "expect_authority",
    "expect_key",
    "tls_info",
]


def __getattr__(name: str) -> Any:
    # The server's end is imported when it is used: an enclave that only connects need not trust an HTTP server.
    if name in ("Server", "TlsInfo", "bind", "tls_info"):
        return getattr(importlib.import_module("strongroom.channel.server"), name)
    raise AttributeError(f"module 'strongroom.channel' has no attribute {name!r}")
