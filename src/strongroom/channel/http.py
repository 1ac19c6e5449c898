"""A small blocking HTTP/1.1 client over a `TlsStream`: what the CAS's and the services' clients speak.

It exists because the check of who the peer is must come between the handshake and the first byte of the request, and
because the caller needs that connection's exporter.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import h11
from OpenSSL import SSL

from strongroom.channel.plain import MAX_HEAD, Head, read_head, request_head
from strongroom.channel.tls import Expect, Identity, TlsStream, connect
from strongroom.errors import ChannelError, StrongroomError, from_wire

MAX_BODY = 1 << 30
_TIMEOUT = 60.0
# A body up to this size is sent together with the head of its request.
_JOINED = 1 << 16


@dataclass(frozen=True)
class Response:
    """An HTTP answer with its whole body. Header names are lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)

    def json(self) -> dict[str, object]:
        """The body as a JSON object.

        Raises:
            ChannelError: it is not one.
        """
        try:
            value = json.loads(self.body)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise ChannelError(f"answer: HTTP {self.status} with a body that is not a JSON object")
        return value

    def expect_ok(self) -> Self:
        """Raise what the service reported unless the status is 2xx.

        Raises:
            StrongroomError: the class that the service named.
        """
        if 200 <= self.status < 300:
            return self
        try:
            wire = self.json()
        except ChannelError:
            wire = {"error": f"HTTP {self.status}"}
        error = from_wire(wire)
        if type(error) is StrongroomError:
            error = ChannelError(f"{error.message} (HTTP {self.status})", hint=error.hint)
        raise error


class HttpClient:
    """One kept-alive connection to one server. Not for use from several threads at once.

    Args:
        dial: gives a connected TCP socket; an enclave's asks the host for one.
        host: the value of the Host header.
        expect: who the server must be; checked on every connection, before anything is sent.
        identity: what to show the server.
        max_body: the longest answer that is read, in bytes.
    """

    def __init__(
        self,
        dial: Callable[[], socket.socket],
        *,
        host: str,
        expect: Expect,
        identity: Identity | None = None,
        max_body: int = MAX_BODY,
        timeout: float = _TIMEOUT,
    ) -> None:
        self._dial = dial
        self._host = host
        self._expect = expect
        self._identity = identity
        self._max_body = max_body
        self._timeout = timeout
        self._context: SSL.Context | None = None
        self._stream: TlsStream | None = None

    @classmethod
    def to(
        cls,
        host: str,
        port: int,
        *,
        expect: Expect,
        identity: Identity | None = None,
        max_body: int = MAX_BODY,
        timeout: float = _TIMEOUT,
    ) -> HttpClient:
        """A client of a TCP server."""

        def dial() -> socket.socket:
            try:
                return socket.create_connection((host, port), timeout=timeout)
            except OSError as error:
                raise ChannelError(f"{host}:{port}: {(error.strerror or str(error)).lower()}") from None

        return cls(dial, host=host, expect=expect, identity=identity, max_body=max_body, timeout=timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def connect(self) -> TlsStream:
        """The connection, made and checked if there is none; the handshake ends with the first request."""
        if self._stream is None:
            sock = self._dial()
            sock.settimeout(self._timeout)
            self._stream = connect(
                sock, expect=self._expect, identity=self._identity, host=self._host, context=self._context, hold=True
            )
            self._context = self._stream.context
        return self._stream

    def request(
        self,
        method: str,
        path: str,
        *,
        body: bytes | Sequence[bytes | memoryview] = b"",
        headers: Mapping[str, str] | None = None,
        fresh: bool = False,
    ) -> Response:
        """Send one request and read the whole answer.

        Args:
            body: the bytes, or pieces that are sent one after the other without being joined.
            fresh: fail rather than go on over a new connection when the kept one has been closed meanwhile.

        Raises:
            PeerIdentityError: the server is not the expected one; nothing was sent.
            ChannelError: the connection failed, or the answer is malformed or too long.
        """
        pieces: list[bytes | memoryview] = [body] if isinstance(body, bytes) else list(body)
        while True:
            reused = self._stream is not None
            try:
                return self._exchange(self.connect(), method, path, pieces, headers or {})
            except _ClosedBeforeAnswerError:
                self.close()
                # A server may drop an idle connection at any time; then the request is sent once more, on a new one.
                if not reused or fresh:
                    raise ChannelError("connection: closed by the peer before it answered") from None
            except BaseException:
                self.close()
                raise

    def post(self, path: str, value: object, *, fresh: bool = False) -> dict[str, object]:
        """POST a JSON value; the answer's JSON object. Raises what the service reports."""
        body = json.dumps(value, separators=(",", ":")).encode()
        headers = {"content-type": "application/json"}
        return self.request("POST", path, body=body, headers=headers, fresh=fresh).expect_ok().json()

    def get(self, path: str) -> dict[str, object]:
        """GET a JSON object. Raises what the service reports."""
        return self.request("GET", path).expect_ok().json()

    def _exchange(
        self,
        stream: TlsStream,
        method: str,
        path: str,
        pieces: Sequence[bytes | memoryview],
        headers: Mapping[str, str],
    ) -> Response:
        length = sum(map(len, pieces))
        lines = {"host": self._host, "content-length": str(length), **headers}
        opening = request_head(method, path, lines)
        try:
            if length <= _JOINED:
                stream.send(b"".join([opening, *pieces]))
            else:
                for piece in [opening, *pieces]:
                    stream.send(piece)
        except ChannelError:
            raise _ClosedBeforeAnswerError from None
        buffer = bytearray()
        while (end := buffer.find(b"\r\n\r\n")) < 0 and len(buffer) <= MAX_HEAD:
            try:
                data = stream.recv()
            except ChannelError:
                if buffer:
                    raise
                raise _ClosedBeforeAnswerError from None
            if not data:
                if not buffer:
                    raise _ClosedBeforeAnswerError
                break
            buffer += data
        head = read_head(bytes(buffer[:end])) if end >= 0 and method != "HEAD" else None
        if head is None:
            return self._read_any(stream, method, path, lines, bytes(buffer))
        return self._read_body(stream, head, buffer[end + 4 :])

    def _read_body(self, stream: TlsStream, head: Head, begun: bytearray) -> Response:
        if head.length > self._max_body:
            raise ChannelError(f"answer: longer than the limit of {self._max_body} bytes")
        chunks: list[bytes | bytearray] = [begun]
        missing = head.length - len(begun)
        while missing > 0:
            data = stream.recv()
            if not data:
                raise ChannelError("connection: closed in the middle of an answer")
            chunks.append(data)
            missing -= len(data)
        if missing:
            raise ChannelError("answer: goes on after its end")
        return Response(head.status, head.headers, b"".join(chunks))

    def _read_any(self, stream: TlsStream, method: str, path: str, lines: Mapping[str, str], begun: bytes) -> Response:
        """An answer of whatever form, from its first bytes `begun` on, as h11 reads it."""
        http = h11.Connection(our_role=h11.CLIENT)
        length = int(lines["content-length"])
        http.send(h11.Request(method=method, target=path, headers=list(lines.items())))
        if length:
            # h11 counts the bytes, which have been sent.
            http.send_with_data_passthrough(h11.Data(data=_Length(length)))  # type: ignore[arg-type]
        http.send(h11.EndOfMessage())
        http.receive_data(begun)
        status, answered, chunks, size = 0, {}, [], 0
        try:
            while True:
                event = http.next_event()
                if event is h11.NEED_DATA:
                    http.receive_data(stream.recv())
                elif isinstance(event, h11.Response):
                    status = event.status_code
                    answered = {name.decode("latin-1"): value.decode("latin-1") for name, value in event.headers}
                elif isinstance(event, h11.Data):
                    size += len(event.data)
                    if size > self._max_body:
                        raise ChannelError(f"answer: longer than the limit of {self._max_body} bytes")
                    chunks.append(bytes(event.data))
                elif isinstance(event, h11.EndOfMessage):
                    break
                elif isinstance(event, h11.ConnectionClosed):
                    raise ChannelError("connection: closed in the middle of an answer")
        except h11.RemoteProtocolError as error:
            raise ChannelError(f"answer: not HTTP/1.1: {error}") from None
        if http.our_state is not h11.DONE or http.their_state is not h11.DONE:
            self.close()
        return Response(status, answered, b"".join(chunks))

    def close(self) -> None:
        """Close the connection; the next request makes a new one."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None


class _Length:
    """Stands for body bytes that h11 has not seen."""

    def __init__(self, length: int) -> None:
        self._length = length

    def __len__(self) -> int:
        return self._length


class _ClosedBeforeAnswerError(Exception):
    pass
