"""Networks that outgrow their memory: partitioned, against one process that pages. Temper's figures, on this machine.

- The seven networks of Temper's evaluation, with random weights, one image at a time, all cores. Each process may take
  94 MiB beyond what it held before it loaded a model: a memory control group with swap (`serve_groups.py`).
- Partitioned: the plan of least latency for enclaves of 94 MiB, its stages in processes of their own, frames between
  them over TLS. One process: the whole network as a pipeline of one stage in one such process, asked in the same way.
  So both pay the same for a request, and where the network fits they are the same but for chance.
- Both answer in turns. Where one process would take minutes an answer, fewer turns.
- The hard case is told, and decides nothing: 94 MiB for all that one process holds, Python and ONNX Runtime included.
- Throughput: ResNet-50 in batches of 1, 4 and 16, planned for each, several requests under way.
- Plans that allow paging, at what a page costs on this machine, beside plans that never page.
- A process's pages go to a disk here and to encrypted memory in an enclave: times differ, and which side wins does not.
  Temper's are of SGX with 93.5 MiB, on other processors.

It takes root on Linux: ``sudo .venv/bin/python -m benchmarks serve_paging``. In a container add
``--privileged --cgroupns=host -v /sys/fs/cgroup:/sys/fs/cgroup``.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness import Bench, Goal
from benchmarks.serve_groups import EndedError, running, swapping
from benchmarks.serve_models import NETWORKS, exported
from benchmarks.serve_runs import Arrays, hammer, inputs_of, pinned
from strongroom.errors import ServeError, StrongroomError
from strongroom.serve.plan import Enclaves, Plan, Prepared, Profile, Transfer, Wanted, make, prepare, remembered
from strongroom.serve.plan.cache import Cache
from strongroom.serve.plan.make import in_one
from strongroom.serve.plan.paging import CONSTANTS

MIB = 1 << 20
LIMIT = 94 * MIB
# A process takes some memory that no plan counts: TLS, and what Python allocates for a request.
_MARGIN = 4 * MIB
_QUICK = ("MobileNet", "ResNet50")
FITS = ("MobileNet", "ResNet18", "DenseNet201")
LATENCY = {name: f"{name}: partitioned / one process" for name in NETWORKS}
BATCHES = {1: 1.8, 4: 2.1, 16: 1.2}  # over Lasagna, in Temper's paper
RATES = {batch: f"ResNet50: images a second, batch {batch}: partitioned / one process" for batch in BATCHES}
PAGING = "ResNet50: latency where paging is allowed / never"

GOALS: Sequence[Goal] = (
    *(
        Goal(name, 1.05 if network in FITS else 0.5, "x", "at most", full_only=network not in _QUICK)
        for network, name in LATENCY.items()
    ),
    *(Goal(name, BATCHES[batch], "x", "at least", full_only=True) for batch, name in RATES.items()),
    Goal(PAGING, 1.05, "x", "at most", full_only=True),
)


@dataclass
class Row:
    """What is told of a network."""

    name: str
    weights: int
    whole: int
    stages: int
    largest: int
    partitioned_ms: float
    one_ms: float
    hard_ms: float | None
    free_ms: float


def measure(bench: Bench) -> None:
    """Measure every goal that `bench` wants."""
    rows: list[Row] = []
    with pinned(), tempfile.TemporaryDirectory() as name, swapping(Path(name)):
        place = Path(name)
        for network, goal in LATENCY.items():
            if bench.wants(goal):
                exported(network, make=not bench.quick)
                rows.append(_latency(bench, place, network, goal))
        _rates(bench, place)
        if bench.wants(PAGING):
            _allowed(bench, place)
    if bench.plots and rows:
        draw(rows, bench.plots / "serve-paging.png")
        (bench.plots / "serve-paging.json").write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


@dataclass(frozen=True)
class Planned:
    """A network, measured and planned."""

    raw: bytes
    prepared: Prepared
    profile: Profile
    wanted: Wanted

    @classmethod
    def of(cls, network: str, *, batch: int = 1) -> Planned:
        from strongroom.serve.graph import load

        raw = exported(network).read_bytes()
        prepared = prepare(load(raw), memory=LIMIT)
        threads = len(os.sched_getaffinity(0))
        taken = remembered(prepared.chain, Cache.of_user(), batch=batch, threads=threads)
        return cls(raw, prepared, taken, Wanted((Enclaves(LIMIT - _MARGIN),), Transfer(100_000, 500), shared=1))

    @property
    def parts(self) -> Plan:
        """The best plan that never pages; where there is none, the best that does."""
        try:
            return make(self.prepared, self.profile, self.wanted, None)
        except ServeError:  # a unit alone is too much, in a large batch
            return make(self.prepared, self.profile, self.wanted, CONSTANTS["swap"])

    @property
    def one(self) -> Plan:
        return in_one(self.prepared, self.profile, self.wanted, CONSTANTS["swap"])


def _latency(bench: Bench, place: Path, network: str, goal: str) -> Row:
    planned = Planned.of(network)
    inputs = inputs_of(exported(network))
    parts, one = planned.parts, planned.one
    took: dict[str, list[float]] = {"parts": [], "one": []}
    with asking(planned.raw, parts, place, inputs) as ours, asking(planned.raw, one, place, inputs) as theirs:
        first = theirs()
        rounds = 9 if first < 2000 else 3

        def of(side: str, ask: Callable[[], float]) -> Callable[[], float]:
            def milliseconds() -> float:
                took[side].append(statistics.median(ask() for _ in range(5 if first < 100 else 1)))
                return took[side][-1]

            return milliseconds

        bench.compare(
            goal,
            of("parts", ours),
            of("one", theirs),
            peer_name="one process",
            unit="ms",
            rounds=rounds,
            warmup=1 if rounds > 3 else 0,
        )
    with asking(planned.raw, one, place, inputs, limit=None) as free:
        free()
        free_ms = statistics.median(free() for _ in range(9))
    hard = _hard(planned, place, inputs) if bench.complete else None
    row = Row(
        network,
        planned.prepared.chain.weight_bytes(0, len(planned.prepared.chain)),
        planned.profile.whole.resident,
        len(parts.stages),
        max(each.memory for each in parts.stages),
        statistics.median(took["parts"]),
        statistics.median(took["one"]),
        hard,
        free_ms,
    )
    bench.say(_told(row))
    return row


def _told(row: Row) -> str:
    hard = "not tried" if row.hard_ms is None else f"{row.hard_ms:.0f} ms" if row.hard_ms else "could not load"
    return (
        f"{row.name}: {row.weights / MIB:.0f} MiB of weights, {row.whole / MIB:.0f} MiB in one process; "
        f"{row.stages} stages {row.partitioned_ms:.1f} ms, one process {row.one_ms:.1f} ms, "
        f"without a limit {row.free_ms:.1f} ms; hard 94 MiB: {hard}; "
        f"{1000 / row.partitioned_ms:.2f} images a second, Temper {NETWORKS[row.name].rate:.2f}"
    )


def _hard(planned: Planned, place: Path, inputs: Arrays) -> float | None:
    """Milliseconds in a process that may hold 94 MiB in all; 0 where it did not get so far."""
    try:
        with asking(planned.raw, planned.one, place, inputs, hard=True, seconds=60) as ask:
            return statistics.median(ask() for _ in range(2))
    except (EndedError, StrongroomError):
        return 0.0


@contextlib.contextmanager
def asking(raw: bytes, plan: Plan, place: Path, inputs: Arrays, **how: Any) -> Iterator[Callable[[], float]]:
    """What asks a pipeline once, and returns the milliseconds."""
    how.setdefault("limit", LIMIT)
    with tempfile.TemporaryDirectory(dir=place) as name, running(raw, plan, Path(name), **how) as served:
        served.infer(inputs)

        def ask() -> float:
            began = time.perf_counter()
            served.infer(inputs)
            return 1000 * (time.perf_counter() - began)

        yield ask


def _rates(bench: Bench, place: Path) -> None:
    for batch, goal in RATES.items():
        if not bench.wants(goal):
            continue
        planned = Planned.of("ResNet50", batch=batch)
        inputs = inputs_of(exported("ResNet50"), batch)
        parts, one = planned.parts, planned.one
        with contextlib.ExitStack() as stack:
            sides = []
            for plan in (parts, one):
                files = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=place)))
                sides.append(stack.enter_context(running(planned.raw, plan, files, limit=LIMIT)))
                sides[-1].infer(inputs)

            def rate(served: Any, batch: int = batch, inputs: Arrays = inputs) -> Callable[[], float]:
                return lambda: batch * hammer(lambda: served.infer(inputs), 3.0, 3).rate

            bench.compare(
                goal, rate(sides[0]), rate(sides[1]), peer_name="one process", unit="images/s", rounds=3, warmup=0
            )
        bench.say(f"batch {batch}: {len(parts.stages)} stages")


def _allowed(bench: Bench, place: Path) -> None:
    from strongroom.serve.plan import paging_probe

    planned, inputs = Planned.of("ResNet50"), inputs_of(exported("ResNet50"))
    costs = paging_probe.measure(swap_beside=place)
    strict, allowed = planned.parts, make(planned.prepared, planned.profile, planned.wanted, costs)
    with asking(planned.raw, strict, place, inputs) as never, asking(planned.raw, allowed, place, inputs) as may:
        bench.compare(PAGING, may, never, peer_name="never paging", unit="ms")
    bench.say(
        f"a page costs {costs.page_ns / 1000:.0f} us here: {len(allowed.stages)} stages where paging is allowed, "
        f"{len(strict.stages)} where it is not"
    )


def draw(rows: Sequence[Row], path: Path) -> None:
    """Milliseconds of each network, in one process and in stages."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 4), layout="constrained")
    places = range(len(rows))
    for shift, label, values in (
        (-0.27, "one process, 94 MiB", [row.one_ms for row in rows]),
        (0.0, "stages of 94 MiB", [row.partitioned_ms for row in rows]),
        (0.27, "one process, no limit", [row.free_ms for row in rows]),
    ):
        axes.bar([place + shift for place in places], values, 0.26, label=label)
    axes.set_yscale("log")
    axes.set_ylabel("ms an image")
    axes.set_xticks(list(places), [f"{row.name}\n{row.weights / MIB:.0f} MiB, {row.stages} stages" for row in rows])
    axes.legend()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
