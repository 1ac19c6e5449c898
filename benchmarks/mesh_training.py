"""Distributed training through the mesh: replicas that are enclaves beside as many processes on the same cores.

- Ours are the replicas of `strongroom run --replicas N`: every byte between two of them goes through both proxies and
  TLS 1.3. The peers are N processes of the same file with the same arguments, which talk over the loopback in clear,
  outside of any enclave: no proxy, no encryption, no sandbox.
- What is timed is a step: gradients of 128 images of 32 x 32 in each replica, summed over all of them by Gloo, and the
  weights changed; starting and attesting are not in it. One thread a replica, both ways.
- secureTF (Quoc et al. 2020) reports distributed training in SGX enclaves many times slower than native. What its
  enclaves pay there for memory no simulated one pays, so its figures are no peer here.
"""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
from collections.abc import Callable, Sequence

from benchmarks.enclave_runs import Runs, runs
from benchmarks.harness import Bench, Goal

PROGRAM = "mesh_train.py"
_STEPS = 6
_LIMIT = 600  # seconds for one side of one round

GOALS: Sequence[Goal] = (
    Goal("training step, 1 replica", 1.10, "x", "at most", full_only=True),
    Goal("training step, 2 replicas", 1.10, "x", "at most", full_only=True),
    Goal("training step, 3 replicas", 1.10, "x", "at most", full_only=True),
    Goal("sum of 100 MB over 2 replicas", 10.0, "x", "at most", full_only=True),
)


def measure(bench: Bench) -> None:
    """Measure every goal that `bench` wants."""
    if not bench.wants(*[goal.name for goal in GOALS]):
        return
    with runs("torch") as place:
        place.copy(PROGRAM)
        for count in (1, 2, 3):
            name = f"training step, {count} replica{'s' * (count > 1)}"
            work = ("train", "--steps", str(_STEPS))
            bench.compare(
                name,
                _figure(place, count, work, inside=True),
                _figure(place, count, work, inside=False),
                peer_name=f"{count} process{'es' * (count > 1)} outside",
                unit="ms",
                rounds=5,
                warmup=0,
            )
        work = ("sum", "--steps", "10")
        bench.compare(
            "sum of 100 MB over 2 replicas",
            _figure(place, 2, work, inside=True),
            _figure(place, 2, work, inside=False),
            peer_name="2 processes outside",
            unit="ms",
            rounds=5,
            warmup=0,
        )


def _figure(place: Runs, count: int, work: Sequence[str], *, inside: bool) -> Callable[[], float]:
    """Starts all replicas, and gives the median of rank 0's steps, in milliseconds."""

    def run() -> float:
        said = _enclaves(place, count, work) if inside else _processes(place, count, work)
        (line,) = [line for line in said.splitlines() if "seconds " in line]
        return 1000 * statistics.median([float(word) for word in line.partition("seconds ")[2].split()])

    return run


def _enclaves(place: Runs, count: int, work: Sequence[str]) -> str:
    return place.run(place.inside(PROGRAM, *work, options=["--replicas", str(count)]))


def _processes(place: Runs, count: int, work: Sequence[str]) -> str:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    shared = {**place.environment, "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        subprocess.Popen(
            place.outside(PROGRAM, *work),
            cwd=place.directory,
            env={**shared, "RANK": str(rank), "LOCAL_RANK": "0", "HOME": os.environ.get("HOME", "/")},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    try:
        said = [process.communicate(timeout=_LIMIT) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, errors) in zip(processes, said, strict=True):
        if process.returncode:
            raise RuntimeError(f"{PROGRAM} outside: {process.returncode}: {errors[-2000:]}")
    return said[0][0]
