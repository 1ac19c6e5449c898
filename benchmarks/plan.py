"""The planner: how fast, how good, and how near what it predicts is to what is measured.

- Fast: chains of 1,000 units, for both objectives, with and without paging, with few and with many enclaves; the
  slowest counts.
- Good: random chains of up to 12 units against every plan there is (`benchmarks.plan_search`); plans that are worse, or
  that take more enclaves or stages for the same, count.
- Near: networks are profiled, planned for 94 MiB or, where they fit, for throughput, and the plan's stages loaded and
  run, one after another on one thread. Latency is the sum of their times beside the sum predicted; memory is each
  stage's beside its own prediction. The whole run uses the networks of Temper's evaluation that Keras has; a quick one
  six convolutions.
- One process with little memory, in a run of everything that may make control groups and swap: the network in 94 MiB
  beyond what the process held before. What paging costs changes with what else the disk does, so that this is told and
  decides nothing.
"""

from __future__ import annotations

import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.harness import Bench, Goal
from benchmarks.plan_models import SIZES
from benchmarks.plan_search import rank, search
from strongroom.errors import StrongroomError
from strongroom.serve.plan.costs import Costs, Enclaves, Transfer
from strongroom.serve.plan.paging import Paging
from strongroom.serve.plan.planner import solve
from strongroom.serve.plan.solution import Ask, Objective, Solution

SECONDS = "1,000 units, the slowest of 12 plans"
WORSE = "plans unlike exhaustive search"
LATENCY = "predicted latency, off by at most"
MEMORY = "predicted memory, off by (median of stages)"

GOALS: Sequence[Goal] = (
    Goal(SECONDS, 1, "s", "at most"),
    Goal(WORSE, 0, "plans", "at most"),
    Goal(LATENCY, 15, "%", "at most"),
    Goal(MEMORY, 15, "%", "at most"),
)

LIMIT = 94 << 20
MIB = 1 << 20
_OBJECTIVES: tuple[Objective, ...] = ("latency", "throughput")
_CHAINS = 300
_QUICK_CHAINS = 80


def measure(bench: Bench) -> None:
    """Measure every goal that `bench` wants."""
    if bench.wants(SECONDS):
        bench.record(SECONDS, max(map(_seconds, large_asks())))
    if bench.wants(WORSE):
        count = _QUICK_CHAINS if bench.quick else _CHAINS
        bench.record(WORSE, sum(not as_good(ask) for ask in small_asks(count)))
    if bench.wants(LATENCY, MEMORY):
        with tempfile.TemporaryDirectory() as place:
            _predict(bench, _models(bench, Path(place)))


def large_asks(units: int = 1000) -> Iterator[Ask]:
    """Chains as large as they come, for few and many enclaves."""
    rng = random.Random(3)  # noqa: S311  # no secret
    costs = Costs(
        [rng.randint(0, MIB) for _ in range(units)],
        [rng.randint(0, 4 * MIB) for _ in range(units)],
        [rng.randint(10**4, 10**6) for _ in range(units)],
        [rng.randint(10**3, 10**6) for _ in range(units + 1)],
        fixed=MIB,
        call=50_000,
    )
    for objective in _OBJECTIVES:
        for paging in (None, Paging(33_000, 250, "swap")):
            for kind in (Enclaves(LIMIT), Enclaves(LIMIT, 8), Enclaves(9 * MIB, 150)):
                yield Ask(costs, [kind], Transfer(100_000, 1000), objective, paging)


def small_asks(count: int) -> Iterator[Ask]:
    """Chains of 1 to 12 units with costs of few digits, so that many plans are equal, or of several."""
    rng = random.Random(7)  # noqa: S311  # no secret
    for _ in range(count):
        n = rng.randint(1, 12)
        most = rng.choice([3, 200])
        weights = [rng.randint(0, most) + 50 for _ in range(n)]
        pair = sorted(rng.sample(range(n), 2)) if n > 1 and rng.random() < 0.4 else []
        costs = Costs(
            weights,
            [rng.randint(0, most) for _ in range(n)],
            [rng.randint(0, 5 * most) for _ in range(n)],
            [rng.randint(0, most) for _ in range(n + 1)],
            [(pair[0], pair[1], rng.randint(0, 50))] if pair else [],
            rng.randint(0, 5),
            rng.randint(0, 20),
        )
        kinds = 1 if n > 8 else rng.choice([1, 1, 2])
        enclaves = [
            Enclaves(
                rng.randint(sum(weights) // 5 + 1, sum(weights) + 9), rng.randint(1, 4), rng.choice([50, 100, 300])
            )
            for _ in range(kinds)
        ]
        paging = rng.choice([None, Paging(rng.randint(1, 1000), 250, "swap")])
        transfer = Transfer(rng.randint(0, most), rng.randint(0, 20) * 1000)
        yield Ask(costs, enclaves, transfer, rng.choice(_OBJECTIVES), paging, rng.choice([None, None, 2]))


def _seconds(ask: Ask) -> float:
    """Of a processor, to plan; what else the machine does is not in it."""
    began = time.process_time()
    _solve(ask)
    return time.process_time() - began


def as_good(ask: Ask) -> bool:
    """Whether the planner's plan is the best there is, or there is none."""
    best, found = search(ask), _solve(ask)
    if best is None or found is None:
        return best is found is None
    return rank(ask, best) == rank(ask, found)


def _solve(ask: Ask) -> Solution | None:
    try:
        return solve(ask)
    except StrongroomError:
        return None


def _models(bench: Bench, place: Path) -> Iterator[tuple[str, bytes]]:
    """Networks by name."""
    if bench.quick:
        from benchmarks.serving import LARGE, network

        yield "six convolutions", network(LARGE)
        return
    for name in SIZES:
        path = place / f"{name}.onnx"
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.plan_models", name, str(path)], capture_output=True, check=False
        )
        if done.returncode:
            bench.say(f"{name} could not be exported: {done.stderr.decode(errors='replace').strip()[-200:]}")
            continue
        yield name, path.read_bytes()
        if bench.complete:
            _paged(bench, name, path)


def _predict(bench: Bench, models: Iterator[tuple[str, bytes]]) -> None:
    """Plans of these networks, and what their stages took."""
    from strongroom.serve.graph import load
    from strongroom.serve.plan.make import Wanted, make, prepare
    from strongroom.serve.plan.prober import Prober
    from strongroom.serve.plan.profile import batch_sizes, profile

    off_latency, off_memory = [], []
    for name, raw in models:
        model = load(raw)
        prepared = prepare(model, memory=LIMIT)
        chain = prepared.chain
        taken = profile(chain, threads=1)
        if taken.whole.resident > LIMIT:
            limit, wanted = LIMIT, Wanted((Enclaves(LIMIT),), Transfer(0, 0))
        else:  # cut where a pipeline of cores of their own would be
            limit = 2 * taken.whole.resident
            wanted = Wanted((Enclaves(limit),), Transfer(0, 0), "throughput")
        try:
            plan = make(prepared, taken, wanted, None)
        except StrongroomError as error:
            bench.say(f"{name}: {error}")
            continue
        with Prober.start(1) as prober:
            prober.begin(chain, batch_sizes(chain, 1, {}))
            took = [prober.take(chain, each.first, each.last, 10**9) for each in plan.stages]
        spent, predicted = sum(each.nanoseconds for each in took), sum(each.nanoseconds for each in plan.stages)
        off_latency.append(100 * abs(predicted - spent) / spent)
        frames = [taken.costs.frontiers[each.first] + each.sends for each in plan.stages]
        held = [each.resident + frame for each, frame in zip(took, frames, strict=True)]
        off_memory += [100 * abs(e.memory - h) / h for e, h in zip(plan.stages, held, strict=True)]
        bench.say(
            f"{name}: {len(plan.stages)} stages in {limit / MIB:.0f} MiB, {predicted / 1e6:.1f} ms predicted, "
            f"{spent / 1e6:.1f} ms measured; largest {max(held) / MIB:.1f} MiB"
        )
    if off_latency:
        bench.record(LATENCY, max(off_latency))
        bench.record(MEMORY, statistics.median(off_memory))


def _paged(bench: Bench, name: str, path: Path) -> None:
    """The network in one process of 94 MiB, where that can be tried."""
    from strongroom.serve.plan.paging_probe import paged_group, swap

    try:
        with swap(path.parent, 2 << 30), paged_group(LIMIT) as door:
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.plan_paged", str(door), str(path)],
                capture_output=True,
                timeout=300,
                check=False,
            )
    except (StrongroomError, subprocess.TimeoutExpired) as error:
        bench.say(f"{name} in one process of 94 MiB: {error}")
        return
    times = [int(line) / 1e6 for line in done.stdout.split()]
    told = f"{statistics.median(times):.0f} ms" if times else f"ended with status {done.returncode}"
    bench.say(f"{name} in one process of 94 MiB: {told}")
