"""The bytes of one connection, turned into TLS and back, and how far they have come.

Rules:

- TLS runs over memory buffers, of which the incoming one is empty whenever an end is announced: so one direction can
  end (close_notify, RFC 8446, section 6.1) while the other goes on.
- What is not taken is not read: each direction holds at most one buffer that is still to be sent. Where all that a loop
  carries holds much together, that is a small one.
- What is usual is done in few steps. Of a round trip through two proxies Python's steps are the larger part of what the
  proxies add, since whatever else runs in between has taken the processor's caches.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
from contextlib import suppress
from typing import Final

from strongroom.errors import ChannelError
from strongroom.shield.network.loop import READ, Handler, Loop

_PIECE = 1 << 18
_HELD = 1 << 26  # bytes that the tunnels of a loop hold, beyond which each reads no more than this at once:
_LITTLE = 1 << 14
_ANSWERS: Final = 1 << 14  # bytes that TLS has to say of its own, which nobody takes
NOTHING: Final = memoryview(b"")


class Carrier:
    """One of them, on one loop.

    Args:
        outer: the connection that carries TLS.
        name: what the server has to be called, if it is to be judged by its name.
    """

    server = False

    def __init__(self, loop: Loop, outer: socket.socket, context: ssl.SSLContext, name: str | None) -> None:
        self.loop, self._outer = loop, outer
        self._inner: socket.socket | None = None
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=self.server, server_hostname=name)
        self._shaken = False
        self.opened = False
        self.closed = False
        self.sent = self.received = 0
        """Bytes of the program's."""
        self._to_outer: bytes | memoryview = NOTHING  # what was not taken
        self._to_inner = NOTHING
        self._inner_ended = self._outer_ended = False  # no more comes from there
        self._mute = False  # nothing can be sent, or may be: what is to be sent is dropped
        self._outer_gone = False
        self._flowing = False  # both ends are read, and nothing is left to be sent
        self._usual: tuple[Handler, Handler] | None = None

    # What whoever waits for the sockets adds.

    def first(self, data: memoryview) -> memoryview:
        """What comes first; the rest of it."""
        raise NotImplementedError

    def _shake(self) -> None:
        """Go on with the handshake."""
        raise NotImplementedError

    def _on_outer(self, events: int) -> None:
        raise NotImplementedError

    def _on_inner(self, events: int) -> None:
        raise NotImplementedError

    def _settle(self) -> None:
        """After a step that may have changed what is waited for."""
        raise NotImplementedError

    def _fail(self, error: ssl.SSLError | ChannelError | OSError) -> None:
        raise NotImplementedError

    # From the other proxy to the program.

    def _read_outer(self) -> None:
        buffer = self.loop.buffer
        try:
            count = self._outer.recv_into(buffer, self._most())
        except BlockingIOError:
            return
        except OSError:
            count = 0
        if not count:
            self._lose_outer()
            return
        if self._outer_ended:
            return  # nothing counts after the end
        self._incoming.write(buffer[:count])
        if not self._shaken:
            self._shake()
        if self._shaken and not self.closed:
            self._decrypt()

    def _most(self) -> int:
        """How much is read at once; 0 for a whole buffer."""
        return _LITTLE if self.loop.held > _HELD else 0

    def _lose_outer(self) -> None:
        """The connection is over: in order only where TLS had ended before, and then the program gets all of it."""
        if not self._outer_ended:
            raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
        self._outer_gone = True
        self.loop.remove(self._outer.fileno())
        self._silence()

    def _silence(self) -> None:
        """Send nothing any more."""
        self._mute = True
        self._to_outer = NOTHING
        self._outgoing.read()

    def _decrypt(self) -> None:
        """All that has come, on to the program."""
        spare, incoming, read = self.loop.spare, self._incoming, self._tls.read
        while not self._outer_ended and not self.closed:
            filled = 0
            while filled < _PIECE:
                try:
                    count = int(read(_PIECE - filled, spare[filled:] if filled else spare))
                except ssl.SSLWantReadError:
                    break
                except ssl.SSLZeroReturnError:
                    count = 0
                if not count:
                    self._outer_ended = True
                    break
                filled += count
                if not incoming.pending:
                    break  # to be told that there is no whole record costs an exception
            if not filled:
                break
            more = incoming.pending or filled == _PIECE  # of a record that did not fit TLS itself has the rest
            data = spare[:filled]
            if not self.opened:
                data = self.first(data)
            if data:
                self.received += len(data)
                self._give_inner(data)
            if not more:
                break
        if self._outgoing.pending:  # TLS answers a change of keys
            self._send_outer()
            if self._outgoing.pending > _ANSWERS:  # somebody changes keys for ever, and takes no answer
                raise ChannelError("broken")

    def _give_inner(self, data: memoryview) -> None:
        if self._to_inner or self._inner is None:
            self._to_inner = memoryview(bytes(self._to_inner) + bytes(data))
            return
        try:
            count = self._inner.send(data)
        except BlockingIOError:
            count = 0
        if count < len(data):
            self._to_inner = memoryview(bytes(data[count:]))

    def _send_inner(self) -> None:
        if self._to_inner and self._inner is not None:
            with suppress(BlockingIOError):
                self._to_inner = self._to_inner[self._inner.send(self._to_inner) :]

    # From the program to the other proxy.

    def _read_inner(self) -> None:
        buffer = self.loop.buffer
        assert self._inner is not None  # noqa: S101  # it is waited for
        try:
            count = self._inner.recv_into(buffer, self._most())
        except BlockingIOError:
            return
        if not count:
            self._inner_ended = True
            return
        if self._mute:
            raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
        self.sent += count
        self._tls.write(buffer[:count])
        self._send_outer()

    def _send_outer(self) -> None:
        while data := self._to_outer or self._outgoing.read():
            if self._mute:
                self._to_outer = NOTHING
                continue
            try:
                count = self._outer.send(data)
            except BlockingIOError:
                count = 0
            except OSError:  # what has come from there is still read
                self._silence()
                return
            if count < len(data):
                self._to_outer = memoryview(data)[count:]
                return
            if not self._to_outer:
                return  # that was all there is
            self._to_outer = NOTHING

    def write(self, data: bytes) -> None:
        """Say something to the other proxy, before anything of the program's."""
        self._tls.write(data)
        self._send_outer()

    # The usual: something has come while bytes flow both ways, and is taken at once.

    def _flow(self, inner: socket.socket) -> None:
        self._flowing = True
        if self._usual is None:
            self._usual = self._usual_outer(inner), self._usual_inner(inner)
        self.loop.handle(self._outer.fileno(), self._usual[0])
        self.loop.handle(inner.fileno(), self._usual[1])

    def _usual_outer(self, inner: socket.socket) -> Handler:
        loop, buffer, spare, receive = self.loop, self.loop.buffer, self.loop.spare, self._outer.recv_into
        incoming, put, read, send = self._incoming, self._incoming.write, self._tls.read, inner.send

        def handle(events: int) -> None:
            if events != READ or not self._flowing or loop.held > _HELD:
                self._on_outer(events)
                return
            try:
                count = receive(buffer)
                if not count:
                    self._lose_outer()
                put(buffer[:count])
                if count < _LITTLE:  # one record, or two
                    try:
                        got = int(read(_LITTLE, spare))
                    except (ssl.SSLWantReadError, ssl.SSLZeroReturnError):
                        got = 0  # what it is shows below
                    if got:
                        self.received += got
                        data = spare[:got]
                        try:
                            taken = send(data)
                        except BlockingIOError:
                            taken = 0
                        if taken < got:
                            self._to_inner = memoryview(bytes(data[taken:]))
                        elif not incoming.pending:
                            return
                self._decrypt()
                self._settle()
            except BlockingIOError:
                return
            except (ssl.SSLError, ChannelError, OSError) as error:
                self._fail(error)

        return handle

    def _usual_inner(self, inner: socket.socket) -> Handler:
        loop, buffer, receive = self.loop, self.loop.buffer, inner.recv_into
        write, take, send = self._tls.write, self._outgoing.read, self._outer.send

        def handle(events: int) -> None:
            if events != READ or not self._flowing or loop.held > _HELD:
                self._on_inner(events)
                return
            try:
                count = receive(buffer)
                if count:
                    self.sent += count
                    write(buffer[:count])
                    data = take()
                    try:
                        taken = send(data)
                    except OSError:
                        taken = 0  # which says why when it is tried again
                    if taken == len(data):
                        return
                    self._to_outer = memoryview(data)[taken:]
                    self._send_outer()
                else:
                    self._inner_ended = True
                self._settle()
            except BlockingIOError:
                return
            except (ssl.SSLError, ChannelError, OSError) as error:
                self._fail(error)

        return handle
