"""`strongroom spot`: training on spot instances, and what a mirror saves there."""

from __future__ import annotations

import argparse
import importlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from strongroom.cli import output
from strongroom.cli.parser import add_debug
from strongroom.errors import UsageError, printable

if TYPE_CHECKING:
    from strongroom.mirror.spot import Job, Outcome, Saving, Trace

# What each action is, the module that does it, and an example.
ACTIONS: Final = {
    "simulate": (
        "simulate a training job along a trace of spot prices, with and without a mirror",
        "verb",
        "strongroom spot simulate --trace prices.csv --bid 0.0955 --steps 2000000 --best",
    ),
    "run": (
        "really kill and restart a training along a trace, its time compressed, and show its loss curve",
        "run",
        "strongroom spot run --trace prices.csv --bid 0.0955 --speed 600 -- python train.py",
    ),
}

_BIDS, _INTERVALS = 30, 10


def configure(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, (summary, _, example) in ACTIONS.items():
        action = actions.add_parser(
            name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.", epilog=f"Example: {example}"
        )
        add_debug(action)
        output.add_json(action)
        _ARGUMENTS[name](action)


def run(args: argparse.Namespace) -> int:
    module = importlib.import_module(f"strongroom.cli.spot.{ACTIONS[args.action][1]}")
    status: int = getattr(module, args.action)(args)
    return status


def _market(parser: argparse.ArgumentParser) -> None:
    market = parser.add_argument_group("market")
    market.add_argument(
        "--trace", type=Path, required=True, metavar="FILE",
        help="CSV of price, or of time and price, or of time and available (0 or 1); or what "
        "`aws ec2 describe-spot-price-history` prints",
    )  # fmt: skip
    market.add_argument("--bid", type=float, metavar="USD", help="the most to be paid an hour (default: any price)")
    market.add_argument(
        "--interval", type=float, default=1.0, metavar="MINUTES", help="that a row without a time holds (default: 1)"
    )
    market.add_argument(
        "--start", type=float, default=0.0, metavar="HOURS", help="where in the trace the job starts (default: 0)"
    )
    market.add_argument(
        "--price", type=float, default=0.0, metavar="USD", help="an hour, where the trace has none (default: 0)"
    )
    market.add_argument("--zone", metavar="NAME", help="of a trace from AWS this availability zone only")
    market.add_argument("--instance", metavar="TYPE", help="of a trace from AWS this instance type only")
    market.add_argument("--product", metavar="NAME", help="of a trace from AWS this product only")
    market.add_argument(
        "--first-hour-free", action="store_true", help="an instance taken away in its first hour costs nothing (EC2)"
    )


def _simulate(parser: argparse.ArgumentParser) -> None:
    _market(parser)
    job = parser.add_argument_group("job and mirror")
    job.add_argument("--steps", type=int, default=100_000, metavar="N", help="of training (default: 100,000)")
    job.add_argument("--step-seconds", type=float, default=1.0, metavar="S", help="for a step (default: 1)")
    job.add_argument("--boot-seconds", type=float, default=60.0, metavar="S", help="for each start (default: 60)")
    job.add_argument("--commit-seconds", type=float, default=0.1, metavar="S", help="stall of a commit (default: 0.1)")
    job.add_argument("--restore-seconds", type=float, default=1.0, metavar="S", help="for a restore (default: 1)")
    job.add_argument(
        "--every", type=int, metavar="K", help="steps between commits (default: Daly's interval for the trace and bid)"
    )
    choice = parser.add_argument_group("choice of bid and interval")
    choice.add_argument("--best", action="store_true", help="try pairs of both, and show the cheapest")
    choice.add_argument("--deadline", type=float, metavar="HOURS", help="the cheapest that ends in time")
    choice.add_argument("--budget", type=float, metavar="USD", help="the fastest that costs no more")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw it (needs strongroom[plot])")


def _run(parser: argparse.ArgumentParser) -> None:
    parser.usage = "strongroom spot run --trace FILE [OPTIONS] -- COMMAND ..."
    _market(parser)
    pace = parser.add_argument_group("pace")
    pace.add_argument(
        "--speed", type=float, default=600.0, metavar="N",
        help="seconds of the trace in one of real time (default: 600, so that an hour takes 6 seconds)",
    )  # fmt: skip
    pace.add_argument("--skip-waiting", action="store_true", help="leap over the time without an instance")
    pace.add_argument(
        "--boot-seconds", type=float, default=0.0, metavar="S",
        help="of the trace, from an instance's start until the command's (default: 0)",
    )  # fmt: skip
    pace.add_argument(
        "--notice", type=float, default=0.0, metavar="S",
        help="seconds of the trace that SIGTERM comes before SIGKILL (EC2: 120; default: 0, no SIGTERM)",
    )  # fmt: skip
    pace.add_argument("--limit", type=float, default=math.inf, metavar="S", help="give up after so many real seconds")
    shown = parser.add_argument_group("what is shown")
    shown.add_argument(
        "--loss", metavar="REGEX",
        help="two groups, step and loss, in what the command prints (default: finds 'step 12 ... loss 0.345')",
    )  # fmt: skip
    shown.add_argument("--mirror", type=Path, metavar="RUN.mirror", help="say how far it had got at each interruption")
    shown.add_argument("--log", type=Path, metavar="FILE", help="append the command's output here (default: shown dim)")
    shown.add_argument("--plot", type=Path, metavar="FILE.png", help="draw it (needs strongroom[plot])")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND", help="the program and its arguments")


_ARGUMENTS: Final = {"simulate": _simulate, "run": _run}


def simulate(args: argparse.Namespace) -> int:
    """Read, compute, draw, print; in that order, so that what fails prints nothing else."""
    from strongroom.mirror import spot
    from strongroom.mirror.spot import plot

    check_plot(args.plot)
    for name in ("deadline", "budget"):
        value = getattr(args, name)
        if value is not None and not 0 < value < math.inf:
            raise UsageError(f"{name}: {value:g}, wanted more than 0")
    trace = read_trace(args)
    job = spot.Job(args.steps, args.step_seconds, args.boot_seconds)
    mirror = spot.Saving(1, args.commit_seconds, args.restore_seconds)
    daly = spot.daly_steps(trace, args.bid, job, mirror)
    mirror = spot.Saving(daly if args.every is None else args.every, args.commit_seconds, args.restore_seconds)
    without, mirrored, each = spot.compare(trace, args.bid, job, mirror, first_hour_free=args.first_hour_free)
    ways = {"without mirror": without, "every step": each, "mirror": mirrored}
    if args.best or args.deadline is not None or args.budget is not None:
        ways["best"] = _best(args, trace, job, mirror, daly)
    shown = {"mirror": mirrored, "without": without} | ({"best": ways["best"]} if "best" in ways else {})
    if args.plot is not None:
        args.plot.write_bytes(plot.png(trace, shown, title=f"{args.trace.name}: {job.steps:,} steps"))
    if args.json:
        output.result(
            {
                "trace": trace_facts(trace, args.bid),
                "job": {"steps": job.steps, "step_seconds": job.step_seconds, "boot_seconds": job.boot_seconds},
                "mirror": {"commit_seconds": mirror.commit_seconds, "restore_seconds": mirror.restore_seconds},
                "daly_every": daly,
                "ways": {name.replace(" ", "_"): _facts(way) for name, way in ways.items()},
            }
        )
        return 0
    for line in _describe(trace, args, daly):
        show(line)
    show("")
    for line in _table(ways, paid=bool(trace.prices.any())):
        show(line)
    show("")
    show(plot.text(trace, shown))
    if args.plot is not None:
        output.note(f"drawn in {args.plot}")
    return 0


def check_plot(path: Path | None) -> None:
    """Refuse a picture that could not be drawn in the end, before anything is done."""
    from strongroom.mirror.spot import plot

    if path is not None:
        if path.suffix.lower() != ".png":
            raise UsageError(f"plot: {path.name}, wanted a name that ends in .png")
        plot.check_matplotlib()


def read_trace(args: argparse.Namespace) -> Trace:
    """The trace that the arguments name, from where the job starts in it."""
    from strongroom.mirror import spot

    whole = spot.read(
        args.trace, interval=args.interval * 60, price=args.price, zone=args.zone, instance=args.instance,
        product=args.product,
    )  # fmt: skip
    return whole.since(args.start * 3600) if args.start else whole


def _best(args: argparse.Namespace, trace: Trace, job: Job, mirror: Saving, daly: int) -> Outcome:
    from strongroom.mirror import spot

    bids: list[float | None] = [None]
    if len(trace.bids(_BIDS)) > 1:  # else the price is always the same, and no bid is better than another
        bids = [*sorted({*trace.bids(_BIDS), *([] if args.bid is None else [args.bid])})]
    tried = spot.sweep(
        trace, job, mirror, bids, _intervals(daly, mirror.every, job.steps),
        first_hour_free=args.first_hour_free,
    )  # fmt: skip
    deadline = None if args.deadline is None else args.deadline * 3600
    bid, every = spot.best(tried, deadline=deadline, budget=args.budget)
    chosen = spot.Saving(every, mirror.commit_seconds, mirror.restore_seconds)
    return spot.simulate(trace, bid, job, chosen, first_hour_free=args.first_hour_free)


def _intervals(daly: int, every: int, steps: int) -> list[int]:
    """Every step, what was asked for, and the neighbourhood of Daly's interval in factors of two."""
    near = [round(daly * 2.0**power) for power in range(2 - _INTERVALS // 2, _INTERVALS - _INTERVALS // 2 - 1)]
    return sorted({min(max(1, one), steps) for one in [1, every, *near]})


def _describe(trace: Trace, args: argparse.Namespace, daly: int) -> list[str]:
    return [*describe_trace(trace, args), f"Daly's interval for that is {daly:,} steps"]


def describe_trace(trace: Trace, args: argparse.Namespace) -> list[str]:
    """What a reader is told of it first."""
    facts = trace_facts(trace, args.bid)
    bid = "any price" if args.bid is None else f"a bid of {args.bid:g} USD an hour"
    prices = f"{facts['lowest_price']:g} to {facts['highest_price']:g} USD an hour"
    if not trace.prices.any():
        prices = "no price known (--price says one)"
    return [
        f"{printable(args.trace.name)}: {facts['rows']:,} rows, {hours(trace.seconds)} hours, {prices}",
        f"at {bid} an instance runs {facts['share']:.1%} of the time, "
        f"with {facts['interruptions']:,} interruption{'' if facts['interruptions'] == 1 else 's'} in the whole trace",
    ]


def trace_facts(trace: Trace, bid: float | None) -> dict[str, Any]:
    """What `--json` says of a trace."""
    return {
        "rows": len(trace.prices),
        "seconds": trace.seconds,
        "lowest_price": float(trace.prices.min()),
        "highest_price": float(trace.prices.max()),
        "share": trace.share(bid),
        "interruptions": trace.interruptions(bid),
    }


def _facts(way: Outcome) -> dict[str, Any]:
    return {
        "bid": way.bid,
        "every": way.every,
        "finished": way.finished,
        "steps": way.steps,
        "starts": way.starts,
        "interruptions": way.interruptions,
        "wall_seconds": way.wall_seconds,
        "waiting_seconds": way.waiting_seconds,
        "starting_seconds": way.starting_seconds,
        "useful_seconds": way.useful_seconds,
        "lost_seconds": way.lost_seconds,
        "stall_seconds": way.stall_seconds,
        "cost_usd": way.cost,
    }


def _table(ways: dict[str, Outcome], *, paid: bool) -> list[str]:
    """A column for each way; 80 characters with four of them."""
    done = list(ways.values())
    rows: list[tuple[str, Sequence[str]]] = [
        ("", list(ways)),
        ("bid (USD an hour)", ["any" if way.bid is None else f"{way.bid:g}" for way in done]),
        ("commit every (steps)", ["-" if way.every is None else f"{way.every:,}" for way in done]),
        ("job done", ["yes" if way.finished else f"no: {_percent(way)}" for way in done]),
        ("interruptions", [f"{way.interruptions:,}" for way in done]),
        ("cost (USD)", [f"{way.cost:,.2f}" if paid else "-" for way in done]),
        ("time (hours)", [hours(way.wall_seconds) for way in done]),
        ("  without instance", [hours(way.waiting_seconds) for way in done]),
        ("  starting", [hours(way.starting_seconds) for way in done]),
        ("  work that counts", [hours(way.useful_seconds) for way in done]),
        ("  work lost", [hours(way.lost_seconds) for way in done]),
        ("  stalled by commits", [hours(way.stall_seconds) for way in done]),
    ]
    return [f"{label:<20}" + "".join(f"{cell:>15}" for cell in cells) for label, cells in rows]


def _percent(way: Outcome) -> str:
    # Cut, not rounded: 100 % is what is done.
    return f"{math.floor(1000 * way.steps / way.job.steps) / 10:g} %"


def hours(seconds: float) -> str:
    return f"{seconds / 3600:,.2f}"


def show(text: str) -> None:
    output.stdout.print(text, markup=False, emoji=False, soft_wrap=True)  # a plot has ":o:" in it
