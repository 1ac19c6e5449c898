"""Products, functions and networks on shares, beside SecretFlow SPU and CrypTen in the same run.

- Each party is a process on this machine, warm: two runs are not counted. In each round all systems take a turn, of
  0.3 s or one run; large networks run one system after another. A run begins when the first party begins and ends when
  the last has its share of the result: sharing inputs and opening results are outside. Our dealer works within it.
- Weights are secret from both servers, everywhere. Ours are opened behind their masks once, by the run that is not
  counted. Ours meet at Unix sockets, the peers over TCP on loopback; lines beside say what TLS costs, and what is
  saved where one server has the weights in the clear.
- SPU runs its semi2k (two parties; the first makes the correlations) and ABY3 (three), CrypTen its two providers of
  triples: by the first party, as it comes, and by a third. `mpc_peers` has every setting.
- What a peer's own count of bytes leaves out (CrypTen's third party) is left out here. Rounds are exchanges between our
  servers, messages of SPU's first party, collectives of CrypTen's.

`python -m benchmarks.mpc` measures single rows and systems, and prints all of this; `python -m benchmarks mpc` decides
the goals.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import peers, report
from benchmarks.harness import Bench, Goal
from benchmarks.mpc_modules import error_of, in_float
from benchmarks.mpc_peers.workloads import ROWS, Row
from benchmarks.mpc_systems import OURS, OURS_OWNED, OURS_TLS, PEERS, Contest, Measured, Plan, System

Results = Mapping[System, Measured]

# Milliseconds at most, whatever the peers need: half of what MP-SPDZ with a dealer needs on a machine of this kind.
ABSOLUTE = {"A batch 1": 6.0, "B batch 1": 30.0, "W2": 250.0, "ResNet-20": 330.0}
BESIDE = ("A batch 1", "B batch 1", "ResNet-20")  # measured with TLS and with owned weights too
ERRORS = "rows with an error beyond its limit"


def ratio_name(row: str) -> str:
    return f"{row} / fastest peer"


def _ratio(row: str) -> float:
    return 1.0 if row == "W1" else 0.5


GOALS: Sequence[Goal] = (
    *(Goal(row, wanted, "ms", "at most") for row, wanted in ABSOLUTE.items()),
    *(Goal(ratio_name(row), _ratio(row), "x", "at most", full_only=True) for row in ROWS),
    Goal(ERRORS, 0, "rows", "at most"),
)


def measure(bench: Bench) -> None:
    """Measure every goal that `bench` wants."""
    everything: dict[str, Results] = {}
    for row in ROWS.values():
        compared = bench.wants(ratio_name(row.name))
        absolute = row.name in ABSOLUTE and bench.wants(row.name)
        if not compared and not absolute:
            continue
        chosen = [OURS]
        if compared:
            chosen += [*((OURS_TLS, OURS_OWNED) if row.name in BESIDE else ()), *PEERS.values()]
        pythons = {
            system: bench.peer_environment(system.environment, system.requirements)
            if system.requirements
            else Path(sys.executable)
            for system in chosen
        }
        everything[row.name] = results = contest(row, pythons, Plan(rounds=3 if bench.quick else 7))
        ours = results[OURS]
        if ours.trouble:
            raise RuntimeError(f"{row.name}: {ours.trouble}")
        if absolute:
            bench.record(row.name, *(1000 * each for each in ours.seconds))
        peer = fastest(results) if compared else None
        if peer is not None:
            theirs = results[peer].seconds
            left, right = iter(ours.seconds), iter(theirs)
            bench.compare(
                ratio_name(row.name),
                lambda left=left: next(left),  # type: ignore[misc]
                lambda right=right: next(right),  # type: ignore[misc]
                peer_name=peer.name,
                unit="s",
                rounds=min(len(ours.seconds), len(theirs)),
                warmup=0,
            )
    if everything and bench.wants(ERRORS):
        beyond = [name for name, results in everything.items() if not _precise(ROWS[name], results[OURS])]
        bench.record(ERRORS, len(beyond))
    if not bench.quick and everything:
        _console().print(table(everything))
    if bench.plots and everything:
        plot(everything, bench.plots / "mpc-peers.png")


def contest(row: Row, pythons: Mapping[System, Path], plan: Plan) -> Results:
    """One row by every system that has an interpreter."""
    wanted = in_float(row)
    return Contest(row, pythons, plan, lambda result: error_of(row, wanted, result)).measure()


def fastest(results: Results) -> System | None:
    """The peer with the lowest median."""
    medians = {s: statistics.median(m.seconds) for s, m in results.items() if s.requirements and m.seconds}
    return min(medians, key=medians.__getitem__, default=None)


def _precise(row: Row, ours: Measured) -> bool:
    return ours.error is not None and ours.error <= row.error


def ratio(results: Results, peer: System) -> float:
    """Ours / the peer's: the median of the rounds'."""
    pairs = zip(results[OURS].seconds, results[peer].seconds, strict=False)
    return statistics.median(a / b for a, b in pairs)


def holds(row: Row, results: Results) -> bool:
    """Whether a row's goals hold, of those that were measured."""
    ours, peer = results[OURS], fastest(results)
    if ours.trouble or not ours.seconds or not _precise(row, ours):
        return False
    within = 1000 * statistics.median(ours.seconds) <= ABSOLUTE.get(row.name, float("inf"))
    return within and (peer is None or ratio(results, peer) <= _ratio(row.name))


def table(everything: Mapping[str, Results]) -> Table:
    """A line for each system on each row."""
    grid = Table("", "", "ms", "/ ours", "processor ms", "MB sent", "rounds", "peak MiB", "error", "")
    for name, results in everything.items():
        row = ROWS[name]
        for system, m in results.items():
            verdict = ("holds" if holds(row, results) else "fails") if system is OURS else ""
            if not m.seconds:
                grid.add_row(name, system.name, "", "", "", "", "", "", "", m.trouble or "")
                continue
            times = f"{ratio(results, system) ** -1:.2f} x" if system is not OURS and results[OURS].seconds else ""
            processor = [statistics.median(each) for each in zip(*m.processor, strict=True)]
            grid.add_row(
                name if system is OURS else "",
                system.name,
                f"{1000 * statistics.median(m.seconds):,.1f}" + (" (once)" if m.single else ""),
                times,
                " ".join(f"{1000 * each:.0f}" for each in processor),
                " ".join("?" if each is None else f"{each / 1e6:.2f}" for each in m.sent),
                "" if m.rounds is None else str(m.rounds),
                " ".join(f"{each:.0f}" for each in m.peaks_mib),
                "" if m.error is None else f"{m.error:.1e}",
                m.trouble or verdict,
            )
        grid.add_section()
    return grid


def _console() -> Console:
    """At least as wide as the table."""
    console = Console(highlight=False)
    console.width = max(console.width, 140)
    return console


def plot(everything: Mapping[str, Results], file: Path) -> None:
    """How many times as long as ours each peer takes, by row."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 0.5 * len(everything) + 2), layout="constrained")
    axes = figure.subplots()
    systems = [peer for peer in PEERS.values() if any(peer in results for results in everything.values())]
    height = 0.8 / max(len(systems), 1)
    for i, peer in enumerate(systems):
        at = [
            (j, 1 / ratio(results, peer))
            for j, results in enumerate(everything.values())
            if peer in results and results[peer].seconds and results[OURS].seconds
        ]
        bars = axes.barh([j + (i + 0.5) * height - 0.4 for j, _ in at], [x for _, x in at], height, label=peer.name)
        axes.bar_label(bars, fmt="%.1f", fontsize=6, padding=2)
    axes.axvline(1, color="black", linewidth=1)
    axes.axvline(2, color="black", linewidth=0.5, linestyle="dashed")
    axes.set_xscale("log")
    axes.set_yticks(range(len(everything)), list(everything))
    axes.invert_yaxis()
    axes.set_xlabel("times as long as Strongroom")
    axes.legend(fontsize=7)
    figure.savefig(file, dpi=150)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print a table; the result is the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mpc", description="Measure computing on shares.")
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="runs that count (7)")
    parser.add_argument("--only", action="append", choices=list(ROWS), metavar="ROW", help=f"of {', '.join(ROWS)}")
    parser.add_argument(
        "--peers", default=",".join(PEERS), metavar="NAMES", help=f"none, or some of {', '.join(PEERS)} (all)"
    )
    parser.add_argument("--limit", type=float, default=300, metavar="SECONDS", help="for one run (300)")
    parser.add_argument(
        "--patience", type=float, default=60, metavar="SECONDS", help="who needs more for a first run runs once (60)"
    )
    parser.add_argument("--quick", action="store_true", help="the rows with goals of their own, without peers")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure, and the machine")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw how far behind the peers are")
    args = parser.parse_args(argv)
    names = [] if args.quick or args.peers == "none" else args.peers.split(",")
    if args.rounds < 1:
        parser.error("--rounds: wanted at least 1")
    if unknown := set(names) - set(PEERS):
        parser.error(f"--peers: got {', '.join(sorted(unknown))}, wanted some of {', '.join(PEERS)}")
    console = _console()
    pythons = {}
    for peer in map(PEERS.__getitem__, names):
        console.print(f"environment of {peer.name}", markup=False, style="dim")
        pythons[peer] = peers.environment(peer.environment, peer.requirements)
    facts = report.machine()
    everything: dict[str, Results] = {}
    for row in ROWS.values():
        if (args.only and row.name not in args.only) or (args.quick and row.name not in ABSOLUTE):
            continue
        chosen = [OURS, *((OURS_TLS, OURS_OWNED) if row.name in BESIDE and not args.quick else ())]
        systems = {**dict.fromkeys(chosen, Path(sys.executable)), **pythons}
        console.print(f"measuring {row.name}: {row.what}", markup=False, style="dim")
        everything[row.name] = contest(row, systems, Plan(rounds=args.rounds, patience=args.patience, limit=args.limit))
        if args.json:  # after every row: the later ones take long
            args.json.write_text(json.dumps({"machine": facts, "rows": _document(everything)}, indent=2) + "\n")
    console.print(table(everything))
    console.print(f"on {facts['processor']}, {facts['cores']} cores, {facts['system']}", markup=False, style="dim")
    console.print(f"goals: {_goals()}", markup=False, style="dim")
    if args.plot:
        plot(everything, args.plot)
    return 0 if all(holds(ROWS[name], results) for name, results in everything.items()) else 1


def _goals() -> str:
    absolute = ", ".join(f"{row} {wanted:g} ms" for row, wanted in ABSOLUTE.items())
    return f"no slower than the fastest peer in W1, twice as fast elsewhere; {absolute}; errors of 2e-3, exp 2e-4"


def _document(everything: Mapping[str, Results]) -> dict[str, dict[str, object]]:
    return {
        name: {
            "what": ROWS[name].what,
            "holds": holds(ROWS[name], results),
            "systems": {system.name: asdict(m) for system, m in results.items()},
        }
        for name, results in everything.items()
    }


if __name__ == "__main__":
    sys.exit(main())
