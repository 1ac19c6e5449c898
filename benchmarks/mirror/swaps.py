"""Swaps per second: transactions on a persistent array, the test that Plinius took from Romulus."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np

from benchmarks.mirror.ways import KEY
from strongroom.sealed import FileAnchor


@dataclass(frozen=True)
class Swaps:
    """What one way to commit them reached.

    Attributes:
        each: swaps in a commit.
        rate: swaps per second.
    """

    place: str
    durability: str
    each: int
    rate: float


SIZE: Final = 10 << 20  # bytes of the array
EACH: Final = (1, 8, 64, 512, 4096)


def swaps(places: Mapping[str, Path]) -> Iterator[Swaps]:
    """Random swaps of numbers in an array, some in each commit; delta commits of blocks of 4 KiB; a second for each."""
    from strongroom import mirror

    choices: tuple[tuple[str, Literal["process", "power"]], ...] = (
        ("tmpfs", "process"),
        ("disk", "process"),
        ("disk", "power"),
    )
    for place, durability in choices:
        folder = places[place] / f"swaps-{durability}"
        folder.mkdir()
        array = np.arange(SIZE // 8, dtype=np.int64)
        numbers, rng = array.data, random.Random(1)  # noqa: S311  # the same swaps each time
        anchor = FileAnchor(folder / "anchor")
        with mirror.open(
            folder / "mirror", key=KEY, anchor=anchor, delta=True, durability=durability, block_size=4096, keep=1
        ) as opened:
            opened.commit(0, {"array": array})
            step = 0
            for each in EACH:
                pairs = [(rng.randrange(len(array)), rng.randrange(len(array))) for _ in range(each)]
                began, done = time.perf_counter(), 0
                while time.perf_counter() - began < 1:
                    step += 1
                    for i, j in pairs:
                        numbers[i], numbers[j] = numbers[j], numbers[i]
                    opened.commit(step, {"array": array})
                    done += each
                yield Swaps(place, durability, each, done / (time.perf_counter() - began))
