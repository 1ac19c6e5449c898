"""How often to commit: every so many steps, or as often as a share of the time allows."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Final, Literal

from strongroom.errors import UsageError

BUDGET: Final = 0.035
"""Of the time, for commits: the overhead that CheckFreq (Mohan et al., FAST 2021) bounds its own by."""

_WEIGHT: Final = 0.3  # of the newest measurement in a moving mean
_FIRST: Final = 3  # steps whose time says little: compilers and caches warm up


class Pace:
    """Says at which steps to commit.

    Args:
        every: so many steps lie between two commits; ``auto`` keeps what training waits for commits below `budget`.
        budget: a share of the time, above 0 and at most 1.
        clock: seconds that only rise.
    """

    def __init__(
        self, every: int | Literal["auto"] = 1, *, budget: float = BUDGET, clock: Callable[[], float] = time.monotonic
    ) -> None:
        if every != "auto" and (isinstance(every, bool) or not isinstance(every, int) or every < 1):
            raise UsageError(f"every: {every!r}, wanted a number of steps from 1 on, or auto")
        if not 0 < budget <= 1:
            raise UsageError(f"budget: {budget}, wanted a share above 0 and at most 1")
        self._every = every
        self._budget = budget
        self._clock = clock
        self._step: float | None = None
        self._stall: float | None = None
        self._steps = 0
        self._since = 0
        self._last = clock()

    @property
    def every(self) -> int:
        """Steps between two commits, as things are now."""
        if self._every != "auto":
            return self._every
        if self._step is None or self._stall is None:
            return 1
        return max(1, math.ceil(self._stall * (1 - self._budget) / max(1e-9, self._step * self._budget)))

    def due(self) -> bool:
        """Whether to commit now. Asked once a step, after it."""
        self._steps += 1
        self._since += 1
        if self._steps > _FIRST:
            self._step = _mean(self._step, self._clock() - self._last)
        self._last = self._clock()
        return self._since >= self.every

    def committed(self) -> None:
        """Note that the commit that was due has returned: what it took is what training waited."""
        now = self._clock()
        if self._steps > _FIRST:
            self._stall = _mean(self._stall, now - self._last)
        self._last = now
        self._since = 0


def _mean(old: float | None, new: float) -> float:
    return new if old is None else old + _WEIGHT * (new - old)
