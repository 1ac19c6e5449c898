"""Which refusals the CAS writes down: anybody can cause one, and the log of the owner concerned keeps it for good."""

from __future__ import annotations

BURST = 32
"""Refusals of one policy that are all written down, whenever they come."""

SECONDS = 1200
"""After those, one more for each so many seconds: 72 a day, less than 100 KB of an audit."""


class Refusals:
    """The refusals of each policy since this CAS's start. One thread at a time may use it."""

    def __init__(self) -> None:
        self._policies: dict[str, tuple[int, int, int]] = {}  # seconds' worth left, when, how many were left out

    def admit(self, policy: str, now: int) -> int | None:
        """Count one more; None if it is to be left out of the log, else how many were left out just before it."""
        left, then, omitted = self._policies.get(policy, (BURST * SECONDS, now, 0))
        left = min(BURST * SECONDS, left + max(0, now - then))
        if left < SECONDS:
            self._policies[policy] = left, now, omitted + 1
            return None
        self._policies[policy] = left - SECONDS, now, 0
        return omitted
