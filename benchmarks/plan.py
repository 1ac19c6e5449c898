"""The planner: how fast, how good, and how near what it predicts is to what is measured.

- Fast: chains of 1,000 units, for both objectives, with and without paging, with few and with many enclaves; the
  slowest counts.
- Good: every chain of up to 3 units of small numbers, and random and misleading ones of up to 12, against every plan
  there is (`benchmarks.plan_search`); plans that are worse, or take more enclaves or stages for the same, count.
- Near: networks are profiled, planned for 94 MiB or, where they fit, for throughput, and the plan's stages loaded and
  run, one after another on one thread. Latency is the sum of their times beside the sum predicted; memory is each
  stage's beside its own prediction. The whole run uses the networks of Temper's evaluation, and those under
  `$STRONGROOM_DATA`/onnx that can be cut; a quick one six convolutions.
- Near, paging: networks in one process with less memory than they touch. What a page costs is measured by passes over
  memory, not by any network: they are foretold. Swap is in compressed memory, whose pace does not depend on a disk.
"""

from __future__ import annotations

import itertools
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from benchmarks import peers
from benchmarks.harness import Bench, Goal
from benchmarks.plan_search import as_good, every_small_ask, random_asks
from benchmarks.serve_groups import PLENTY, EndedError, lower
from benchmarks.serve_models import NETWORKS, exported
from strongroom.errors import StrongroomError, UnsupportedPlatformError
from strongroom.serve.graph import load, stage_model
from strongroom.serve.plan.costs import Costs, Enclaves, Transfer
from strongroom.serve.plan.make import Wanted, in_one, make, prepare
from strongroom.serve.plan.paging import Paging
from strongroom.serve.plan.paging_probe import measure as measure_paging
from strongroom.serve.plan.paging_probe import paged_group
from strongroom.serve.plan.planner import solve
from strongroom.serve.plan.prober import Prober
from strongroom.serve.plan.profile import batch_sizes, profile
from strongroom.serve.plan.solution import Ask, Objective
from strongroom.serve.plan.swap import swap

SECONDS = "1,000 units, the slowest of 12 plans"
WORSE = "plans unlike exhaustive search"
LATENCY = "predicted latency, off by at most"
MEMORY = "predicted memory, off by (median of stages)"
PAGED = "predicted latency where it pages, off by at most"

GOALS: Sequence[Goal] = (
    Goal(SECONDS, 1, "s", "at most"),
    Goal(WORSE, 0, "plans", "at most"),
    Goal(LATENCY, 15, "%", "at most"),
    Goal(MEMORY, 15, "%", "at most"),
    Goal(PAGED, 15, "%", "at most", full_only=True),
)

LIMIT = 94 << 20
MIB = 1 << 20
_OBJECTIVES: tuple[Objective, ...] = ("latency", "throughput")
_CHAINS = 3000
_QUICK_CHAINS = 100
_QUICK_STEP = 101  # of the small ones, one of so many
_BUDGET_NS: Final = 10**9  # of runs of a stage
# Networks, and in what share of the memory that they touch.
_PAGED: Final = (("ResNet18", 0.7), ("ResNet50", 0.5), ("ResNet50", 0.75), ("DenseNet201", 0.6), ("MobileNet", 0.6))
_PROCESSES: Final = 3


def measure(bench: Bench) -> None:
    """Measure every goal that `bench` wants."""
    if bench.wants(SECONDS):
        bench.record(SECONDS, max(map(_seconds, large_asks())))
    if bench.wants(WORSE):
        count, step = (_QUICK_CHAINS, _QUICK_STEP) if bench.quick else (_CHAINS, 1)
        asks = itertools.chain(random_asks(count), itertools.islice(every_small_ask(), 0, None, step))
        bench.record(WORSE, sum(not as_good(ask) for ask in asks))
    with tempfile.TemporaryDirectory() as place:
        if bench.wants(LATENCY, MEMORY):
            _predict(bench, _small(Path(place)) if bench.quick else _models(bench))
        if bench.wants(PAGED):
            _predict_paged(bench, Path(place))


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


def _seconds(ask: Ask) -> float:
    """Of a processor, to plan; what else the machine does is not in it."""
    began = time.process_time()
    solve(ask)
    return time.process_time() - began


def _small(place: Path) -> Iterator[tuple[str, Path]]:
    """What a quick run has."""
    from benchmarks.serving import LARGE, network

    path = place / "network.onnx"
    path.write_bytes(network(LARGE))
    yield "six convolutions", path


def _models(bench: Bench) -> Iterator[tuple[str, Path]]:
    """Networks by name: those of Temper's evaluation, and the published ones under `$STRONGROOM_DATA`."""
    for name in NETWORKS:
        try:
            yield name, exported(name)
        except peers.UnavailableError as error:
            bench.say(f"{name}: {error}")
    for path in sorted(Path(os.environ.get("STRONGROOM_DATA", ".")).glob("onnx/*/model.onnx")):
        yield path.parent.name, path


def _predict(bench: Bench, models: Iterator[tuple[str, Path]]) -> None:
    """Plans of these networks, and what their stages took."""
    off_latency, off_memory = [], []
    for name, path in models:
        prepared = prepare(load(path), memory=LIMIT)
        chain = prepared.chain
        if len(chain) == 1:
            bench.say(f"{name}: one unit, and so no cut to foretell")
            continue
        taken = profile(chain, threads=1)
        if taken.whole.resident > LIMIT:
            limit, wanted = LIMIT, Wanted((Enclaves(LIMIT),), Transfer(0, 0))
        else:  # cut where a pipeline of cores of their own would be, in up to four
            limit = 2 * taken.whole.resident + MIB
            wanted = Wanted((Enclaves(limit, 4),), Transfer(20_000, 0), "throughput")
        try:
            plan = make(prepared, taken, wanted, None)
        except StrongroomError as error:
            bench.say(f"{name}: {error}")
            continue
        with Prober.start(1) as prober:
            stages = [(each.first, each.last) for each in plan.stages]
            # Twice, at different times, as the profile was taken.
            rounds = []
            for _ in range(2):
                prober.begin(chain, batch_sizes(chain, 1, {}))
                rounds.append([prober.take(chain, first, last, _BUDGET_NS) for first, last in stages])
            took = [one.fastest(other) for one, other in zip(*rounds, strict=True)]
        spent, predicted = sum(each.nanoseconds for each in took), sum(each.nanoseconds for each in plan.stages)
        off_latency.append(100 * abs(predicted - spent) / spent)
        frames = [taken.costs.frontiers[each.first] + each.sends for each in plan.stages]
        held = [each.resident + frame for each, frame in zip(took, frames, strict=True)]
        off_memory += [100 * abs(e.memory - h) / h for e, h in zip(plan.stages, held, strict=True)]
        bench.say(
            f"{name}: {len(plan.stages)} stages in {limit / MIB:.0f} MiB, {predicted / 1e6:.2f} ms predicted, "
            f"{spent / 1e6:.2f} ms measured; largest {max(held) / MIB:.1f} MiB"
        )
    if off_latency:
        bench.record(LATENCY, max(off_latency))
        bench.record(MEMORY, statistics.median(off_memory))


def _predict_paged(bench: Bench, place: Path) -> None:
    """Networks as one stage in less memory than they touch: what paging was taken to cost, and what it did."""
    try:
        with swap(place, 2 << 30) as medium:
            if medium != "memory":
                raise UnsupportedPlatformError("the swap here is on a disk, whose pace nobody can foretell")
            costs = measure_paging(swap_beside=place)
            bench.say(f"a page takes {costs.page_ns / 1000:.1f} us, sharpness {costs.sharpness} %")
            off = [each for each in (_paged(bench, costs, *which) for which in _PAGED) if each is not None]
    except StrongroomError as error:
        bench.say(f"paging was not tried, for which it takes root, control groups and zram: {error}")
        bench.leave_rest()
        return
    if off:
        bench.record(PAGED, max(off))


def _paged(bench: Bench, costs: Paging, name: str, share: float) -> float | None:
    """By how many percent the time of a network is off, in that share of the memory that it touches."""
    path = exported(name)
    prepared = prepare(load(path), memory=1 << 40)
    taken = profile(prepared.chain, threads=1)
    limit = int(taken.whole.touched * share)
    plan = in_one(prepared, taken, Wanted((Enclaves(limit),), Transfer(0, 0)), costs)
    model = path.with_suffix(".optimised")
    model.write_bytes(stage_model(prepared.chain, 0, len(prepared.chain)).SerializeToString())
    times: list[float] = []
    for _ in range(_PROCESSES):
        runs = _runs(model, limit)
        times += runs[len(runs) // 2 :]
    model.unlink()
    if not times:
        bench.say(f"{name} in {limit / MIB:.0f} MiB: the kernel ended it each time")
        return None
    predicted, spent = plan.stages[0].nanoseconds, statistics.median(times)
    bench.say(
        f"{name}, {taken.whole.touched / MIB:.0f} MiB touched, in {limit / MIB:.0f} MiB: {predicted / 1e6:.0f} ms "
        f"predicted, {spent / 1e6:.0f} ms measured ({min(times) / 1e6:.0f} to {max(times) / 1e6:.0f}), "
        f"{taken.whole.nanoseconds / 1e6:.0f} ms without paging"
    )
    return 100 * abs(predicted - spent) / spent


def _runs(model: Path, limit: int) -> list[int]:
    """Nanoseconds of each run of a process that is held to a limit once it has loaded; none if the kernel ended it."""
    command = [sys.executable, "-m", "benchmarks.plan_paged"]
    with (
        paged_group(PLENTY) as door,
        subprocess.Popen(
            [*command, str(door), str(model)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process,
    ):
        try:
            assert process.stdout is not None  # a pipe
            if process.stdout.readline() != "loaded\n":
                return []
            lower(door, limit)
            told, _ = process.communicate("go\n", timeout=300)
        except (EndedError, subprocess.TimeoutExpired):
            return []
        finally:
            process.kill()
    return [int(line) for line in told.split()]
