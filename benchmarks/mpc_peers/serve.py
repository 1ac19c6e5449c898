"""A party's half of the talk with `benchmarks.mpc_systems`: JSON lines on the standard streams. Needs NumPy alone.

- The party prints ``{"ready": "asked"}``, or another word if it only serves the others.
- It answers each line ``run`` with its `Turn`.
- It answers ``finish`` with its peak memory, after it wrote the opened result, if it has one, as ``result.npy`` into
  the run's directory. One that only serves says its peak when it ends.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

import numpy as np

from benchmarks.mpc_peers.workloads import ROWS, Floats, Row, Turn


class Side(Protocol):
    """One party that has met the others and holds a row's values."""

    def run(self) -> Turn:
        """Once, on fresh shares of the inputs."""

    def opened(self) -> Floats | None:
        """The last run's result, at one party."""


class Arguments(argparse.Namespace):
    """What every party's command line has.

    Attributes:
        directory: of this run, empty when it begins, and this user's alone.
        host, port: where the parties find one another, by rank.
    """

    row: Row
    rank: int
    directory: Path
    host: list[str]
    port: list[int]
    variant: str


def arguments() -> Arguments:
    parser = argparse.ArgumentParser()
    parser.add_argument("--row", type=lambda name: ROWS[name])
    parser.add_argument("--rank", type=int)
    parser.add_argument("--directory", type=Path)
    parser.add_argument("--host", action="append", default=[])
    parser.add_argument("--port", action="append", type=int, default=[])
    parser.add_argument("--variant", default="")
    return parser.parse_args(namespace=Arguments())


class Talk:
    """The standard streams, kept from libraries that print."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def say(self, **facts: object) -> None:
        print(json.dumps(facts), file=self._out, flush=True)

    def serve(self, side: Side, directory: Path) -> None:
        self.say(ready="asked")
        for line in sys.stdin:
            if line.strip() != "run":
                break
            self.say(**asdict(side.run()))
        result = side.opened()
        if result is not None:
            np.save(directory / "result.npy", result)
        self.say_peak()

    def say_peak(self) -> None:
        self.say(peak_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
