"""Frames that leave at fixed moments, so that when they do tells less of how long something took."""

from __future__ import annotations

import time
from collections.abc import Callable


class Tick:
    """Moments at equal distances.

    Args:
        microseconds: the distance; 0 has them at any time.
        clock: seconds that only go forward.
        sleep: waits for seconds.
    """

    def __init__(
        self,
        microseconds: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._period, self._clock, self._sleep = microseconds / 1e6, clock, sleep

    def wait(self) -> None:
        """Until the next of them."""
        if self._period:
            self._sleep(self._period - self._clock() % self._period)
