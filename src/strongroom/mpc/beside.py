"""What parties in one process share besides their channels, so that a debugger can look at both servers' shares.

They are one trust domain: whoever runs the process could look anyway. Parties in processes of their own have none.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from strongroom.errors import MpcError

T = TypeVar("T")


class Beside:
    """One for all three parties of a run.

    Attributes:
        given: what sources have given, in the clear.
    """

    def __init__(self) -> None:
        self.given: list[NDArray[np.float64]] = []
        self._shares: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._made: dict[int, Any] = {}
        self._lock = threading.Lock()

    def same(self, number: int, make: Callable[[], T]) -> T:
        """The same object for every party that asks for it by its number; made for the first."""
        with self._lock:
            if number not in self._made:
                self._made[number] = make()
            made: T = self._made[number]
            return made

    def show(self, what: str, value: Any) -> None:
        """At P1: let P0 see a value."""
        self._shares.put((what, value))

    def look(self, what: str, seconds: float) -> Any:
        """At P0: what P1 shows.

        Raises:
            MpcError: it showed nothing for that long, or something else.
        """
        try:
            shown, value = self._shares.get(timeout=seconds)
        except queue.Empty:
            raise MpcError(f"P1: ended: it showed nothing for {seconds:g} s") from None
        if shown != what:
            raise MpcError(f"P1: ended: it is at {shown}, P0 at {what}")
        return value
