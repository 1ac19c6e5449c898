"""Pinning for whoever brings a client of their own: an `ssl.SSLContext` that judges the peer in the handshake.

Anything that takes such a context (httpx, requests, aiohttp, urllib, http.client) then sends nothing to a peer that the
`Expect` does not accept: the check ends the handshake, and the request comes after it.
"""

from __future__ import annotations

import ssl

from strongroom.channel.tls import Expect
from strongroom.crypto import Certificate
from strongroom.errors import FormatError, PeerIdentityError


class PinnedContext(ssl.SSLContext):
    """A client's TLS 1.3 context that accepts exactly the peers that `expect` accepts.

    What is compared is the leaf, since Python before 3.13 gives no more of the chain: `expect_key` fits.
    Made by `pinned_context`.
    """

    expect: Expect


def pinned_context(expect: Expect) -> ssl.SSLContext:
    """A context whose handshakes raise PeerIdentityError unless `expect` accepts the peer's certificate."""
    context = PinnedContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # Keys are pinned, not chained to a public authority, and names prove nothing.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.expect = expect
    context.sslsocket_class = _PinnedSocket
    context.sslobject_class = _PinnedObject
    return context


class _PinnedSocket(ssl.SSLSocket):
    def do_handshake(self, block: bool = False) -> None:
        super().do_handshake(block)
        try:
            _check(self)
        except PeerIdentityError:
            self.close()
            raise


class _PinnedObject(ssl.SSLObject):
    def do_handshake(self) -> None:
        super().do_handshake()  # raises as long as it has not ended
        _check(self)


def _check(connection: ssl.SSLSocket | ssl.SSLObject) -> None:
    der, context = connection.getpeercert(binary_form=True), connection.context
    if not isinstance(context, PinnedContext) or not der:
        raise PeerIdentityError("peer certificate: none was shown")
    try:
        leaf = Certificate(der)
    except FormatError as error:
        raise PeerIdentityError(f"peer certificate: {error.message}") from error
    context.expect([leaf])
