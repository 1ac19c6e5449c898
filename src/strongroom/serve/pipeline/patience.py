"""How long to wait for an answer before another enclave is asked: by how long answers took."""

from __future__ import annotations

from collections.abc import Callable

FIRST_SECONDS = 20.0
LEAST_SECONDS, MOST_SECONDS = 2.0, 60.0
TIMES = 10
_FADE = 0.9


class Patience:
    """Of one connection to a part after the other.

    - Before there was an answer it is `FIRST_SECONDS`; then `TIMES` the longest that one took of late, and at least
      `LEAST_SECONDS`.
    - A connection that ends while an answer is awaited doubles it, until there is one: a part that has become slow is
      not asked again and again.

    Attributes:
        seconds: how long to wait for the next bytes of an answer.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.seconds: float = FIRST_SECONDS
        self._clock, self._longest, self._since = clock, 0.0, 0.0

    def asked(self) -> None:
        """A part that had nothing to do has something now."""
        self._since = self._clock()

    def answered(self) -> None:
        """It answered; what else it was asked, it begins with now."""
        now = self._clock()
        self._longest = max(now - self._since, _FADE * self._longest)
        self._since = now
        self.seconds = min(MOST_SECONDS, max(LEAST_SECONDS, TIMES * self._longest))

    def ended(self) -> None:
        """The connection ended while an answer was awaited."""
        self.seconds = min(MOST_SECONDS, 2 * self.seconds)
