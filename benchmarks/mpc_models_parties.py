"""Three local processes that run a program on secrets, and what it cost them.

- The parties talk over Unix sockets, each with one thread for its arithmetic. The dealer works while the servers do;
  nothing is dealt in advance.
- A program is a function of a module, called in each party's world with the same arguments. It marks its runs with the
  `Meter` it is given: a run begins when the first party begins and ends when the last one ends.
- What a program returns at P0 is arrays by name; they come back as a file of data.
"""

from __future__ import annotations

import argparse
import importlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from strongroom import mpc
from strongroom.mpc import Party, Settings

# The default ones; on a busy machine, a party may wait for another's long product.
SETTINGS = Settings(seconds=300)
Arrays = Mapping[str, NDArray[Any]]
Program = Callable[..., Arrays | None]


@dataclass
class Run:
    """One run, at one party: when, on the clock that all processes of a machine share; what it sent to the others."""

    name: str
    began: float
    ended: float
    rounds: int
    sent: int


@dataclass
class Meter:
    """What a party measures of a program's runs."""

    party: Party
    runs: list[Run] = field(default_factory=list)

    @contextmanager
    def run(self, name: str) -> Iterator[None]:
        """Begin together, and note what happens within."""
        self._meet()
        rounds, sent, began = self.party.rounds, self._sent(), time.monotonic()
        yield
        self.runs.append(Run(name, began, time.monotonic(), self.party.rounds - rounds, self._sent() - sent))

    def _sent(self) -> int:
        return sum(peer.sent for peer in self.party.peers.values())

    def _meet(self) -> None:
        with self.party.operation("meet"):
            nothing = np.empty(0, np.uint8)
            for peer in self.party.peers.values():
                peer.exchange([nothing], [nothing])


@dataclass(frozen=True)
class Cost:
    """One run, of all parties: seconds, rounds between the servers, bytes that P0 and the dealer sent."""

    name: str
    seconds: float
    rounds: int
    online: int
    dealt: int


@dataclass(frozen=True)
class Outcome:
    """What came of a program.

    Attributes:
        arrays: what it returned at P0.
        costs: of each run, in order.
        peak_mib: the most memory that one of the parties took.
    """

    arrays: Arrays
    costs: list[Cost]
    peak_mib: float

    def of(self, name: str, *, skip: int = 0) -> list[Cost]:
        """The costs of the runs of this name, but for the first ones."""
        return [cost for cost in self.costs if cost.name == name][skip:]

    def median(self, name: str, *, skip: int = 1) -> Cost:
        """Of the runs of this name: the one whose time is the median's, the first not counted."""
        ordered = sorted(self.of(name, skip=skip), key=lambda cost: cost.seconds)
        return ordered[(len(ordered) - 1) // 2]


class PartyFailedError(Exception):
    """A party's process ended with an error, which it printed."""


def run_parties(program: Program, settings: Settings | None = None, **arguments: object) -> Outcome:
    """Run a module's function as all three parties.

    Args:
        program: called as `program(meter, **arguments)`.
        arguments: what JSON can hold.

    Raises:
        PartyFailedError: one of them ended with an error.
    """
    task = {
        "program": f"{program.__module__}:{program.__name__}",
        "settings": asdict(settings or SETTINGS),
        "arguments": arguments,
    }
    with tempfile.TemporaryDirectory() as name:  # mode 0700
        directory = Path(name)
        (directory / "task.json").write_text(json.dumps(task))
        command = [sys.executable, "-m", __name__, str(directory)]
        with ExitStack() as stack:
            children = []
            for rank in range(3):
                said = stack.enter_context((directory / f"{rank}.err").open("w"))
                child = subprocess.Popen([*command, str(rank)], stdin=subprocess.DEVNULL, stdout=said, stderr=said)
                stack.callback(child.kill)
                children.append(child)
            statuses = [child.wait() for child in children]
        if any(statuses):
            said_by = [(directory / f"{rank}.err").read_text() for rank in range(3) if statuses[rank]]
            raise PartyFailedError("\n".join(said_by))
        noted = [json.loads((directory / f"{rank}.json").read_text()) for rank in range(3)]
        with np.load(directory / "result.npz", allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    runs = [[Run(**run) for run in each["runs"]] for each in noted]
    costs = [
        Cost(
            at_p0.name,
            max(at_p0.ended, at_p1.ended, at_dealer.ended) - min(at_p0.began, at_p1.began, at_dealer.began),
            at_p0.rounds,
            at_p0.sent,
            at_dealer.sent,
        )
        for at_p0, at_p1, at_dealer in zip(*runs, strict=True)
    ]
    return Outcome(arrays, costs, max(each["peak_mib"] for each in noted))


def main() -> None:
    """One party's process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("rank", type=int)
    args = parser.parse_args()
    task = json.loads((args.directory / "task.json").read_text())
    module, _, name = task["program"].partition(":")
    program: Program = getattr(importlib.import_module(module), name)
    torch.set_num_threads(1)
    with mpc.join_unix(args.rank, args.directory, Settings(**task["settings"])) as party, mpc.World(party):
        meter = Meter(party)
        with torch.inference_mode():
            arrays = program(meter, **task["arguments"])
    if args.rank == mpc.P0:
        kept: dict[str, Any] = dict(arrays or {})
        np.savez(args.directory / "result.npz", **kept)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    noted = {"runs": [asdict(run) for run in meter.runs], "peak_mib": peak}
    (args.directory / f"{args.rank}.json").write_text(json.dumps(noted))


if __name__ == "__main__":
    main()
