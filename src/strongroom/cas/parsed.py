"""Documents that were parsed lately, so many that their texts together stay small: parsed, each is far larger.

Callers may be many strangers with a document of the largest size each, so that a number of documents bounds nothing.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

LIMIT = 1 << 22
"""Of the sizes together: 16 policies of the largest size, or thousands of usual ones."""

S = TypeVar("S")
T = TypeVar("T")


class Parsed(Generic[S, T]):
    """A function whose latest results are kept.

    Args:
        parse: gives the same for the same text.
        size: of a text and what it gave.
    """

    def __init__(self, parse: Callable[[S], T], *, size: Callable[[S, T], int], limit: int = LIMIT) -> None:
        self._parse, self._size, self._limit = parse, size, limit
        self._kept: OrderedDict[S, T] = OrderedDict()
        self._total = 0
        self._lock = threading.Lock()

    def __call__(self, text: S) -> T:
        with self._lock:
            if text in self._kept:
                self._kept.move_to_end(text)
                return self._kept[text]
        value = self._parse(text)
        with self._lock:
            if text not in self._kept:
                self._kept[text] = value
                self._total += self._size(text, value)
            while self._total > self._limit:
                self._total -= self._size(*self._kept.popitem(last=False))
        return value
