"""Shared integers for tests, a recorder, and exact reference arithmetic."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from strongroom.mpc.party import Party
from strongroom.mpc.shared import Shared


def integers(party: Party, values: np.ndarray, frac: int = 0) -> Shared:
    """Shares of integers, split by the stream that the dealer does not know."""
    words = np.asarray(values).astype(np.int64).view(np.uint64)
    if party.is_dealer:
        return Shared.of_shape(party, words.shape, frac)
    mask = party.stream(1 - party.rank).words(words.shape)
    return Shared(party, words - mask if party.first else mask, frac)


def opened(results: list[Any]) -> np.ndarray:
    """The integer whose shares P0 and P1 returned."""
    return (results[0].words + results[1].words).view(np.int64)


def random_integers(rng: np.random.Generator, count: int, low: int, high: int) -> np.ndarray:
    """`count` integers of [low, high], half of them within two of a power of two, an end or zero."""
    wide = rng.integers(low, high, count, dtype=np.int64, endpoint=True)
    powers = 1 << rng.integers(0, 63, count, dtype=np.int64)
    near = np.where(rng.random(count) < 0.5, powers, -powers) + rng.integers(-2, 3, count)
    ends = rng.choice(np.array([low, low + 1, high - 1, high, 0, 1, -1], np.int64), count)
    kind = rng.integers(0, 4, count)
    return np.where(kind == 0, np.clip(near, low, high), np.where(kind == 1, np.clip(ends, low, high), wide))


class Recorder:
    """What every party sent and drew."""

    def __init__(self) -> None:
        self.frames: list[tuple[int, int, bytes]] = []
        self.draws: list[tuple[int, str, int, int]] = []

    def sent(self, rank: int, to: int, payload: Any) -> None:
        self.frames.append((rank, to, b"".join(np.ascontiguousarray(part).tobytes() for part in payload)))

    def drew(self, rank: int, stream: str, start: int, stop: int) -> None:
        self.draws.append((rank, stream, start, stop))

    def bytes_between(self) -> Counter[tuple[int, int]]:
        total: Counter[tuple[int, int]] = Counter()
        for rank, to, payload in self.frames:
            total[rank, to] += len(payload)
        return total


Program = Callable[[Party], Any]
