"""How work ends that nobody waits for any more."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Ending:
    """Says once, from any thread, that an answer is waited for no longer, to whoever works on it.

    Attributes:
        over: whether that was said.
    """

    def __init__(self) -> None:
        self.over = False
        self._lock = threading.Lock()
        self._stops: list[Callable[[], object]] = []

    def end(self) -> None:
        """Say it. Does not wait for the work to end."""
        with self._lock:
            self.over = True
            stops, self._stops = self._stops, []
        for stop in stops:
            stop()

    @contextmanager
    def stops(self, stop: Callable[[], object]) -> Iterator[None]:
        """While this is entered, `stop` is called when it is said; at once if it was said already."""
        with self._lock:
            over = self.over
            if not over:
                self._stops.append(stop)
        if over:
            stop()
        try:
            yield
        finally:
            with self._lock:
                if stop in self._stops:
                    self._stops.remove(stop)
