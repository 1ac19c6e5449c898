"""A listener at which several are heard at once, so that a stranger who says nothing keeps nobody waiting."""

from __future__ import annotations

import contextlib
import queue
import select
import selectors
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from strongroom.channel import Channel
from strongroom.crypto import Certificate
from strongroom.errors import StrongroomError

PATIENCE = 10.0  # seconds that a guest may keep silent while it says who it is
_MOST = 64  # guests that are heard at once; who has been at it for longest makes room


@dataclass(frozen=True)
class Guest:
    """A party that said, and where there are certificates proved, who it is.

    Attributes:
        sock: the channel's.
    """

    rank: int
    channel: Channel
    sock: socket.socket
    leaf: Certificate | None = None

    def left(self) -> bool:
        """Whether it hung up meanwhile, where the system tells."""
        if not hasattr(select, "POLLRDHUP"):
            return False
        poll = select.poll()
        poll.register(self.sock, select.POLLRDHUP)
        return bool(poll.poll(0))


class Door:
    """Guests at a listening socket, which stays the caller's.

    Args:
        greet: finds out who is at a connected socket, which it then owns; raises StrongroomError or OSError for a
            stranger. Called in a thread of its own.

    Attributes:
        refused: what was wrong with the last stranger; empty if there was none.
        refusal: the error that said so.
    """

    def __init__(self, listener: socket.socket, greet: Callable[[socket.socket], Guest]) -> None:
        self._listener, self._greet = listener, greet
        listener.setblocking(False)
        self._arrived: queue.SimpleQueue[Guest] = queue.SimpleQueue()
        self._bell, self._rope = socket.socketpair()  # a greeting that is over rings
        self._lock = threading.Lock()
        self._heard: dict[socket.socket, threading.Thread] = {}  # oldest first
        self.refused = ""
        self.refusal: StrongroomError | OSError | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Send away whoever was not taken in."""
        with self._lock:
            greetings = list(self._heard.items())
        for sock, _ in greetings:
            dismiss(sock)
        for _, thread in greetings:
            thread.join()
        while not self._arrived.empty():
            self._arrived.get().channel.close()
        self._bell.close()
        self._rope.close()

    def next(self, deadline: float) -> Guest | None:
        """The next guest; nobody if none comes before that time of `time.monotonic`."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(self._bell, selectors.EVENT_READ)
            while self._arrived.empty():
                left = deadline - time.monotonic()
                if left <= 0:
                    return None
                for key, _ in selector.select(left):
                    if key.fileobj is self._bell:
                        self._bell.recv(_MOST)
                    else:
                        self._admit()
        return self._arrived.get()

    def _admit(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return  # it left again
        sock.settimeout(PATIENCE)
        thread = threading.Thread(target=self._hear, args=(sock,), name="mpc door", daemon=True)
        with self._lock:
            full = len(self._heard) >= _MOST
            oldest, its = next(iter(self._heard.items())) if full else (None, None)
            if oldest is not None:
                del self._heard[oldest]
                dismiss(oldest)
        if its is not None:
            its.join()  # one thread ends before another begins; its socket has nothing more to say
        with self._lock:
            self._heard[sock] = thread
        thread.start()

    def _hear(self, sock: socket.socket) -> None:
        guest = None
        try:
            guest = self._greet(sock)
        except (StrongroomError, OSError) as error:
            self.refusal = error
            self.refused = error.message if isinstance(error, StrongroomError) else str(error)
        finally:
            with self._lock:  # from here on nobody dismisses it
                stayed = self._heard.pop(sock, None) is not None
                if guest is None:
                    sock.close()
                elif stayed:
                    self._arrived.put(guest)
            if guest is not None and not stayed:
                guest.channel.close()
            with contextlib.suppress(OSError):
                self._rope.send(b"!")


def dismiss(sock: socket.socket) -> None:
    """End the greeting of a guest, whichever thread waits for it."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
