"""How the dealer works ahead of the servers: bytes wait here until P1 takes them, up to a limit."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strongroom.channel import Channel
from strongroom.errors import ChannelError, StrongroomError

CAPACITY = 1 << 24  # bytes: what the dealer is ahead by at most, besides what the sockets hold
_PIECE = 1 << 18
_LINGER = 2.0  # seconds


class Ahead:
    """A ring of bytes in front of a channel, emptied by a thread of its own.

    The channel is the thread's while anything waits, and the caller's otherwise; a caller that wants to use it
    calls `drain` first. What the socket takes at once passes by the thread.
    """

    def __init__(self, channel: Channel, seconds: float, name: str, capacity: int = CAPACITY) -> None:
        self._channel, self._seconds, self._name = channel, seconds, name
        self._ring = np.empty(capacity, np.uint8)
        self._read = self._held = 0
        self._error: StrongroomError | None = None
        self._ended = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._rest = False  # a part of a record is on its way, with nothing behind it
        self._heard = False

    def put(self, parts: Sequence[NDArray[Any]]) -> None:
        """Send `parts`, or keep a copy that will be sent; wait while there is no room for it.

        Raises:
            ChannelError: the peer is gone, or made no room for the time set.
        """
        flat = [part.reshape(-1).view(np.uint8) for part in parts]
        with self._changed:
            self._check()
            if not self._busy():
                flat = [np.frombuffer(view, np.uint8) for view in self._channel.offer(flat)]
                if not flat and self._channel.unsent():
                    self._rest = True
                    self._start()
        for part in flat:
            while len(part):
                part = part[self._copy(part) :]

    def _copy(self, part: NDArray[np.uint8]) -> int:
        """Copy the beginning of `part` into the ring, once there is room; how many bytes."""
        with self._changed:
            while self._held == len(self._ring):
                self._wait()
                self._check()
            start = (self._read + self._held) % len(self._ring)
            room = min(len(self._ring) - self._held, len(self._ring) - start, _PIECE)
        size = min(room, len(part))
        self._ring[start : start + size] = part[:size]  # beyond what is held: the thread does not look there
        with self._changed:
            self._held += size
            self._start()
        return size

    def heard(self) -> bool:
        """Whether the peer has said something, or hung up."""
        with self._changed:
            return self._heard or (not self._busy() and self._channel.hears())

    def drain(self) -> None:
        """Return when everything is sent and the channel is the caller's. Raises ChannelError as `put` does."""
        with self._changed:
            while self._busy() and self._error is None:
                self._wait()
            self._heard = False  # the caller hears for itself; what was heard, it is about to read
            self._check()

    def end(self, *, drained: bool = False) -> bool:
        """Stop, and return whether everything is sent; the channel is the caller's then. Never raises.

        Args:
            drained: first send what is here, for as long as the peer takes it: it may be far behind.
        """
        with self._changed:
            with contextlib.suppress(ChannelError):
                while drained and self._busy() and self._error is None:
                    self._wait()
            sent = not self._busy() and self._error is None
            self._ended = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(_LINGER)
            if self._thread.is_alive():
                self._channel.close()  # it waits for a peer that takes nothing
                self._thread.join()
        return sent

    def _wait(self) -> None:
        before = self._read
        if not self._changed.wait(self._seconds) and self._read == before and self._error is None:
            raise ChannelError(f"{self._name}: took nothing for {self._seconds:g} s", hint="is it still running?")

    def _busy(self) -> bool:
        """Whether the channel is the thread's."""
        return bool(self._held or self._rest)

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="ahead", daemon=True)
            self._thread.start()
        self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._busy() and not self._ended:
                    self._changed.wait()
                if self._ended:
                    return
                size = min(self._held, len(self._ring) - self._read, _PIECE)
                piece = self._ring[self._read : self._read + size]
            try:
                self._channel.queue([piece])
                self._channel.flush()
                self._heard = self._heard or self._channel.hears()
            except StrongroomError as error:
                with self._changed:
                    self._error, self._held, self._rest = error, 0, False
                    self._changed.notify_all()
                return
            with self._changed:
                self._read = (self._read + size) % len(self._ring)
                self._held -= size
                self._rest = False
                self._changed.notify_all()
