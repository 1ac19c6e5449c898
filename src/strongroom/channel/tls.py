"""TLS 1.3 with an exporter (RFC 8446, section 7.5), which the standard library's `ssl` does not offer.

A connection runs over memory buffers, so that one implementation serves blocking sockets here and asyncio in
`server.py`.
"""

from __future__ import annotations

import datetime as dt
import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from types import TracebackType
from typing import Self

from OpenSSL import SSL, crypto

from strongroom.channel.records import PLAIN_RECORD, ciphertext_into
from strongroom.crypto import Certificate, SigningKey, equal, self_signed
from strongroom.errors import ChannelError, FormatError, PeerIdentityError, StrongroomError

# pyOpenSSL allocates as much as is asked for, and beyond 128 KiB the C library maps and unmaps fresh pages each time.
CHUNK = 120 << 10
BATCH = 7 * PLAIN_RECORD  # whose records a chunk holds
_EXPORTED = 32
# SSL_OP_CLEANSE_PLAINTEXT, which pyOpenSSL does not name (OpenSSL 3.0, openssl/ssl.h): what was decrypted is cleared in
# TLS's buffer once it has been handed over, and not only when more arrives.
_CLEANSE_PLAINTEXT = 1 << 1
# SSL_MODE_ENABLE_PARTIAL_WRITE, which pyOpenSSL sets and does not name: each call would encrypt one record. What is
# written here goes to memory, which takes all there is.
_PARTIAL_WRITE = 1 << 0

Expect = Callable[[Sequence[Certificate]], None]
"""Decides who the peer is: given its chain, leaf first; raises PeerIdentityError unless it is the one meant."""


@dataclass(frozen=True)
class Identity:
    """What an end of a channel presents: a private key, and certificates for it, leaf first."""

    key: SigningKey
    chain: tuple[Certificate, ...]

    @classmethod
    def of_key(cls, key: SigningKey, name: str, *, now: dt.datetime, uri: str | None = None) -> Identity:
        """A key under a self-signed certificate of one day: it proves possession of the key, nothing else."""
        lifetime = dt.timedelta(days=1)
        return cls(key, (self_signed(key, name, now=now, lifetime=lifetime, uri=uri),))

    @classmethod
    def fresh(cls, name: str, *, now: dt.datetime, uri: str | None = None) -> Identity:
        """The same of a new key."""
        return cls.of_key(SigningKey.generate(), name, now=now, uri=uri)


def expect_key(fingerprint: str) -> Expect:
    """The peer holds exactly the key with this ``sha256:...`` fingerprint."""

    def check(chain: Sequence[Certificate]) -> None:
        got = chain[0].key.fingerprint
        if not equal(got.encode(), fingerprint.encode()):
            raise PeerIdentityError(f"peer key: got {got}, wanted {fingerprint}")

    return check


def expect_authority(root_key: str, *, uri: str, now: Callable[[], dt.datetime]) -> Expect:
    """The peer shows a leaf that names `uri`, issued by an authority whose key has the fingerprint `root_key`."""

    def check(chain: Sequence[Certificate]) -> None:
        root = next((c for c in chain[1:] if equal(c.key.fingerprint.encode(), root_key.encode())), None)
        if root is None:
            shown = chain[-1].key.fingerprint
            raise PeerIdentityError(
                f"peer authority: got {shown}, wanted {root_key}",
                hint="this is not the CAS that was named, or it is sealed after a restart and waits for its people to "
                "`strongroom cas unseal` it: ask its operator, and send it nothing until then",
            )
        try:
            root.verify_issued_by(root, now=now())
            chain[0].verify_issued_by(root, now=now())
        except StrongroomError as error:
            raise PeerIdentityError(f"peer certificate: {error.message}") from error
        if uri not in chain[0].uris:
            raise PeerIdentityError(f"peer name: got {', '.join(chain[0].uris) or 'none'}, wanted {uri}")

    return check


def server_context(identity: Identity) -> SSL.Context:
    """A server that asks for a client certificate, accepts any or none, and leaves judging it to the application."""
    return _context(SSL.TLS_SERVER_METHOD, identity)


def client_context(identity: Identity | None) -> SSL.Context:
    """A client, with a certificate or without."""
    return _anonymous() if identity is None else _context(SSL.TLS_CLIENT_METHOD, identity)


@cache
def _anonymous() -> SSL.Context:
    return _context(SSL.TLS_CLIENT_METHOD, None)


def _context(method: int, identity: Identity | None) -> SSL.Context:
    context = SSL.Context(method)
    context.set_min_proto_version(SSL.TLS1_3_VERSION)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_options(SSL.OP_NO_TICKET | _CLEANSE_PLAINTEXT)
    if hasattr(context, "clear_mode"):  # pyOpenSSL 25.2
        context.clear_mode(_PARTIAL_WRITE)
    # Accepted here, judged by an Expect or by the application: keys are pinned, not chained to a public authority. A
    # server has to ask for a certificate; a client is shown one anyway, whose key TLS 1.3 makes the server prove.
    if method == SSL.TLS_SERVER_METHOD:
        context.set_verify(SSL.VERIFY_PEER, lambda *_: True)
    else:
        context.set_verify(SSL.VERIFY_NONE)
    if identity is not None:
        context.use_privatekey(identity.key.private_key)
        context.use_certificate(identity.chain[0].native)
        for certificate in identity.chain[1:]:
            context.add_extra_chain_cert(certificate.native)
    return context


def peer_chain(connection: SSL.Connection) -> list[Certificate]:
    """The certificates that the peer showed, leaf first.

    Raises:
        PeerIdentityError: one of them is not X.509 with a P-256 key.
    """
    try:
        # As bytes: OpenSSL takes certificates that what reads them here does not.
        chain, leaf = connection.get_peer_cert_chain(), connection.get_peer_certificate()
        if leaf is None:
            return []
        found = [_read(certificate) for certificate in chain or []]
        # A server's view of the chain leaves out the leaf; a client's begins with it.
        first = _read(leaf)
        return found if found and found[0].der == first.der else [first, *found]
    except FormatError as error:
        raise PeerIdentityError(f"peer certificate: {error.message}") from error


def _read(certificate: crypto.X509) -> Certificate:
    return Certificate.shown(crypto.dump_certificate(crypto.FILETYPE_ASN1, certificate))


def export(connection: SSL.Connection, label: bytes, context: bytes) -> bytes:
    """32 bytes that only the two ends of this very connection can compute."""
    return connection.export_keying_material(label, _EXPORTED, context)


class TlsStream:
    """A blocking TLS 1.3 connection over a connected socket, which it owns. Made by `connect`."""

    def __init__(self, sock: socket.socket, connection: SSL.Connection) -> None:
        self._socket = sock
        self._tls = connection
        self._cipher = memoryview(bytearray(CHUNK))  # on its way to the socket, or from it
        self._process = os.getpid()
        self.peer: list[Certificate] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def handshake(self, expect: Expect, *, hold: bool = False, meanwhile: Callable[[], None] | None = None) -> None:
        """Shake hands and check the peer, within the socket's timeout in all.

        Args:
            hold: keep the last message of the handshake back until something is sent or awaited.
            meanwhile: called once, after the first message is sent and before the answer is awaited.

        Raises:
            PeerIdentityError: `expect` does not accept the peer.
            ChannelError: there is no TLS 1.3 at all, or not in time.
        """
        seconds = self._socket.gettimeout()
        ends = time.monotonic() + seconds if seconds else None
        while True:
            try:
                self._tls.do_handshake()
                break
            except SSL.WantReadError:
                self._flush()
                ready, meanwhile = meanwhile, None
                if ready is not None:
                    ready()
                if ends is not None and seconds is not None:  # else who sends a byte now and then holds us for hours
                    rest = ends - time.monotonic()
                    if rest <= 0:
                        raise ChannelError(f"TLS handshake: not complete after {seconds:g} s") from None
                    self._socket.settimeout(rest)
                self._fill()
            except SSL.Error as error:
                raise ChannelError(f"TLS handshake: {_reason(error)}") from None
        self._socket.settimeout(seconds)
        if not hold:
            self._flush()
        self.peer = peer_chain(self._tls)
        if not self.peer:
            raise PeerIdentityError("peer certificate: none was shown")
        expect(self.peer)

    def export(self, label: bytes, context: bytes) -> bytes:
        """32 bytes that only the two ends of this very connection can compute."""
        return export(self._tls, label, context)

    @property
    def context(self) -> SSL.Context:
        """What `connect` may be given for the next connection of the same identity."""
        return self._tls.get_context()

    def release(self) -> tuple[SSL.Connection, socket.socket]:
        """The connection and its socket, for whoever goes on with them instead of this stream."""
        self._flush()
        return self._tls, self._socket

    def send(self, data: bytes | memoryview) -> None:
        """Send all of `data`. Raises ChannelError if the connection broke, or is the parent process's."""
        self._check_process()
        view = memoryview(data)
        try:
            while view:
                # A system call for each record would cost as much as encrypting it.
                batch, view = view[:BATCH], view[BATCH:]
                while batch:
                    batch = batch[self._tls.send(batch) :]
                self._flush()
        except SSL.Error as error:
            raise ChannelError(f"connection: {_reason(error)}") from None

    def recv(self, limit: int = PLAIN_RECORD) -> bytes:
        """Some bytes, at most `limit`; empty when the peer has closed the connection in order."""
        self._check_process()
        while True:
            try:
                return self._tls.recv(limit)
            except SSL.WantReadError:
                self._flush()
                self._fill()
            except SSL.ZeroReturnError:
                return b""
            except SSL.Error as error:
                raise ChannelError(f"connection: {_reason(error)}") from None

    def _check_process(self) -> None:
        # A fork has a copy of TLS's keys and counters: it would encrypt other bytes under the parent's nonces.
        if os.getpid() != self._process:
            raise ChannelError("connection: it is the parent process's", hint="connect after a fork")

    def _flush(self) -> None:
        sent = CHUNK
        try:
            while sent == CHUNK:
                sent = ciphertext_into(self._tls, self._cipher)
                if sent:
                    self._socket.sendall(self._cipher[:sent])
        except OSError as error:
            raise ChannelError(f"connection: {error.strerror or error}") from None

    def _fill(self) -> None:
        try:
            count = self._socket.recv_into(self._cipher)
        except OSError as error:
            raise ChannelError(f"connection: {error.strerror or error}") from None
        if not count:
            raise ChannelError("connection: closed by the peer")
        self._tls.bio_write(self._cipher[:count])

    def close(self) -> None:
        """Say goodbye and close; never raises. In a fork of the process that made it, only close its descriptor."""
        if os.getpid() != self._process:
            self._socket.close()
            return
        try:
            self._tls.shutdown()
            self._flush()
        except (SSL.Error, ChannelError):
            pass  # the peer is gone already
        self._socket.close()


def connect(
    sock: socket.socket,
    *,
    expect: Expect,
    identity: Identity | None = None,
    host: str | None = None,
    context: SSL.Context | None = None,
    hold: bool = False,
) -> TlsStream:
    """Run a handshake as client over a connected socket and check the peer; the socket is closed if that fails.

    Args:
        sock: connected; its timeout bounds every later wait.
        expect: who the peer must be.
        identity: what to show the server, if anything.
        host: the server's name, sent in clear so that a relay can route by it; it is not what is checked.
        context: the `context` of an earlier connection with that identity.
        hold: keep the last message of the handshake back, to go out together with what the caller sends at once.

    Raises:
        PeerIdentityError: the peer is somebody else.
        ChannelError: no TLS 1.3 connection came about.
    """
    if sock.family != getattr(socket, "AF_UNIX", None):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection = SSL.Connection(context or client_context(None), None)
    if host and any(c.isalpha() for c in host) and ":" not in host:
        connection.set_tlsext_host_name(host.encode("idna"))
    connection.set_connect_state()

    def load_identity() -> None:
        # The server asks for it with its answer; until that is here there is time.
        if context is None and identity is not None:
            connection.set_context(client_context(identity))

    return _shake_hands(sock, connection, expect, hold=hold, meanwhile=load_identity)


def _shake_hands(
    sock: socket.socket,
    connection: SSL.Connection,
    expect: Expect,
    *,
    hold: bool = False,
    meanwhile: Callable[[], None] | None = None,
) -> TlsStream:
    stream = TlsStream(sock, connection)
    try:
        stream.handshake(expect, hold=hold, meanwhile=meanwhile)
    except BaseException:
        sock.close()
        raise
    return stream


def accept(sock: socket.socket, *, expect: Expect, identity: Identity) -> TlsStream:
    """Run a handshake as server over an accepted socket, with `connect`'s arguments, promises and errors.

    A client that shows no certificate is refused.
    """
    connection = SSL.Connection(server_context(identity), None)
    connection.set_accept_state()
    return _shake_hands(sock, connection, expect)


def _reason(error: SSL.Error) -> str:
    """OpenSSL's own words for a failure, without its library and function names."""
    queue = error.args[0] if error.args and isinstance(error.args[0], list) else []
    return str(queue[0][-1]) if queue else "closed by the peer"
