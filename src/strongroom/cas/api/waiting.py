"""Requests that wait for news: at most so many at once, a part of them from one address, and none of them keeps a
server from ending."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable

MAX_WAITING = 128
"""Each holds a connection, of which a server has some hundreds (`channel.Server`)."""
SHARE = MAX_WAITING // 4
"""Those of one address. Enclaves of one machine beyond that are told when to ask again."""


class Waiting:
    """Those who wait on one event loop. `ring` and `end` may be called from any thread."""

    def __init__(self) -> None:
        self._waiting: set[asyncio.Future[None]] = set()
        self._of: Counter[str] = Counter()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = threading.Lock()
        self._ended = False

    def full(self, who: str) -> bool:
        """Whether no more of that address may wait."""
        return self._ended or len(self._waiting) >= MAX_WAITING or self._of[who] >= SHARE

    async def wait(self, seconds: float, who: str) -> None:
        """Until somebody rings, so many seconds have passed, or the server ends."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        with self._lock:
            self._loop = loop
            if self._ended:
                return
            self._waiting.add(future)
            self._of[who] += 1
        try:
            await asyncio.wait([future], timeout=seconds)
        finally:
            with self._lock:
                self._waiting.discard(future)
                self._of[who] -= 1
                self._of += Counter()  # forgets whoever waits no more

    def ring(self) -> None:
        """There is news: all who wait go on, after what now runs."""
        self._call(self._wake)

    def end(self) -> None:
        """All who wait go on, and nobody waits any more."""
        with self._lock:
            self._ended = True
        self._call(self._wake)

    def _call(self, what: Callable[[], None]) -> None:
        with self._lock:
            loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(what)

    def _wake(self) -> None:
        with self._lock:
            waiting = list(self._waiting)
        for future in waiting:
            if not future.done():
                future.set_result(None)
