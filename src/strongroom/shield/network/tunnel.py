"""One connection of a program's, carried as one TLS 1.3 connection between two proxies (docs/spec/mesh.md).

Rules:

- TLS runs over memory buffers, of which the incoming one is empty whenever an end is announced: so one direction can
  end (close_notify, RFC 8446, section 6.1) while the other goes on.
- What is not taken is not read: each direction holds at most one buffer that is still to be sent.
- An end that was not announced is a reset, here as there: a tunnel that was cut never looks like one that ended.
- What came before an announced end reaches the program, whatever becomes of the connection and of its sender meanwhile.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import ssl
import struct
import termios
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from strongroom.errors import ChannelError
from strongroom.shield.network.loop import READ, WRITE, Loop

VERSION: Final = 1
HEADER: Final = struct.Struct(">BH")
"""What the connecting proxy sends first: a version, and the port at the other enclave."""
OPEN: Final = b"\0"
REFUSED: Final = b"\1"
"""What the accepting one answers first: the program there has accepted, or has not."""
DEADLINE: Final = 10.0
"""Seconds from the first byte until both ends know each other."""
PATIENCE: Final = 20.0
"""Seconds for which a port at which nobody has listened yet is tried, while the program that connects waits."""
_AGAIN = 0.1
_LOOK = 0.02  # how often one looks whether the kernel has been rid of the last bytes
_PIECE = 1 << 18
_NOTHING = memoryview(b"")
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: to close is to reset
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 10), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 4))
_UNSENT_MS = 30_000
_NOT_ENDED = (1, 2, 3, 4, 5)  # states of TCP in which more may come, linux/tcp_states.h


def reset(sock: socket.socket) -> None:
    """Close a connection so that whoever is at its other end gets an error."""
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    sock.close()


def prepare(sock: socket.socket, *, outer: bool = False) -> None:
    """No waiting for more to send; and a peer whose machine is gone is found out within half a minute."""
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if outer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE:
            sock.setsockopt(socket.IPPROTO_TCP, name, value)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNSENT_MS)


def _unacknowledged(sock: socket.socket) -> int:
    """Bytes that the other machine's kernel has not confirmed; an end counts as one."""
    return int(struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)))[0])


class Tunnel:
    """One of them, on one loop. What it does for its role is in `Outgoing` and `Incoming`.

    Args:
        outer: the connection to the other proxy, connected or connecting.
        context: for TLS.
        on_open: called once it carries bytes.
        on_close: called once, with why in a word, empty where both ends have ended it.
    """

    server = False

    def __init__(
        self,
        loop: Loop,
        outer: socket.socket,
        context: ssl.SSLContext,
        *,
        on_open: Callable[[Any], None],
        on_close: Callable[[Any, str], None],
    ) -> None:
        self.loop, self._outer, self._on_open, self._on_close = loop, outer, on_open, on_close
        self._inner: socket.socket | None = None
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=self.server)
        self._shaken = False
        self.agreed = False
        """Whether it is known who is at the other end."""
        self.opened = False
        self.closed = False
        self.key = ""
        """The fingerprint of the other end's key, once it is known."""
        self.sent = self.received = 0
        """Bytes of the program's."""
        self._to_outer = self._to_inner = _NOTHING  # what was not taken
        self._inner_ended = self._outer_ended = False  # no more comes from there
        self._said_end = self._passed_end = False
        self._mute = False  # nothing can be sent, or may be: what is to be sent is dropped
        self._looking = False
        self._outer_gone = False
        self._draining = False
        self._flowing = False  # both ends are read, and nothing is left to be sent
        self._events = {"outer": 0, "inner": 0}
        prepare(outer, outer=True)

    # What roles do.

    def shaken(self, certificate: bytes) -> None:
        """TLS stands; who is there is to be judged."""
        raise NotImplementedError

    def first(self, data: memoryview) -> memoryview:
        """What comes first; the rest of it."""
        raise NotImplementedError

    # The life of it, on the loop's thread.

    def begin(self) -> None:
        """Wait for the outer connection, then shake hands."""
        self.loop.add(self._outer.fileno(), WRITE, self._connected)
        self._events["outer"] = WRITE
        self.loop.later(DEADLINE, self._late)

    def _late(self) -> None:
        if not self.agreed:
            self.close("timeout")
        elif not self.opened:
            self.loop.later(DEADLINE + PATIENCE, self._too_late)

    def _too_late(self) -> None:
        if not self.opened:
            self.close("timeout")

    def _connected(self, events: int) -> None:
        code = self._outer.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self.close("unreachable")
            return
        self.loop.remove(self._outer.fileno())
        self.loop.add(self._outer.fileno(), READ, self._on_outer)
        self._events["outer"] = READ
        self._guarded(self._shake)

    def _on_outer(self, events: int) -> None:
        if self.closed:
            return
        try:
            if events & WRITE:
                self._send_outer()
            if events & ~WRITE:
                self._read_outer()
            self._settle()
        except (ssl.SSLError, ChannelError, OSError) as error:
            self._fail(error)

    def _on_inner(self, events: int) -> None:
        if self.closed:
            return
        try:
            if events & WRITE:
                self._send_inner()
            if events & ~WRITE and not self._inner_ended:
                self._read_inner()
            self._settle()
        except (ssl.SSLError, ChannelError, OSError) as error:
            self._fail(error)

    def _guarded(self, step: Callable[[], None]) -> None:
        """The same for whatever else there is to do."""
        if self.closed:
            return
        try:
            step()
            self._settle()
        except (ssl.SSLError, ChannelError, OSError) as error:
            self._fail(error)

    def _fail(self, error: ssl.SSLError | ChannelError | OSError) -> None:
        """End it, for a reason that is counted."""
        if isinstance(error, ssl.SSLError | ChannelError):
            self._flush_alert()
        if isinstance(error, ChannelError):
            self.close(error.message)
        elif isinstance(error, ssl.SSLCertVerificationError):
            self.close("certificate")
        elif isinstance(error, ssl.SSLError):
            self.close("broken" if self._shaken else "handshake")
        else:
            self.close("cut")

    def _flush_alert(self) -> None:
        """Let the other end know why, if there is room for it."""
        with suppress(OSError):
            self._outer.send(self._outgoing.read())

    def _shake(self) -> None:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._send_outer()
            return
        self._shaken = True
        self._send_outer()
        certificate = self._tls.getpeercert(binary_form=True)
        if certificate is None:
            raise ChannelError("certificate")
        self.shaken(certificate)

    # From the other proxy to the program.

    def _read_outer(self) -> None:
        buffer = self.loop.buffer
        try:
            count = self._outer.recv_into(buffer)
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
        self._to_outer = _NOTHING
        self._outgoing.read()

    def _decrypt(self) -> None:
        """All that has come, on to the program."""
        spare = self.loop.spare
        while not self._outer_ended and not self.closed:
            filled = 0
            while filled < _PIECE:
                try:
                    count = int(self._tls.read(_PIECE - filled, spare[filled:]))
                except ssl.SSLWantReadError:
                    break
                except ssl.SSLZeroReturnError:
                    count = 0
                if not count:
                    self._outer_ended = True
                    break
                filled += count
                if not self._incoming.pending:
                    break  # to be told that there is no whole record costs an exception
            if not filled:
                break
            more = self._incoming.pending or self._tls.pending()
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
            count = self._inner.recv_into(buffer)
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
        data: bytes | memoryview
        while data := self._to_outer or self._outgoing.read():
            if self._mute:
                self._to_outer = _NOTHING
                continue
            try:
                count = self._outer.send(data)
            except BlockingIOError:
                count = 0
            except OSError:  # what has come from there is still read
                self._silence()
                return
            self._to_outer = _NOTHING if count == len(data) else memoryview(data)[count:]
            if self._to_outer:
                return

    # Together.

    def opens(self, inner: socket.socket) -> None:
        """From now on bytes are carried between the program's connection and the tunnel."""
        self._inner = inner
        self.opened = True
        self._on_open(self)

    def write(self, data: bytes) -> None:
        """Say something to the other proxy, before anything of the program's."""
        self._tls.write(data)
        self._send_outer()

    def _settle(self) -> None:
        """After each step: ends that are to be passed on, and what is waited for next."""
        busy = self._to_outer or self._to_inner or self._inner_ended or self._outer_ended or self._mute
        if self._flowing and not busy:
            return
        if self.closed:
            return
        if self._inner_ended and not self._said_end and not self._to_outer and not self._mute:
            self._said_end = True
            with suppress(ssl.SSLWantReadError):
                self._tls.unwrap()
            self._send_outer()
        if self._outer_ended and not self._passed_end and not self._to_inner and self._inner is not None:
            self._passed_end = True
            with suppress(OSError):
                self._inner.shutdown(socket.SHUT_WR)
        self._finish_if_done()
        if self.closed:
            return
        # A program that does not read is not read for; nor is one whose bytes nobody takes.
        outer = (READ if not self._to_inner and not self._outer_ended else 0) | (WRITE if self._to_outer else 0)
        if not self._outer_gone:
            self._wait("outer", self._outer, outer, self._on_outer)
        if self._inner is not None:
            takes = not self._to_outer and not self._inner_ended and (not self._mute or self._may_refuse())
            inner = (READ if takes else 0) | (WRITE if self._to_inner else 0)
            self._wait("inner", self._inner, inner, self._on_inner)
            self._flowing = outer == inner == READ

    def _wait(self, name: str, sock: socket.socket, events: int, handler: Callable[[int], None]) -> None:
        before = self._events[name]
        if events == before:
            return
        self._events[name] = events
        if not events and name == "inner":  # else a program that is gone would be reported for ever
            self.loop.remove(sock.fileno())
        elif not before and name == "inner":
            self.loop.add(sock.fileno(), events, handler)
        else:
            self.loop.change(sock.fileno(), events)

    def _finish_if_done(self) -> None:
        if self._mute and self._passed_end:
            if self._inner_ended:
                self.close("")
        elif self._said_end and self._passed_end and not self._to_outer and not self._outgoing.pending:
            self.close("")

    def _may_refuse(self) -> bool:
        """Whether the program has all that came, so that a reset for what it sends in vain takes nothing from it."""
        if not self._passed_end or self._inner is None:
            return False
        if not _unacknowledged(self._inner):
            return True
        if not self._looking:
            self._looking = True
            self.loop.later(_AGAIN, self._look_again)
        return False

    def _look_again(self) -> None:
        self._looking = False
        self._guarded(lambda: None)

    def leave(self, why: str) -> None:
        """The other end is no member any more: end it, but for what had come before its end. On the loop's thread."""
        if self.closed:
            return
        if not self.opened or self._outer.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] in _NOT_ENDED:
            self.close(why)
            return
        self._silence()
        self._guarded(lambda: None)

    def drain(self) -> None:
        """The program here has ended: end it as soon as the other machine has what was sent. On the loop's thread."""
        if self.closed:
            return
        sent = self._said_end and not self._to_outer and not self._outgoing.pending
        if self._inner_ended and not self.opened and not self.sent:
            self.close("")  # nobody has been told anything
            return
        if self._inner_ended and (self._mute or sent):
            if not self._draining and not self._outer_gone:
                self._draining = True
                with suppress(OSError):
                    self._outer.shutdown(socket.SHUT_WR)
            if self._mute or not _unacknowledged(self._outer):
                self.close("")
                return
        self.loop.later(_LOOK, self.drain)

    def close(self, why: str) -> None:
        """End it at once: in order where `why` is empty, else with a reset for the program."""
        if self.closed:
            return
        self.closed = True
        self._on_close(self, why)  # first: whoever gets the error may ask what was counted
        self.loop.remove(self._outer.fileno())
        self._outer.close()
        if self._inner is not None:
            self.loop.remove(self._inner.fileno())
            if why:
                reset(self._inner)
            else:
                self._inner.close()


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
        self._judge, self._connect, self._awaited = judge, connect, awaited
        self.port = 0
        self._patience = PATIENCE
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
                self._patience -= _AGAIN
                self.loop.later(_AGAIN, self._try_again)
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
