"""A party that computes nothing, for the tests of `benchmarks.mpc_systems`; its variant says how it goes wrong."""

from __future__ import annotations

import signal
import sys

import numpy as np

from benchmarks.mpc_peers.serve import Arguments, Talk, arguments
from benchmarks.mpc_peers.workloads import Floats, Turn


class Fake:
    def __init__(self, given: Arguments) -> None:
        self._given, self._runs = given, 0

    def run(self) -> Turn:
        self._runs += 1
        if self._given.variant == "fails" and self._runs == 3:
            sys.exit("it had enough")
        if self._given.variant == "hangs":
            signal.pause()
        # Rank 1 begins and ends later than rank 0.
        began = 10.0 + self._given.rank
        return Turn(began, began + self._runs, 0.5, 100 + self._given.rank, 7)

    def opened(self) -> Floats | None:
        return np.full(3, 1.25) if self._given.rank == 0 else None


def main() -> None:
    talk, given = Talk(), arguments()
    print("a library says something")
    talk.serve(Fake(given), given.directory)


if __name__ == "__main__":
    main()
