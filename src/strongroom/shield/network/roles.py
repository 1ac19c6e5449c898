"""The two ends of a tunnel between members, and what they say to each other before bytes pass (docs/spec/mesh.md)."""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from strongroom.errors import ChannelError
from strongroom.shield.network.loop import WRITE, Loop
from strongroom.shield.network.sockets import prepare, reset
from strongroom.shield.network.tunnel import AGAIN, Tunnel

VERSION: Final = 1
HEADER: Final = struct.Struct(">BH")
"""What the connecting proxy sends first: a version, and the port at the other enclave."""
OPEN: Final = b"\0"
REFUSED: Final = b"\1"
"""What the accepting one answers first: the program there has accepted, or has not."""
PATIENCE: Final = 20.0
"""Seconds for which a port at which nobody has listened yet is tried, while the program that connects waits."""


class Outgoing(Tunnel):
    """A connection that the program here has made.

    Args:
        inner: it, accepted.
        port: at the other enclave.
        judge: who is there; raises ChannelError unless it is the one that is meant.
    """

    def __init__(
        self,
        loop: Loop,
        outer: socket.socket,
        context: ssl.SSLContext,
        *,
        inner: socket.socket,
        port: int,
        judge: Callable[[bytes], str],
        on_open: Callable[[Any], None],
        on_close: Callable[[Any, str], None],
    ) -> None:
        super().__init__(loop, outer, context, on_open=on_open, on_close=on_close)
        self.patience = PATIENCE
        self._port, self._judge = port, judge
        self.wanted = ""
        """The fingerprint of the key that is to be at the other end."""
        self._inner_first = inner
        self._answered = False
        prepare(inner)

    def shaken(self, certificate: bytes) -> None:
        self.key = self._judge(certificate)
        self.agreed = True
        self.write(HEADER.pack(VERSION, self._port))
        self._inner = self._inner_first  # what the program sends goes at once; nothing is passed on before the answer

    def first(self, data: memoryview) -> memoryview:
        if bytes(data[:1]) != OPEN:
            raise ChannelError("refused")
        self.opens(self._inner_first)
        return data[1:]

    def close(self, why: str) -> None:
        if not self.closed and self._inner is None:
            self._inner = self._inner_first
        super().close(why)


class Incoming(Tunnel):
    """A connection that a program elsewhere has made.

    Args:
        judge: who is there. It calls `admitted` now or later, or raises ChannelError.
        connect: begins a connection to the program here, at that port, in the name of the enclave with that key.
        awaited: whether a port at which nobody listens is worth a wait.
    """

    server = True

    def __init__(
        self,
        loop: Loop,
        outer: socket.socket,
        context: ssl.SSLContext,
        *,
        judge: Callable[[Incoming, bytes], None],
        connect: Callable[[str, int], socket.socket],
        awaited: Callable[[int], bool],
        on_open: Callable[[Any], None],
        on_close: Callable[[Any, str], None],
    ) -> None:
        super().__init__(loop, outer, context, on_open=on_open, on_close=on_close)
        self.patience = PATIENCE
        self._judge, self._connect, self._awaited = judge, connect, awaited
        self.port = 0
        self._patience = PATIENCE  # what is left of it
        self._asked = bytearray()
        self._trying: socket.socket | None = None

    def shaken(self, certificate: bytes) -> None:
        self._judge(self, certificate)

    def admitted(self, key: str) -> None:
        """Go on: it is a member. On the loop's thread."""
        self.key, self.agreed = key, True
        self._guarded(self._try)

    def first(self, data: memoryview) -> memoryview:
        missing = HEADER.size - len(self._asked)
        self._asked += data[:missing]
        data = data[missing:]
        self._try()
        return data

    def _try(self) -> None:
        if self._trying is not None or not self.key or len(self._asked) < HEADER.size:
            return
        version, port = HEADER.unpack(self._asked)
        if version != VERSION:
            raise ChannelError("version")
        self.port = port
        self._connect_inner()

    def _connect_inner(self) -> None:
        self._trying = self._connect(self.key, self.port)
        self.loop.add(self._trying.fileno(), WRITE, self._tried)

    def _tried(self, events: int) -> None:
        assert self._trying is not None  # noqa: S101
        trying = self._trying
        self.loop.remove(trying.fileno())
        if trying.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            if self._patience > 0 and self._awaited(self.port):
                self._patience -= AGAIN
                self.loop.later(AGAIN, self._try_again)
            else:
                self._guarded(self._refuse)
            return
        prepare(trying)
        self.opens(trying)
        self._guarded(self._answer)

    def _try_again(self) -> None:
        if not self.closed and self._trying is not None:
            self._trying.close()
            self._guarded(self._connect_inner)

    def _answer(self) -> None:
        self.write(OPEN)
        self._send_inner()

    def _refuse(self) -> None:
        self.write(REFUSED)
        with suppress(ssl.SSLWantReadError):
            self._tls.unwrap()
        self._send_outer()
        raise ChannelError("refused")

    def close(self, why: str) -> None:
        if not self.closed and self._trying is not None and self._inner is None:
            self.loop.remove(self._trying.fileno())
            reset(self._trying)  # the program may have accepted it by now
        super().close(why)
