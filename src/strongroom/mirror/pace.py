"""How often to commit: every so many steps, or as often as a share of the time allows."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Final, Literal, Protocol

from strongroom.errors import UsageError

BUDGET: Final = 0.035
"""Of the time, for commits: the overhead that CheckFreq (Mohan et al., FAST 2021) bounds its own by."""

_AIM: Final = 0.8  # of the budget: what commits will cost is known from the last ones only
_WEIGHT: Final = 0.3  # of the newest measurement in a moving mean
_FIRST: Final = 3  # steps whose time says little: compilers and caches warm up


class Sealing(Protocol):
    """A commit that may still be under way, as `Commit`."""

    @property
    def done(self) -> bool: ...


class Pace:
    """Says at which steps to commit.

    What a commit costs is what training waits for it, and what the steps that it goes on behind take longer than others
    do: they share processors and memory with it.

    Args:
        every: so many steps lie between two commits; ``auto`` keeps the cost of commits below `budget`.
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
        self._step: float | None = None  # seconds, of one that no commit goes on behind
        self._cost: float | None = None  # seconds, of a commit
        self._commits = 0
        self._agreed: int | None = None
        self._sealing: Sealing | None = None
        self._extra = 0.0  # of the commit under way, so far
        self._steps = 0
        self._since = 0
        self._last = clock()

    @property
    def every(self) -> int:
        """Steps between two commits, as things are now."""
        if self._every != "auto":
            return self._every
        if self._agreed is not None:
            return self._agreed
        if self._step is None or self._cost is None:
            return 2 * _FIRST  # so that there are steps to compare with
        share = self._budget * _AIM
        return max(1, math.ceil(self._cost * (1 - share) / max(1e-9, self._step * share)))

    def agree(self, most: Callable[[int], int]) -> None:
        """Let the ranks of one training commit at the same steps: each is as far from the last as the most of any.

        Args:
            most: gives the highest of what all ranks call it with. All do so after the same commit.
        """
        if self._every == "auto":
            self._agreed = None
            self._agreed = most(self.every)

    def due(self) -> bool:
        """Whether to commit now. Asked once a step, after it."""
        self._steps += 1
        self._since += 1
        if self._every != "auto":
            return self._since >= self._every
        now = self._clock()
        took, self._last = now - self._last, now
        if self._sealing is not None:  # when the step began, so that it was slower, if only in part
            self._extra += took - (took if self._step is None else self._step)
            if not self._sealing.done:
                return False
            self._end()
            return False  # the next step shows again what one takes without
        if self._steps > _FIRST:
            self._step = _mean(self._step, took)
        return self._since >= self.every

    def committed(self, commit: Sealing | None = None) -> None:
        """Note that the commit that was due has returned, and which it is if it may still be under way."""
        now = self._clock()
        self._extra, self._last = now - self._last, now
        self._since = 0
        self._sealing = commit
        if commit is None or commit.done:
            self._end()

    def _end(self) -> None:
        self._sealing = None
        self._commits += 1
        if self._steps > _FIRST and self._commits > 1:  # the first gets memory and places, once
            self._cost = _mean(self._cost, max(0.0, self._extra))


def _mean(old: float | None, new: float) -> float:
    return new if old is None else old + _WEIGHT * (new - old)
