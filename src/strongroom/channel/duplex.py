"""Channels for two peers that send to each other at the same time, from one thread.

Two peers that both write megabytes with `sendall` before they read wait for each other for ever. Here whoever waits for
bytes to read also writes what is pending.

- `Channel` is a socket as it is: on one machine, between processes of one user. It encrypts nothing.
- `TlsChannel` is the same over TLS 1.3; who the peer is was decided by the `Expect` of `connect` or `accept`.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING

from OpenSSL import SSL

from strongroom.channel.records import read_into
from strongroom.channel.tls import BATCH, CHUNK, TlsStream
from strongroom.errors import ChannelError

if TYPE_CHECKING:
    from collections.abc import Buffer  # type: ignore[attr-defined,unused-ignore]  # Python 3.12

_HAS_SENDMSG = hasattr(socket.socket, "sendmsg")  # not on Windows
_VECTORS = 64  # buffers for one system call; Linux takes 1,024
_TRIES = 30 if hasattr(os, "sched_yield") else 0  # to read before sleeping: to be woken takes as long


class Channel:
    """Bytes to and from one peer over a connected stream socket, which it owns. For one thread at a time.

    Args:
        sock: connected.
        peer: its name, for messages.
        seconds: how long to wait without any progress.
    """

    def __init__(self, sock: socket.socket, peer: str, *, seconds: float) -> None:
        sock.setblocking(False)
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = sock
        self._peer = peer
        self._seconds = seconds
        self._out: deque[memoryview] = deque()
        self._process = os.getpid()

    def queue(self, parts: Iterable[Buffer]) -> None:
        """Begin to send `parts`, which must not change before `flush` returns."""
        self._check_process()
        for part in parts:
            view = memoryview(part).cast("B")
            if len(view):
                self._waiting().append(view)
        self._push()

    def recv_into(self, out: Buffer) -> None:
        """Fill `out`, and send what is queued while waiting.

        Raises:
            ChannelError: the peer is gone, or nothing moved for the time set.
        """
        self._check_process()
        view, tries = memoryview(out).cast("B"), _TRIES
        while len(view):
            try:
                count = self._read(view)
            except BlockingIOError:
                if tries and not self.unsent():
                    os.sched_yield()
                    tries -= 1
                else:
                    self._wait(reading=True)
                continue
            if not count:
                raise ChannelError(f"{self._peer}: closed the connection", hint="see why it ended in its own messages")
            view = view[count:]

    def flush(self) -> None:
        """Return when everything queued is sent. Raises ChannelError as `recv_into` does."""
        self._check_process()
        while self.unsent():
            self._wait(reading=False)

    def offer(self, parts: Iterable[Buffer]) -> list[memoryview]:
        """Send what the socket takes at once; what is left is returned, and no longer queued.

        What is on its way already, such as a part of a TLS record, may stay `unsent`.
        """
        self.queue(parts)
        rest = list(self._waiting())
        self._waiting().clear()
        return rest

    def hears(self, seconds: float = 0) -> bool:
        """Whether the peer has said something, or hung up, before that time is over."""
        try:
            return _poll(self._socket, True, False, seconds)[0]
        except (OSError, ValueError):
            return True

    def hurry(self, seconds: float) -> None:
        """Wait no longer than that from now on."""
        self._seconds = min(self._seconds, seconds)

    def be_patient(self, seconds: float) -> None:
        """Wait so long without any progress, from now on."""
        self._seconds = seconds

    def close(self, *, linger: float = 0) -> None:
        """Close. Never raises.

        Args:
            linger: how many seconds to go on sending what is queued and throwing away what comes, until the peer closes
                too. Without that, what is queued is lost, and what the peer has not read yet may be.

        In a fork of the process that made it, as `abandon`.
        """
        if os.getpid() != self._process:
            self.abandon()
            return
        with contextlib.suppress(ChannelError, OSError, ValueError):
            if linger:
                self.hurry(linger)
                self.flush()
            self._say_goodbye()
            self._socket.shutdown(socket.SHUT_WR)
            deadline = time.monotonic() + linger
            while linger and _poll(self._socket, True, False, max(0.0, deadline - time.monotonic()))[0]:
                if not self._socket.recv(CHUNK):
                    break
        self._socket.close()

    def abandon(self) -> None:
        """Close this process's descriptor and say nothing: the connection is the parent's. Never raises."""
        self._socket.close()

    def _check_process(self) -> None:
        # A fork has a copy of TLS's keys and counters: it would encrypt other bytes under the parent's nonces.
        if os.getpid() != self._process:
            raise ChannelError(f"{self._peer}: the connection is the parent process's", hint="connect after a fork")

    def _say_goodbye(self) -> None:
        pass

    def _waiting(self) -> deque[memoryview]:
        """What of the callers' the socket has not taken."""
        return self._out

    def unsent(self) -> bool:
        """Whether anything queued still has to be sent."""
        return bool(self._out)

    def _wait(self, *, reading: bool) -> None:
        writing = self.unsent()
        try:
            readable, writable = _poll(self._socket, reading, writing, self._seconds)
        except (OSError, ValueError):
            raise ChannelError(f"{self._peer}: the connection is closed") from None
        if not readable and not writable:
            raise self._stuck("sent" if reading else "took")
        if writable:
            try:
                self._push()
            except ChannelError:
                if not readable:
                    raise  # else what the peer said last tells more

    def _push(self) -> None:
        try:
            while self._out:
                parts = [self._out[i] for i in range(min(len(self._out), _VECTORS))]
                self._drop(self._socket.sendmsg(parts) if _HAS_SENDMSG else self._socket.send(parts[0]))
        except BlockingIOError:
            return
        except OSError as error:
            self._out.clear()
            raise self._gone(error) from None

    def _drop(self, count: int) -> None:
        while count:
            first = self._out.popleft()
            if count < len(first):
                self._out.appendleft(first[count:])
                return
            count -= len(first)

    def _read(self, view: memoryview) -> int:
        try:
            return self._socket.recv_into(view)
        except BlockingIOError:
            raise
        except OSError as error:
            raise self._gone(error) from None

    def _stuck(self, did: str) -> ChannelError:
        return ChannelError(
            f"{self._peer}: {did} nothing for {self._seconds:g} s", hint="is it still running, and on the same program?"
        )

    def _gone(self, error: OSError) -> ChannelError:
        return ChannelError(f"{self._peer}: {(error.strerror or str(error)).lower()}", hint="see why it ended there")


class TlsChannel(Channel):
    """The same over TLS 1.3, out of a stream whose handshake is done and whose peer is known."""

    def __init__(self, stream: TlsStream, peer: str, *, seconds: float) -> None:
        self._tls, sock = stream.release()
        self._plain: deque[memoryview] = deque()
        super().__init__(sock, peer, seconds=seconds)

    def _say_goodbye(self) -> None:
        with contextlib.suppress(SSL.Error):
            self._tls.shutdown()
            self._out.append(memoryview(self._tls.bio_read(CHUNK)))
            super()._push()

    def _waiting(self) -> deque[memoryview]:
        return self._plain

    def unsent(self) -> bool:
        return bool(self._out or self._plain)

    def _push(self) -> None:
        # Encrypt no more than the socket takes: ciphertext that waits is memory.
        while True:
            super()._push()
            if self._out or not self._plain:
                return
            self._encrypt()

    def _encrypt(self) -> None:
        try:
            room = BATCH
            while self._plain and room:
                view = self._plain.popleft()
                count = self._tls.send(view[:room])
                room -= count
                if count < len(view):
                    self._plain.appendleft(view[count:])
            sent = CHUNK
            with contextlib.suppress(SSL.WantReadError):
                while sent == CHUNK:  # else that was all, and to be told so costs an exception
                    data = self._tls.bio_read(CHUNK)
                    self._out.append(memoryview(data))
                    sent = len(data)
        except SSL.Error as error:
            raise ChannelError(f"{self._peer}: TLS failed: {error}") from None

    def _read(self, view: memoryview) -> int:
        while True:
            try:
                return read_into(self._tls, view)
            except SSL.WantReadError:
                pass
            except SSL.ZeroReturnError:
                return 0
            except SSL.Error as error:
                raise ChannelError(f"{self._peer}: TLS failed: {error}") from None
            try:
                data = self._socket.recv(CHUNK)
            except BlockingIOError:
                raise
            except OSError as error:
                raise self._gone(error) from None
            if not data:
                return 0
            self._tls.bio_write(data)


def _poll(sock: socket.socket, reading: bool, writing: bool, seconds: float) -> tuple[bool, bool]:
    if not hasattr(select, "poll"):
        got = select.select([sock] if reading else [], [sock] if writing else [], [], seconds)
        return bool(got[0]), bool(got[1])
    poll = select.poll()
    poll.register(sock, (select.POLLIN if reading else 0) | (select.POLLOUT if writing else 0))
    events = poll.poll(seconds * 1000)
    if not events:
        return False, False
    event = events[0][1]
    # A broken connection reports neither; the call that follows says what is wrong with it.
    broken = bool(event & ~(select.POLLIN | select.POLLOUT))
    return bool(event & select.POLLIN) or (broken and reading), bool(event & select.POLLOUT) or (broken and writing)
