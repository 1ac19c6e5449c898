"""An ASGI server over TLS 1.3 whose applications see the connection's exporter and the client's certificate.

uvicorn does HTTP; this module puts TLS between it and the socket.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import threading
from collections.abc import Awaitable, Callable, MutableMapping
from types import FrameType, TracebackType
from typing import Any, Self, cast

import uvicorn
from OpenSSL import SSL
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from strongroom.channel.connections import Connections, have_descriptors
from strongroom.channel.records import PLAIN_RECORD, read_into
from strongroom.channel.tls import BATCH, CHUNK, Identity, export, peer_chain, server_context
from strongroom.crypto import Certificate
from strongroom.errors import ChannelError, PeerIdentityError, PortInUseError, UsageError

_HANDSHAKE_TIMEOUT = 10.0
_PLAIN_BUFFER = 1 << 18
_CIPHER_BUFFER = 1 << 18
_ZEROS = memoryview(bytes(_PLAIN_BUFFER))
_FEW = 1 << 12  # to look for ciphertext where little or none is due: what is asked for is allocated, and overwritten
_LONG_BODY = 1 << 14  # of which a copy costs more than a call
_HEAD_SECONDS = 15.0
_MAX_HEAD, _MAX_HEADERS = 1 << 16, 100  # bytes and lines of a request's head
_MAX_CONNECTIONS = 512
_READ_SECONDS = 30.0  # that a peer may take to read what is waiting for it
_KEEP_ALIVE_SECONDS = 75  # an enclave attests anew on every connection, so idle ones are worth keeping

Scope = MutableMapping[str, Any]
App = Callable[[Any, Any, Any], Awaitable[None]]


class TlsInfo:
    """What an application may know of the connection that a request came over.

    `session` is a dict that lives as long as the connection: a nonce given out on it, an enclave attested on it.
    """

    def __init__(self, connection: SSL.Connection) -> None:
        self._connection = connection
        self.session: dict[str, Any] = {}
        try:
            chain = peer_chain(connection)
        except PeerIdentityError:
            chain = []
        self.peer: Certificate | None = chain[0] if chain else None

    def export(self, label: bytes, context: bytes) -> bytes:
        """32 bytes that only the two ends of this very connection can compute."""
        return export(self._connection, label, context)


def tls_info(scope: Scope) -> TlsInfo:
    """The connection of an ASGI request that came in by `Server`."""
    info = scope.get("extensions", {}).get("strongroom.tls")
    if not isinstance(info, TlsInfo):
        raise ChannelError("request: did not come over an attested channel")
    return info


def bind(host: str, port: int) -> socket.socket:
    """A listening TCP socket; port 0 takes any free one.

    Raises:
        UsageError: the port is none.
        PortInUseError: the address is taken.
        ChannelError: it cannot be listened on.
    """
    if not 0 <= port <= 65535:
        raise UsageError(f"port: got {port}, wanted 0 to 65535", hint="port 0 takes any free one")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns Nagle's algorithm off only where the protocol is named; left on, it holds back the second write of
    # every answer until the peer's delayed acknowledgement, 40 ms later.
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if hasattr(socket, "SO_REUSEADDR") and socket.SO_REUSEADDR and not hasattr(socket, "SO_EXCLUSIVEADDRUSE"):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(256)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise PortInUseError(
                f"address: {host}:{port} is in use", hint="choose another port; port 0 takes any free one"
            ) from None
        raise ChannelError(
            f"address: {host}:{port}: {(error.strerror or str(error)).lower()}",
            hint="an address of this machine, such as 127.0.0.1 or 0.0.0.0",
        ) from None
    return sock


class Server:
    """Serves an ASGI application over TLS 1.3 on a bound socket.

    `run` blocks in this thread; used as a context manager it serves from a thread of its own.

    Args:
        drain_seconds: how long requests that have begun are waited for at the end.
        ending: called before that, once no connection is accepted any more: ends what would wait for longer.
    """

    def __init__(
        self,
        app: App,
        sock: socket.socket,
        identity: Identity,
        *,
        drain_seconds: int = 10,
        ending: Callable[[], None] = lambda: None,
    ) -> None:
        self._socket = sock
        self.host, self.port = sock.getsockname()[:2]
        context = server_context(identity)
        # Where all connections are received, and decrypted to: TLS and HTTP copy what they keep before another's turn.
        cipher, plain = memoryview(bytearray(_CIPHER_BUFFER)), memoryview(bytearray(_PLAIN_BUFFER))
        connections = Connections(_MAX_CONNECTIONS)
        # How uvicorn takes a protocol of one's own: a class that it calls with keyword arguments.
        config = uvicorn.Config(
            app,
            http=lambda **kwargs: _TlsProtocol(context, cipher, plain, connections, kwargs),  # type: ignore[arg-type]
            ws="none",
            loop="asyncio",  # what is tested, whatever else is installed
            lifespan="off",
            proxy_headers=False,  # a peer is who its TLS key says it is, whatever a header says
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=drain_seconds,
        )
        self._server = _Uvicorn(config, ending)
        self._thread: threading.Thread | None = None

    def run(self) -> None:
        """Serve until SIGINT, SIGTERM or `stop`; requests in flight are answered first, unless a second signal comes.

        The signal is raised once more at the end, for the handler that it had before.
        """
        have_descriptors(2 * _MAX_CONNECTIONS)  # and for what else is open
        self._server.run(sockets=[self._socket])

    def stop(self) -> None:
        """Ask the server to drain and end. Returns at once."""
        self._server.should_exit = True

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self.run, name=f"server-{self.port}", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        if self._thread is not None:
            self._thread.join()


class _Uvicorn(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, ending: Callable[[], None]) -> None:
        super().__init__(config)
        self._ending = ending

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.force_exit = self.force_exit or self.should_exit
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        self._ending()  # once nothing is accepted here any more
        await super().shutdown(sockets)


class _Http(HttpToolsProtocol):
    """uvicorn's protocol, with the connection's `TlsInfo` in each request's scope, and limits on a request's head."""

    tls: TlsInfo
    flush: Callable[[], None]
    _head_size = 0  # of the lines that are complete
    _unfinished = 0  # bytes fed since the head began, while it has not ended
    _in_head = True
    _head_deadline: asyncio.TimerHandle | None = None

    def await_head(self) -> None:
        """From now on a request must begin, and its head end, within the limit."""
        self._unset_head_deadline()
        self._head_deadline = self.loop.call_later(_HEAD_SECONDS, self._abandon)

    def _unset_head_deadline(self) -> None:
        if self._head_deadline is not None:
            self._head_deadline.cancel()
            self._head_deadline = None

    def _abandon(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    def _count(self, size: int) -> None:
        self._head_size += size
        if self._head_size > _MAX_HEAD or len(self.headers) > _MAX_HEADERS:
            # The parser reports it as an error in the request, which is answered with 400 and a closed connection.
            raise ValueError("request head: too long")

    def fed(self, size: int) -> None:
        """Note that so many bytes went to the parser, which keeps an unfinished line whole, however long it grows."""
        if not self._in_head:
            return
        if self._head_deadline is None:
            self.await_head()
        self._unfinished += size
        if self._unfinished > _MAX_HEAD + _PLAIN_BUFFER:
            self._abandon()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._unset_head_deadline()  # `fed` sets one if the head does not end with what has arrived
        self._head_size = self._unfinished = 0
        self._in_head = True
        self.scope["scheme"] = "https"
        self.scope["extensions"] = {"strongroom.tls": self.tls}  # type: ignore[dict-item]

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self._count(len(name) + len(value))

    def on_headers_complete(self) -> None:
        self._unset_head_deadline()
        self._in_head = False
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        cycle = self.cycle
        if cycle.body or cycle.response_complete or len(body) < _LONG_BODY:
            super().on_body(body)
            return
        # As it is: uvicorn would copy it to a bytearray, and that to the message, and stop reading until that is taken.
        # What comes before it is taken is uvicorn's to stop.
        cycle.body = body  # type: ignore[assignment]  # what takes it asks for bytes of it
        cycle.message_event.set()

    def on_response_complete(self) -> None:
        self.flush()  # now, and not in the loop's next turn: the caller waits for it
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unset_head_deadline()
        super().connection_lost(exc)
        # The parser holds this object, which holds it: else the last request stays until the collector comes by.
        self.scope, self.headers, self.url, self.cycle, self.parser = {}, [], b"", None, None  # type: ignore[typeddict-item,assignment]


class _TlsProtocol(asyncio.BufferedProtocol):
    """Ciphertext from the socket -> OpenSSL's memory buffers -> plaintext to `_Http`, and back."""

    def __init__(
        self,
        context: SSL.Context,
        cipher: memoryview,
        plain: memoryview,
        connections: Connections,
        kwargs: dict[str, Any],
    ) -> None:
        self._cipher = cipher
        self._plain = plain
        self._connections = connections
        self._tls = SSL.Connection(context, None)
        self._tls.set_accept_state()
        self._http = _Http(**kwargs)
        self._http.flush = self.flush
        self._transport: asyncio.Transport | None = None
        self._secure = False
        self._flushing = False
        self._unsent = 0  # bytes that were encrypted since the last flush
        self._deadline: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # a stream's, by create_server
        self._deadline = asyncio.get_running_loop().call_later(_HANDSHAKE_TIMEOUT, self._abandon)
        self._connections.made(self)

    def _abandon(self) -> None:
        if not self._secure:
            self.abort()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._cipher

    def buffer_updated(self, nbytes: int) -> None:
        self._tls.bio_write(self._cipher[:nbytes])
        try:
            if not self._secure and not self._shake_hands():
                return
            while True:
                self._deliver()
        except SSL.WantReadError:
            # With the answer, if a request that has just arrived is answered at once.
            self._flush_soon()
        except SSL.ZeroReturnError:
            self.flush()
            self._close()
        except SSL.Error:
            # Not TLS 1.3, or tampered with on the way: send OpenSSL's alert and hang up.
            self.flush()
            self._close()

    def _deliver(self) -> None:
        """Pass on as many records as there are, together: one is 16 KiB at most, and HTTP's cost is by the call."""
        view, filled = self._plain, 0
        try:
            while filled <= len(view) - PLAIN_RECORD:
                filled += read_into(self._tls, view[filled:])
        finally:
            if filled:
                self._http.data_received(view[:filled])  # type: ignore[arg-type]  # the parser takes any buffer
                self._http.fed(filled)
                view[:filled] = _ZEROS[:filled]  # it was one peer's

    def _shake_hands(self) -> bool:
        try:
            self._tls.do_handshake()
        except SSL.WantReadError:
            self.flush()
            return False
        self._secure = True
        self._connections.finished(self)
        if self._deadline is not None:
            self._deadline.cancel()
        assert self._transport is not None  # noqa: S101  # data comes after connection_made
        self._http.tls = TlsInfo(self._tls)
        self._http.connection_made(_PlainTransport(self._transport, self))
        self._http.await_head()
        return True

    def flush(self) -> None:
        """Send what OpenSSL has written."""
        if self._transport is None:
            return
        asked = CHUNK if self._unsent > _FEW // 2 else _FEW
        sent, self._unsent = asked, 0
        try:
            while sent == asked:  # else that was all, and to be told so costs an exception
                data = self._tls.bio_read(asked)
                self._transport.write(data)
                sent = len(data)
        except SSL.Error:
            return

    def write(self, data: bytes | bytearray | memoryview[int]) -> None:
        """Encrypt, and send together with whatever else is written in this turn of the loop."""
        view = memoryview(data)
        self._unsent += len(view)
        try:
            while view:
                view = view[self._tls.send(view[:BATCH]) :]
        except SSL.Error:
            self._close()
        if len(data) < BATCH:
            self._flush_soon()
        else:
            self.flush()  # so that who writes more is told to wait for the reader

    def _flush_soon(self) -> None:
        if not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self._flush_later)

    def _flush_later(self) -> None:
        self._flushing = False
        self.flush()

    def say_goodbye(self) -> None:
        try:
            self._tls.shutdown()
        except SSL.Error:
            return
        self.flush()

    def _close(self) -> None:
        if self._transport is not None:
            self._transport.close()
            self.await_reader()

    def await_reader(self) -> None:
        """From now on the peer must read what is waiting for it within the limit."""
        if self._unread is None and self._transport is not None:
            self._unread = asyncio.get_running_loop().call_later(_READ_SECONDS, self.abort)

    def eof_received(self) -> None:
        if self._secure:
            self._http.eof_received()

    def pause_writing(self) -> None:
        self.await_reader()
        if self._secure:
            self._http.pause_writing()

    def resume_writing(self) -> None:
        if self._unread is not None and self._transport is not None and not self._transport.is_closing():
            self._unread.cancel()
            self._unread = None
        if self._secure:
            self._http.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.lost(self)
        for timer in (self._deadline, self._unread):
            if timer is not None:
                timer.cancel()
        if self._secure:
            self._http.connection_lost(exc)
        self._transport = None


class _PlainTransport(asyncio.Transport):
    """What `_Http` writes to: plaintext in, ciphertext out of the socket's transport."""

    def __init__(self, inner: asyncio.Transport, tls: _TlsProtocol) -> None:
        super().__init__()
        self._inner = inner
        self._protocol = tls

    def write(self, data: bytes | bytearray | memoryview[int]) -> None:
        self._protocol.write(data)

    def close(self) -> None:
        if not self._inner.is_closing():
            self._protocol.say_goodbye()
        self._inner.close()
        self._protocol.await_reader()

    def abort(self) -> None:
        self._inner.abort()

    def is_closing(self) -> bool:
        return self._inner.is_closing()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._inner.get_extra_info(name, default)

    def pause_reading(self) -> None:
        self._inner.pause_reading()

    def resume_reading(self) -> None:
        self._inner.resume_reading()

    def is_reading(self) -> bool:
        return self._inner.is_reading()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._inner.set_write_buffer_limits(high, low)

    def get_write_buffer_size(self) -> int:
        return self._inner.get_write_buffer_size()
