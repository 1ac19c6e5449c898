"""Stages on different hosts: a pipeline whose links carry 1 Gbit/s, beside the same on one host.

- Convolutions of 40 ms in two and three stages, each in a process of its own (`serve_groups.py`), frames over TLS.
- 1 Gbit/s by the kernel's own pacing of each TCP connection (SO_MAX_PACING_RATE), in each direction, between the front
  door and each part. What leaves in one go after a pause, some 64 KiB, is not paced; nor is a network's delay in it.
  In a real pipeline over hosts all frames share the front door's interface: with one request under way only one link is
  used at a time, and with several the throughput here is that of interfaces of their own.
- All stages compute on the same cores, so the ratio is what links alone cost.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.enclave_runs import runs
from benchmarks.harness import Bench, Goal
from benchmarks.serve_groups import running
from benchmarks.serve_plain import cut_in
from benchmarks.serve_runs import Arrays, hammer, pinned
from benchmarks.serving import LARGE, image, network, sized
from strongroom.serve.plan import Plan

GIGABIT = 125_000_000  # bytes a second
STAGES = (2, 3)
LATENCY = {count: f"latency, {count} stages over 1 Gbit/s, by what its frames take" for count in STAGES}
RATES = {count: f"throughput, {count} stages over 1 Gbit/s / on one host" for count in STAGES}

GOALS: Sequence[Goal] = (
    *(Goal(name, 1.1, "x", "at most", full_only=count > 2) for count, name in LATENCY.items()),
    *(Goal(name, 0.9, "x", "at least", full_only=count > 2) for count, name in RATES.items()),
)


def measure(bench: Bench) -> None:
    """Measure every goal that `bench` wants."""
    told: dict[str, dict[str, float]] = {}
    with pinned(), runs("onnxruntime", "onnx") as place:
        load = sized(LARGE, 40)
        model = place.directory / "model.onnx"
        model.write_bytes(network(load))
        for count in STAGES:
            if bench.wants(LATENCY[count], RATES[count]):
                path = cut_in(model, count, place.directory / f"{count}.json", len(os.sched_getaffinity(0)))
                told[str(count)] = _stages(bench, model, Plan.parse(path.read_bytes()), {"image": image(load)}, count)
    if bench.plots and told:
        (bench.plots / "serve-links.json").write_text(json.dumps(told, indent=2) + "\n")
        draw(told, bench.plots / "serve-links.png")


def _stages(bench: Bench, model: Path, plan: Plan, inputs: Arrays, count: int) -> dict[str, float]:
    raw = model.read_bytes()
    with contextlib.ExitStack() as stack:
        sides = {}
        for name, rate in (("here", 0), ("far", GIGABIT)):
            files = model.parent / f"{count}-{name}"
            files.mkdir()
            sides[name] = stack.enter_context(running(raw, plan, files, limit=None, rate=rate))
            for _ in range(5):
                sides[name].infer(inputs)
        # Each frame goes to the front door and from there to the next part: twice but for the ends.
        carried = plan.takes + 2 * sum(each.sends for each in plan.stages[:-1]) + plan.stages[-1].sends
        wire = 1000 * carried / GIGABIT

        def latency(side: str) -> Callable[[], float]:
            return lambda: statistics.median(_once(sides[side], inputs) for _ in range(7))

        def throughput(side: str) -> Callable[[], float]:
            return lambda: hammer(lambda: sides[side].infer(inputs), 1.5, 2 * count).rate

        far: list[float] = []

        def ours() -> float:
            far.append(latency("far")())
            return far[-1]

        bench.compare(
            LATENCY[count], ours, lambda: latency("here")() + wire, peer_name="one host, and the wire", unit="ms"
        )
        bench.compare(
            RATES[count], throughput("far"), throughput("here"), peer_name="one host", unit="runs/s", rounds=5
        )
    bench.say(f"{count} stages: {carried / 1e6:.2f} MB on links a request, {wire:.1f} ms at 1 Gbit/s")
    return {"bytes": carried, "wire_ms": wire, "ms": statistics.median(far) if far else 0.0}


def _once(served: Any, inputs: Arrays) -> float:
    began = time.perf_counter()
    served.infer(inputs)
    return 1000 * (time.perf_counter() - began)


def draw(told: dict[str, dict[str, float]], path: Path) -> None:
    """Milliseconds of a request over links, and of them on the wire."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5, 4), layout="constrained")
    names = [f"{count} stages" for count in told]
    axes.bar(names, [each["ms"] for each in told.values()], label="a request")
    axes.bar(names, [each["wire_ms"] for each in told.values()], label="of it frames at 1 Gbit/s")
    axes.set_ylabel("ms")
    axes.legend()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
