"""A thread that waits for many sockets at once, and calls whoever has something to do.

Everything that belongs to a loop's connections is done on its thread; others hand it work with `call`.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final

READ: Final = select.EPOLLIN
WRITE: Final = select.EPOLLOUT
_EVENTS = 256
_log = logging.getLogger("strongroom.network")

Handler = Callable[[int], None]
"""Called with the events of its socket."""


class Loop:
    """One of them, from `start` to `close`."""

    def __init__(self, name: str) -> None:
        self._poll = select.epoll()
        self._handlers: dict[int, Handler] = {}
        self._calls: deque[Callable[[], None]] = deque()
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._ended = False
        self._lock = threading.Lock()
        self._poll.register(self._wake, READ)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.buffer = memoryview(bytearray(1 << 18))
        """For whoever is called, until it returns."""
        self.spare = memoryview(bytearray(1 << 18))

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """End the thread; what it waited for is not closed."""
        self._ended = True
        self._ring()
        self._thread.join(5.0)

    def call(self, what: Callable[[], None]) -> None:
        """Have something done on the thread, soon. From any thread."""
        self._calls.append(what)
        self._ring()

    def later(self, seconds: float, what: Callable[[], None]) -> None:
        """The same in so many seconds; from the loop's own thread."""
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._order), what))

    def add(self, descriptor: int, events: int, handler: Handler) -> None:
        self._handlers[descriptor] = handler
        self._poll.register(descriptor, events)

    def change(self, descriptor: int, events: int) -> None:
        self._poll.modify(descriptor, events)

    def remove(self, descriptor: int) -> None:
        """Wait for it no more, if it was waited for. Before it is closed."""
        if self._handlers.pop(descriptor, None) is not None and not self._poll.closed:
            self._poll.unregister(descriptor)

    def _ring(self) -> None:
        with self._lock, suppress(BlockingIOError):
            if not self._poll.closed:
                os.eventfd_write(self._wake, 1)

    def _run(self) -> None:
        while not self._ended:
            try:
                self._turn()
            except Exception:
                _log.exception("network shield")
        with self._lock:  # else somebody rings at a descriptor that is another's by now
            self._poll.close()
            os.close(self._wake)

    def _turn(self) -> None:
        timers = self._timers
        timeout = -1.0 if not timers else max(0.0, timers[0][0] - time.monotonic())
        handlers = self._handlers
        for descriptor, events in self._poll.poll(timeout, _EVENTS):
            handler = handlers.get(descriptor)
            if handler is None:  # it was removed in this turn, or somebody calls
                if descriptor == self._wake:
                    os.eventfd_read(self._wake)
                continue
            try:
                handler(events)
            except Exception:
                _log.exception("network shield")
        while self._calls:
            self._guard(self._calls.popleft())
        while timers and timers[0][0] <= time.monotonic():
            self._guard(heapq.heappop(timers)[2])

    @staticmethod
    def _guard(what: Callable[..., None], *arguments: int) -> None:
        try:
            what(*arguments)
        except Exception:
            _log.exception("network shield")
