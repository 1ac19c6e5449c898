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
_EVENTS = 32  # of one turn, for which room is made each time
_log = logging.getLogger("strongroom.network")

Handler = Callable[[int], None]
"""Called with the events of its socket."""


class Timer:
    """Something that is done later, unless it is cancelled before. On the loop's thread.

    A loop that waits with a time-out has the kernel set a clock each time, which a round trip through two proxies pays
    for: so whoever needs one no more cancels it.
    """

    __slots__ = ("what",)

    def __init__(self, what: Callable[[], None]) -> None:
        self.what: Callable[[], None] | None = what

    def cancel(self) -> None:
        self.what = None


class Loop:
    """One of them, from `start` to `close`."""

    def __init__(self, name: str) -> None:
        self._poll = select.epoll()
        self._handlers: dict[int, Handler] = {}
        self._calls: deque[Callable[[], None]] = deque()
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._ended = False
        self._lock = threading.Lock()
        self._poll.register(self._wake, READ)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.buffer = memoryview(bytearray(1 << 18))
        """For whoever is called, until it returns."""
        self.spare = memoryview(bytearray(1 << 18))
        self.held = 0
        """Bytes that its connections hold; of its own thread."""

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """End the thread; what it waited for is not closed."""
        self._ended = True
        self._ring()
        self._thread.join(5.0)

    def finish(self) -> None:
        """Do what was still to be done when the thread ended, on the caller's."""
        while self._calls:
            self._guard(self._calls.popleft())

    def call(self, what: Callable[[], None]) -> None:
        """Have something done on the thread, soon. From any thread."""
        self._calls.append(what)
        self._ring()

    def later(self, seconds: float, what: Callable[[], None]) -> Timer:
        """The same in so many seconds; from the loop's own thread."""
        timer = Timer(what)
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._order), timer))
        return timer

    def add(self, descriptor: int, events: int, handler: Handler) -> None:
        self._handlers[descriptor] = handler
        self._poll.register(descriptor, events)

    def handle(self, descriptor: int, handler: Handler) -> None:
        """Have another one called from now on."""
        self._handlers[descriptor] = handler

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
        poll, handlers, calls, timers = self._poll.poll, self._handlers, self._calls, self._timers
        while not self._ended:
            for descriptor, events in poll(self._timeout() if timers else -1.0, _EVENTS):
                try:
                    if descriptor in handlers:
                        handlers[descriptor](events)
                    elif descriptor == self._wake:
                        os.eventfd_read(descriptor)
                    # else it was removed in this turn
                except Exception:
                    _log.exception("network shield")
            if calls or timers:
                self._rest()
        with self._lock:  # else somebody rings at a descriptor that is another's by now
            self._poll.close()
            os.close(self._wake)

    def _timeout(self) -> float:
        timers = self._timers
        while timers and timers[0][2].what is None:
            heapq.heappop(timers)
        return max(0.0, timers[0][0] - time.monotonic()) if timers else -1.0

    def _rest(self) -> None:
        timers = self._timers
        while self._calls:
            self._guard(self._calls.popleft())
        while timers and timers[0][0] <= time.monotonic():
            what = heapq.heappop(timers)[2].what
            if what is not None:
                self._guard(what)

    @staticmethod
    def _guard(what: Callable[..., None], *arguments: int) -> None:
        try:
            what(*arguments)
        except Exception:
            _log.exception("network shield")
