"""Frames of raw words between two parties.

A frame is a header of 32 bytes and a payload whose length both ends know beforehand from the program:

======  ====  ==================================================================
offset  size  what
======  ====  ==================================================================
0       4     ``SRM1``
4       1     kind: 1 words, 2 why the sender ends, 3 the sender's last operations
5       3     zero
8       8     bytes of payload, little-endian
16      16    the sender's transcript digest
======  ====  ==================================================================

The payload of kinds 2 and 3 is UTF-8 text of at most 64 KiB. Nothing of a frame is code, and nothing is allocated by
what a peer says but that text.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Sequence
from typing import Any, NoReturn, Protocol

import numpy as np
from numpy.typing import NDArray

from strongroom.channel import Channel
from strongroom.errors import ChannelError, DivergedError, MpcError, StrongroomError, printable
from strongroom.mpc.ahead import Ahead
from strongroom.mpc.transcript import DIGEST_SIZE, Transcript, difference

NAMES = ("P0", "P1", "D")
Array = NDArray[Any]

_HEADER = struct.Struct(f"<4sB3xQ{DIGEST_SIZE}s")
_MAGIC = b"SRM1"
_WORDS, _ABORT, _HISTORY = 1, 2, 3
_MOST_TEXT = 1 << 16
_LINGER = 2.0  # seconds that a party waits for the others to read why it ended


class Observer(Protocol):
    """Sees what a party sends and what it draws: for tests and meters. Never changes anything."""

    def sent(self, rank: int, to: int, payload: Sequence[Array]) -> None:
        """A frame of words was queued."""

    def drew(self, rank: int, stream: str, start: int, stop: int) -> None:
        """Bytes `start` to `stop` of a stream were drawn."""


class Peer:
    """One party's end of its channel to another party.

    Attributes:
        sent, received: bytes of payload.
        rounds: exchanges so far.
    """

    def __init__(
        self, own: int, rank: int, channel: Channel, *, seconds: float, observer: Observer | None = None
    ) -> None:
        self.rank = rank
        self.name = NAMES[rank]
        self.sent = self.received = self.rounds = 0
        self.transcript: Transcript | None = None
        self._own = own
        self._seconds = seconds
        self._ahead: Ahead | None = None
        self._channel = channel
        self._observer = observer
        self._header = bytearray(_HEADER.size)
        self._early: tuple[int, int, bytes] | None = None  # the header of a frame that is not due yet

    def exchange(self, out: Sequence[Array], into: Sequence[Array]) -> None:
        """Send `out` and fill `into`, at the same time. `out` may be changed afterwards."""
        self.rounds += 1
        self._queue(out)
        self._receive(into)
        self._channel.flush()

    def send(self, out: Sequence[Array]) -> None:
        """Send `out`, sooner or later, to a peer that has nothing to say meanwhile but that it ends.

        What the peer does not take at once is copied and sent while this party goes on, up to a limit.
        """
        if self._ahead is None:
            self._ahead = Ahead(self._channel, self._seconds, self.name)
        header = np.frombuffer(self._count(out), np.uint8)
        try:
            self._ahead.put([header, *out])
        except ChannelError:
            self._explain()
            raise
        if self._early is None and self._ahead.heard():
            self._settle()
            kind, size, theirs = self._read_header()
            if kind != _WORDS:
                self._refuse(kind, size)
            self._early = kind, size, theirs  # it has all it needs and went on to where it waits for us

    def receive(self, into: Sequence[Array]) -> None:
        """Fill `into`."""
        self._receive(into)

    def tell(self, reason: str) -> None:
        """Say that this party ends, and why. Never raises."""
        if self._ahead is not None and not self._ahead.end(drained=True):
            return  # behind a part of a frame nobody would find it
        text = reason.encode()[:_MOST_TEXT]
        with contextlib.suppress(StrongroomError):  # it may be gone already
            self._channel.queue([self._head(_ABORT, len(text)), text])
            if self._ahead is not None:
                self._channel.flush()  # what went before may fill the socket until it comes to read that

    def close(self) -> None:
        """Close, when the peer has had its time to read. Never raises."""
        if self._ahead is not None:
            self._ahead.end()
        self._channel.close(linger=_LINGER)

    def abandon(self) -> None:
        """In a fork: let go of the channel, which is the parent's, and say nothing. Never raises."""
        self._channel.abandon()  # what works ahead has no thread here, and perhaps a lock that nobody opens

    def _head(self, kind: int, size: int) -> bytes:
        return _HEADER.pack(_MAGIC, kind, size, self.transcript.digest if self.transcript else bytes(DIGEST_SIZE))

    def _settle(self) -> None:
        """From here on the channel is this thread's."""
        if self._ahead is not None:
            try:
                self._ahead.drain()
            except ChannelError:
                self._explain()
                raise

    def _count(self, out: Sequence[Array]) -> bytes:
        """The header for `out`, which is as good as sent."""
        size = sum(part.nbytes for part in out)
        self.sent += size
        if self._observer is not None:
            self._observer.sent(self._own, self.rank, out)
        return self._head(_WORDS, size)

    def _queue(self, out: Sequence[Array]) -> None:
        self._settle()
        try:
            self._channel.queue([self._count(out), *(part.reshape(-1) for part in out)])
        except ChannelError:
            self._explain()
            raise

    def _explain(self) -> None:
        """The peer closed while we sent: raise what it said last, which tells more than a broken pipe."""
        with contextlib.suppress(ChannelError):
            kind, size, _ = self._read_header()
            if kind != _WORDS:
                self._refuse(kind, size)

    def _receive(self, into: Sequence[Array]) -> None:
        wanted = sum(part.nbytes for part in into)
        kind, size, theirs = self._read_header()
        if kind != _WORDS or (self.transcript and theirs != self.transcript.digest):
            self._refuse(kind, size)
        if size != wanted:
            raise MpcError(f"{self.name}: sent {size} bytes in one operation, wanted {wanted}")
        for part in into:
            self._channel.recv_into(part.reshape(-1))
        self.received += wanted

    def _read_header(self) -> tuple[int, int, bytes]:
        if self._early is not None:
            early, self._early = self._early, None
            return early
        self._channel.recv_into(self._header)
        magic, kind, size, theirs = _HEADER.unpack(self._header)
        if magic != _MAGIC or kind not in (_WORDS, _ABORT, _HISTORY):
            raise MpcError(f"{self.name}: sent something that is no frame", hint="do all parties run one version?")
        if kind != _WORDS and size > _MOST_TEXT:
            raise MpcError(f"{self.name}: sent a text of {size} bytes, wanted at most {_MOST_TEXT}")
        return kind, size, theirs

    def _refuse(self, kind: int, size: int) -> NoReturn:
        """Raise what a frame that is not the expected one means."""
        if kind == _ABORT:
            raise MpcError(f"{self.name}: ended: {printable(self._text(size))}", hint="see its own messages")
        if self.transcript is None:
            raise MpcError(f"{self.name}: sent a frame out of turn")
        hint = "all parties run the same program: only what is revealed to all may steer it"
        ours = self.transcript.history()
        self._channel.hurry(_LINGER)
        try:
            self._channel.queue([self._head(_HISTORY, len(ours)), ours])
            while kind == _WORDS:
                self._skip(size)
                kind, size, _ = self._read_header()
            text = self._text(size)
        except ChannelError:
            last = self.transcript.history().decode().rpartition("\n")[2]
            raise DivergedError(
                f"programs differ: {NAMES[self._own]} is at operation {last}; {self.name} did not say where it is",
                hint=hint,
            ) from None
        if kind == _ABORT:
            raise MpcError(f"{self.name}: ended: {printable(text)}", hint="see its own messages")
        where = difference(ours, text.encode(), NAMES[self._own], self.name)
        raise DivergedError(f"programs differ: {where}", hint=hint)

    def _skip(self, size: int) -> None:
        """Throw away a payload."""
        piece = memoryview(bytearray(min(size, _MOST_TEXT)))
        while size:
            part = piece[:size]
            self._channel.recv_into(part)
            size -= len(part)

    def _text(self, size: int) -> str:
        text = bytearray(size)
        self._channel.recv_into(text)
        return text.decode("utf-8", "replace")
