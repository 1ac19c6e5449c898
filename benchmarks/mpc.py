"""`python -m benchmarks.mpc [--rounds N] [--only NAME] [--json FILE]`: products, functions, networks on shares.

The parties are three local processes that talk over Unix sockets, each with one thread for its arithmetic, and warm:
the first run is not counted. A run begins when the first party begins and ends when the last has its share of the
result. The dealer works while the servers do; nothing is dealt in advance. Weights of networks are secret too, and open
from the run that is not counted; inputs are fresh.

Only ours is measured. The goals are those that stand beside peers' figures of another run; to measure SecretFlow SPU
and CrypTen in the same run is still to be done, which is why this is no area of `python -m benchmarks` yet.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks import report
from benchmarks.mpc_networks import NETWORKS, Layer, in_float, on_shares, random_weights
from strongroom.mpc import (
    DEALER,
    P0,
    P1,
    Party,
    Shared,
    exp,
    gelu,
    join_unix,
    matmul,
    relu,
    softmax,
    truncate,
)
from strongroom.mpc.protocols.reveal import reveal, share

SIDE = 1024
ELEMENTS = 1_000_000


@dataclass(frozen=True)
class Workload:
    """A row of the table.

    Attributes:
        goal: seconds at most, and where that is from.
        error: from float64, at most; of a network, relative to its largest output.
        network: which one, where it is one; one image each.
    """

    name: str
    what: str
    goal: float
    source: str
    error: float
    network: str | None = None


WORKLOADS = (
    Workload("W1", f"{SIDE}^3 product and truncation", 0.59, "CrypTen's in another run", 2e-3),
    Workload("W2", f"ReLU on {ELEMENTS:,} elements", 0.25, "half of MP-SPDZ's with a dealer, in another run", 2e-3),
    Workload("A", "network A, one image", 0.006, "half of MP-SPDZ's with a dealer, in another run", 2e-3, "A"),
    Workload("B", "network B, one image", 0.030, "half of MP-SPDZ's with a dealer, in another run", 2e-3, "B"),
    Workload("softmax", "softmax of 1000 x 100", 0.335, "half of CrypTen's in another run", 2e-3),
    Workload("exp", "e^x of 100,000 elements", 0.034, "half of CrypTen's in another run", 2e-4),
    Workload("gelu", "GELU of 100,000 elements", 0.165, "half of CrypTen's in another run", 2e-3),
)


@dataclass
class Figures:
    """What one party measured of one workload, for each run; bytes and rounds are for one run."""

    began: list[float]
    ended: list[float]
    processor: list[float]
    rounds: int
    sent: int
    peak_mib: float
    error: float


class Task:
    """One workload's values, and what is computed of them."""

    def __init__(self, workload: Workload) -> None:
        rng = np.random.default_rng(1)
        self.weights: list[NDArray[np.float64]] = []
        self.layers: Sequence[Layer] = ()
        if workload.network:
            shape, self.layers = NETWORKS[workload.network]
            self.weights = random_weights(self.layers, rng)
            self.inputs = [rng.uniform(0, 1, (1, *shape))]
        else:
            self.inputs = {
                "W1": lambda: [rng.uniform(-1, 1, (SIDE, SIDE)) for _ in range(2)],
                "W2": lambda: [rng.uniform(-10, 10, ELEMENTS)],
                "softmax": lambda: [rng.normal(0, 2, (1000, 100))],
                "exp": lambda: [rng.uniform(-5, 2, 100_000)],
                "gelu": lambda: [rng.uniform(-5, 5, 100_000)],
            }[workload.name]()
        self.name = workload.name

    def on_shares(self, weights: Sequence[Shared], inputs: Sequence[Shared]) -> Shared:
        if self.layers:
            return on_shares(self.layers, weights, inputs[0])
        if self.name == "W1":
            return truncate(matmul(*inputs))
        return {"W2": relu, "softmax": softmax, "exp": exp, "gelu": gelu}[self.name](inputs[0])

    def error(self, result: NDArray[np.float64]) -> float:
        if self.layers:
            wanted = in_float(self.layers, self.weights, self.inputs[0])
            return float(np.abs(result - wanted).max() / np.abs(wanted).max())
        x, *more = map(torch.from_numpy, self.inputs)
        functions: dict[str, Callable[[], torch.Tensor]] = {
            "W1": lambda: x @ more[0],
            "W2": lambda: torch.relu(x),
            "softmax": lambda: torch.softmax(x, -1),
            "exp": lambda: torch.exp(x),
            "gelu": lambda: torch.nn.functional.gelu(x),
        }
        return float(np.abs(result - functions[self.name]().numpy()).max())


def party_main(rank: int, directory: Path, rounds: int, chosen: Sequence[Workload]) -> None:
    """One party's process: prints its figures as JSON."""
    torch.set_num_threads(1)
    with join_unix(rank, directory) as party:
        print(json.dumps({w.name: asdict(_measure(party, Task(w), rounds)) for w in chosen}))


def _measure(party: Party, task: Task, rounds: int) -> Figures:
    weights = [share(party, _given(value), source=P0, shape=value.shape) for value in task.weights]
    began, ended, processor = [], [], []
    for turn in range(rounds + 1):
        # Fresh values each time: an operand that is open already would cost less.
        inputs = [share(party, _given(value), source=i, shape=value.shape) for i, value in enumerate(task.inputs)]
        _meet(party)
        before = party.rounds, sum(peer.sent for peer in party.peers.values())
        start, start_cpu = time.monotonic(), time.process_time()
        result = task.on_shares(weights, inputs)
        if turn:
            began.append(start)
            ended.append(time.monotonic())
            processor.append(time.process_time() - start_cpu)
        cost = party.rounds - before[0], sum(peer.sent for peer in party.peers.values()) - before[1]
    opened = reveal(result, to=[P0])
    error = 0.0 if opened is None else task.error(opened)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return Figures(began, ended, processor, *cost, peak, error)


def _given(value: NDArray[np.float64]) -> Callable[[], NDArray[np.float64]]:
    return lambda: value


def _meet(party: Party) -> None:
    """Wait for all three, so that a run does not begin while somebody still ends the one before."""
    with party.operation("meet"):
        nothing = np.empty(0, np.uint8)
        for peer in party.peers.values():
            peer.exchange([nothing], [nothing])


def measure(rounds: int, chosen: Sequence[Workload]) -> dict[str, list[Figures]]:
    """Run the three processes; the figures of each workload, by rank."""
    with tempfile.TemporaryDirectory() as directory:  # mode 0700
        command = [sys.executable, "-m", "benchmarks.mpc", "--rounds", str(rounds), "--directory", directory]
        command += [part for w in chosen for part in ("--only", w.name)]
        children = [
            subprocess.Popen([*command, "--rank", str(rank)], stdout=subprocess.PIPE, text=True) for rank in range(3)
        ]
        printed = [child.communicate()[0] for child in children]
    if any(child.returncode for child in children):
        raise SystemExit("a party failed: see above")
    parsed = [json.loads(text) for text in printed]
    return {w.name: [Figures(**each[w.name]) for each in parsed] for w in chosen}


def summary(figures: Sequence[Figures]) -> dict[str, float]:
    """Medians over the runs, of what all parties measured."""
    seconds = [
        max(each.ended[i] for each in figures) - min(each.began[i] for each in figures)
        for i in range(len(figures[0].began))
    ]
    return {
        "seconds": statistics.median(seconds),
        **{
            f"processor {n}": statistics.median(figures[r].processor)
            for r, n in ((P0, "P0"), (P1, "P1"), (DEALER, "D"))
        },
        "rounds": figures[P0].rounds,
        "online bytes": figures[P0].sent,
        "dealer bytes": figures[DEALER].sent,
        "peak MiB": max(each.peak_mib for each in figures),
        "error": figures[P0].error,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print a table; the result is the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mpc", description="Measure computing on shares.")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="runs that count (5)")
    parser.add_argument("--only", action="append", choices=[w.name for w in WORKLOADS], help="measure that; repeatable")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure, and the machine")
    parser.add_argument("--rank", type=int, choices=range(3), help=argparse.SUPPRESS)
    parser.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.rounds < 1:
        parser.error("--rounds: wanted at least 1")
    chosen = [w for w in WORKLOADS if not args.only or w.name in args.only]
    if args.rank is not None:
        party_main(args.rank, args.directory, args.rounds, chosen)
        return 0

    measured = measure(args.rounds, chosen)
    results = {name: summary(figures) for name, figures in measured.items()}
    table = Table("", "ms", "goal", "processor ms: P0, P1, D", "rounds", "MB online, dealt", "error", "verdict")
    holds = True
    for w in chosen:
        got = results[w.name]
        ok = got["seconds"] <= w.goal and got["error"] <= w.error
        holds = holds and ok
        table.add_row(
            w.name,
            f"{1000 * got['seconds']:.1f}",
            f"{1000 * w.goal:g}",
            ", ".join(f"{1000 * got[f'processor {name}']:.1f}" for name in ("P0", "P1", "D")),
            f"{got['rounds']:.0f}",
            f"{got['online bytes'] / 1e6:.2f}, {got['dealer bytes'] / 1e6:.2f}",
            f"{got['error']:.1e}",
            "holds" if ok else "fails",
        )
    console = Console(highlight=False)
    console.print(table)
    facts = report.machine()
    console.print(f"on {facts['processor']}, {facts['cores']} cores, {facts['system']}", markup=False, style="dim")
    for w in chosen:
        console.print(f"{w.name}: {w.what}; goal from {w.source}", markup=False, style="dim")
    console.print("No peer was measured: the goals are constants from other runs.", style="dim")
    if args.json:
        rows = {w.name: {**asdict(w), **results[w.name]} for w in chosen}
        args.json.write_text(json.dumps({"machine": facts, "workloads": rows}, indent=2) + "\n")
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
