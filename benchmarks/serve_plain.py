"""Serving beside plain ONNX Runtime: the same model, inputs, threads and cores, in turns.

- The service is `strongroom serve` (`serve_runs.py`): a simulated enclave, TLS 1.3, the protocol, a client of ours that
  has appraised it. Service and plain have the same two cores; the client has others, where the machine has more than
  two, and else takes its time from the service's. Plain is a loop in a process of its own.
- Convolutions that take ONNX Runtime 10 and 40 ms on all cores here, asked with images of 588 KiB.
- Throughput is with several requests under way, latency with one.
- In stages: the same model, cut so that the slowest stage is as fast as can be, all on the same cores.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.enclave_runs import Runs, runs
from benchmarks.harness import Bench, Goal, Result
from benchmarks.serve_runs import Arrays, Plain, Service, Turn, apart, hammer, pinned, saved, service
from benchmarks.serving import LARGE, image, network, sized

RATES = {10: "served / plain throughput, 10 ms model", 40: "served / plain throughput, 40 ms model"}
LATENCIES = {10: "latency by its bound, 10 ms model", 40: "latency by its bound, 40 ms model"}
STAGES = {2: "throughput of 2 stages, 40 ms model", 3: "throughput of 3 stages, 40 ms model"}
LIMITS = {10: 0.93, 40: 0.97}

GOALS: Sequence[Goal] = (
    *(Goal(name, LIMITS[ms], "x", "at least") for ms, name in RATES.items()),
    *(Goal(name, 1, "x", "at most") for name in LATENCIES.values()),
    *(Goal(name, 0.93, "x", "at least", full_only=count > 2) for count, name in STAGES.items()),
)
IN_FLIGHT = 4
_LATENCY_SHARE, _MS_PER_MEGABYTE = 1.05, 1.5
_MIB = 1 << 20


def measure(bench: Bench) -> None:
    """Measure every goal that `bench` wants."""
    with pinned():
        for ms in RATES:
            stages = STAGES if ms == 40 else {}
            if bench.wants(RATES[ms], LATENCIES[ms], *stages.values()):
                with runs("onnxruntime", "onnx") as place:
                    _model(bench, place, ms, stages)
    if bench.plots:
        draw(bench.results(), bench.plots / "serve-plain.png")


def _model(bench: Bench, place: Runs, ms: int, stages: dict[int, str]) -> None:
    load = sized(LARGE, ms)
    model = place.directory / "model.onnx"
    model.write_bytes(network(load))
    inputs = {"image": image(load)}
    threads = len(os.sched_getaffinity(0))
    turn = 0.6 if bench.quick else 2.0
    with Plain(place, model, threads=threads, inputs=saved(inputs, place.directory / "inputs.npz")) as plain:
        if bench.wants(RATES[ms], LATENCIES[ms]):
            with service(place, model) as running, asking(running, inputs) as ask:
                bench.compare(
                    RATES[ms],
                    lambda: ask(turn, IN_FLIGHT).rate,
                    lambda: plain.hammer(turn, 1).rate,
                    peer_name="ONNX Runtime",
                    unit="runs/s",
                )
                bench.compare(
                    LATENCIES[ms],
                    lambda: ask(turn, 1).ms,
                    lambda: _bound(plain.hammer(turn, 1).ms, inputs),
                    peer_name="1.05 x ONNX Runtime + 1.5 ms per MB",
                    unit="ms",
                )
        for count, name in stages.items():
            if bench.wants(name):
                plan = cut_in(model, count, place.directory / f"plan-{count}.json", threads)
                with service(place, model, "--plan", str(plan)) as running, asking(running, inputs) as ask:
                    bench.compare(
                        name,
                        lambda: ask(turn, 2 * count).rate,  # noqa: B023
                        lambda: plain.hammer(turn, 1).rate,
                        peer_name="ONNX Runtime",
                        unit="runs/s",
                    )


def _bound(plain_ms: float, inputs: Arrays) -> float:
    return _LATENCY_SHARE * plain_ms + _MS_PER_MEGABYTE * sum(each.nbytes for each in inputs.values()) / 1e6


@contextmanager
def asking(running: Service, inputs: Arrays) -> Iterator[Callable[[float, int], Turn]]:
    """What asks a service for so many seconds, so many times at once, with connections that stay open."""
    with running.client() as client, apart():

        def ask(seconds: float, at_once: int) -> Turn:
            return hammer(lambda: client.predict(inputs), seconds, at_once)

        ask(0.3, IN_FLIGHT)
        yield ask


def cut_in(model: Path, count: int, path: Path, threads: int) -> Path:
    """A plan of so many stages, of which the slowest is as fast as can be."""
    from strongroom.serve.graph import load
    from strongroom.serve.plan import Enclaves, Placed, Transfer, Wanted, prepare
    from strongroom.serve.plan.make import _ask, _written
    from strongroom.serve.plan.profile import profile
    from strongroom.serve.plan.solution import Tables

    prepared = prepare(load(model.read_bytes()), memory=1 << 40)
    taken = profile(prepared.chain, threads=threads)
    wanted = Wanted((Enclaves(1 << 40),), Transfer(100_000, 500), shared=1)
    tables, units = Tables(_ask(taken.costs, wanted, None)), len(taken.costs)
    stage = tables.stage[0]
    ways = [(0, *cuts, units) for cuts in itertools.combinations(range(1, units), count - 1)]
    best = min(ways, key=lambda way: max(stage[first, last] for first, last in itertools.pairwise(way)))
    solution = tables.judge([Placed(first, last, 0) for first, last in itertools.pairwise(best)])
    path.write_bytes(_written(prepared, taken, wanted, tables, solution).to_bytes())
    return path


def draw(results: Sequence[Result], path: Path) -> None:
    """Bars: each ratio, and the bound that it is held to."""
    from matplotlib import pyplot

    shown = [each for each in results if each.value is not None]
    figure, axes = pyplot.subplots(figsize=(8, 1 + 0.6 * len(shown)), layout="constrained")
    for place, each in enumerate(shown):
        axes.barh(place, each.value or 0, 0.6, color="C0" if each.verdict == "holds" else "C3")
        axes.plot([each.goal.wanted] * 2, [place - 0.4, place + 0.4], color="black")
    axes.set_yticks(range(len(shown)), [each.goal.name for each in shown])
    axes.set_xlabel("ratio to ONNX Runtime, and its bound")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


if __name__ == "__main__":
    sys.exit("python -m benchmarks serve_plain")
