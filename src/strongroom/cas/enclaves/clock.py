"""The CAS's time, which goes forward only: what has run out stays so, whatever its host does to its clock.

- Within a process it never goes back, and never slower than a monotonic clock: a host that sets the wall clock back
  gains no second for a lease.
- It starts no earlier than the newest entry of the log. A host that stops the CAS, sets its clock back and starts it
  again gains the time since that entry at most; nothing on one machine could tell it from a CAS that was off.
- A clock that was ahead when an entry was written stays ahead.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from strongroom.cas.state.store import Store

Clock = Callable[[], float]


class ForwardClock:
    """Seconds since 1970. May be called from several threads.

    Args:
        wall: the host's clock.
        elapsed: seconds that only go forward; None takes the system's where `wall` is the system's, else `wall` alone.
        no_earlier: when the newest thing that is known happened.
    """

    def __init__(self, wall: Clock = time.time, *, elapsed: Clock | None = None, no_earlier: float = 0.0) -> None:
        self._wall = wall
        self._elapsed = elapsed or (time.monotonic if wall is time.time else None)
        self._lock = threading.Lock()
        self._last = no_earlier
        self._at = self._elapsed() if self._elapsed else 0.0

    def __call__(self) -> float:
        with self._lock:
            if self._elapsed is not None:
                at = self._elapsed()
                self._last += max(0.0, at - self._at)
                self._at = at
            self._last = max(self._last, self._wall())
            return self._last


def forward_clock(store: Store, wall: Clock = time.time) -> ForwardClock:
    """The clock of the CAS whose log that is."""
    size = store.head().size
    newest = store.log(after=size - 1, limit=1) if size else []
    return ForwardClock(wall, no_earlier=max((entry.time for entry in newest), default=0))
