"""A pipeline whose enclaves are killed with SIGKILL under load: what is lost or wrong, and how long requests wait.

- Ten thousand requests of several users, each with an input of its own; every answer is compared with ONNX Runtime's on
  the whole model. Users are in a process of their own, and speak as any client does.
- Parts are killed in turn, every 2 s where each has a standby, else every 10 s; the front door likewise, with a standby
  and without. A kill hits the enclave that has the link, or the socket, if it can be told.
- A request is lost if its user gets no answer from the first call of `Client.predict`, which asks again by itself once.
- An answer says which request it answers: one for another, or a second one, counts as answered twice.
- All of it is on one machine, enclaves that start again included: what they take, requests lack. A machine that stands
  still (another measurement may stop it) is noticed by a clock. Requests of those moments count for no latency. One
  that failed meanwhile is lost like another; how many these were is told, so that such a run can be judged.
"""

from __future__ import annotations

import contextlib
import multiprocessing as mp
import os
import signal
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.harness import Bench, Goal

REQUESTS: Final = 10_000
FEW: Final = 300
USERS: Final = 6
PARTS: Final = 2
_BEAT, _STILL, _LONG = 0.02, 0.25, 30.0
LOST: Final = "lost, twice or wrong: "


@dataclass(frozen=True)
class Fault:
    """What is killed, and how often."""

    name: str
    roles: tuple[str, ...]
    seconds: float
    standby: bool


FAULTS: Final = (
    Fault("parts, standbys, every 2 s", ("part-1", "part-2"), 2, True),
    Fault("parts, every 10 s", ("part-1", "part-2"), 10, False),
    Fault("front door, standby, every 2 s", ("front",), 2, True),
    Fault("front door, every 10 s", ("front",), 10, False),
)
GOALS: Sequence[Goal] = (
    Goal(LOST + "a few requests", 0, "", "at most"),
    *(Goal(LOST + fault.name, 0, "", "at most", full_only=True) for fault in FAULTS),
)


@dataclass
class Asked:
    """What a user saw of one request."""

    at: float
    seconds: float
    wrong: bool
    error: str = ""


@dataclass
class Run:
    """A load, and the kills that fell into it."""

    fault: Fault
    asked: list[Asked] = field(default_factory=list)
    kills: list[tuple[float, str]] = field(default_factory=list)
    notes: list[tuple[float, str]] = field(default_factory=list)
    still: list[tuple[float, float]] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def twice(self) -> int:
        return sum("to another request" in each.error for each in self.asked)

    @property
    def lost(self) -> int:
        return sum(bool(each.error) for each in self.asked) - self.twice

    @property
    def stopped(self) -> int:
        """Of the requests that were lost, those under way while the machine stood still for about as long as a request
        has, or longer."""
        return sum(bool(each.error) and self._stopped(each, _LONG) for each in self.asked)

    @property
    def wrong(self) -> int:
        return sum(each.wrong for each in self.asked)

    def latencies(self) -> list[float]:
        """Of answered requests during which the machine did not stand still."""
        return sorted(each.seconds for each in self.asked if not each.error and not self._stopped(each, 0.0))

    def _stopped(self, asked: Asked, seconds: float) -> bool:
        """Whether the machine stood still for that long while it was under way."""
        ends = asked.at + asked.seconds
        return any(b - a >= seconds and a < ends and asked.at < b for a, b in self.still)


@contextlib.contextmanager
def _noticing(still: list[tuple[float, float]]) -> Iterator[None]:
    """Note when this process stood still."""
    over = threading.Event()

    def beat() -> None:
        last = time.monotonic()
        while not over.wait(_BEAT):
            now = time.monotonic()
            if now - last > _STILL:
                still.append((last, now))
            last = now

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _input(number: int) -> Any:
    return np.random.default_rng(number).standard_normal((1, 64)).astype(np.float32)


def _users(
    told: Connection, url: str, root: str, policy: str, measured: tuple[str, ...], vendor: str, count: int
) -> None:
    """The users' process: says what each saw."""
    from strongroom.attest.reference import ReferenceValues
    from strongroom.serve import Client, Stage
    from tests.serve.pipeline.world import model

    reference = ReferenceValues(("simulated",), measured, allow_simulated=vendor)
    whole = Stage.load(model(), name="m", threads=1)
    still: list[tuple[float, float]] = []
    asked: list[list[Asked]] = [[] for _ in range(USERS)]
    left = threading.BoundedSemaphore(USERS)

    def user(place: int) -> None:
        with left, Client(url, cas_root=root, policy=policy, reference=reference) as client:
            for number in range(place, count, USERS):
                x, began = _input(number), time.monotonic()
                try:
                    [got] = client.predict(x).values()
                except Exception as error:  # whatever it is, the request is lost
                    asked[place].append(
                        Asked(began, time.monotonic() - began, False, f"{type(error).__name__}: {error}")
                    )
                    continue
                took = time.monotonic() - began
                [right] = whole.infer({"x": x}).values()
                asked[place].append(Asked(began, took, bool(np.abs(got - right).max() > 1e-5 * np.abs(right).max())))

    with _noticing(still):
        threads = [threading.Thread(target=user, args=(place,)) for place in range(USERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    told.send(([each for some in asked for each in some], still))


def run(fault: Fault, count: int) -> Run:
    """Serve, ask, kill."""
    from strongroom.channel import bind
    from strongroom.cli.serve_pipeline import start_pipeline
    from strongroom.cli.workspace import Home, SealedVault
    from tests.serve.pipeline.world import model, plan

    seen = Run(fault)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as resources:
        home = Home.open(Path(folder) / "home")
        sealed = SealedVault.at(Path(folder) / "m.vault")
        with sealed.create() as made:
            made.write_bytes("m.onnx", model())
            made.commit()
        cas = resources.enter_context(home.cas())
        listener = resources.enter_context(bind("127.0.0.1", 0))
        supervisor = start_pipeline(
            home,
            cas,
            sealed,
            "m.onnx",
            plan(PARTS),
            listener=listener,
            resources=resources,
            standby=fault.standby,
            say=lambda text: seen.notes.append((time.monotonic(), text)),
        )
        ended: list[BaseException] = []
        waiter = threading.Thread(target=_wait, args=(supervisor, ended))
        waiter.start()
        try:
            supervisor.up.wait()
            if ended:
                raise ended[0]
            context = mp.get_context("spawn")
            ours, theirs = context.Pipe()
            url, policy = f"https://127.0.0.1:{listener.getsockname()[1]}", supervisor.policy
            arguments = (
                url,
                cas.cas_root,
                policy.name,
                policy.reference.measurements,
                home.vendor().root_digest,
                count,
            )
            users = context.Process(target=_users, args=(theirs, *arguments), daemon=True)
            began = time.monotonic()
            with _noticing(seen.still):
                users.start()
                theirs.close()
                turn = 0
                while not ours.poll(fault.seconds):
                    if ended:
                        raise ended[0]
                    role = fault.roles[turn % len(fault.roles)]
                    turn += 1
                    seen.kills.append((time.monotonic(), role))
                    supervisor.signal(role, signal.SIGKILL)
                seen.asked, still = ours.recv()
                seen.still += still
                users.join()
            seen.seconds = time.monotonic() - began
        finally:
            supervisor.stop()
            waiter.join()
        if ended:
            raise ended[0]
    return seen


def _wait(supervisor: Any, ended: list[BaseException]) -> None:
    try:
        supervisor.wait()
    except BaseException as error:
        ended.append(error)
    finally:
        supervisor.up.set()


def measure(bench: Bench) -> None:
    """Kill, count, and print what requests waited."""
    if not hasattr(os, "pidfd_open"):
        raise NotImplementedError("pipeline_faults: enclaves are launched on Linux alone")
    runs: list[Run] = []
    try:
        if bench.wants(LOST + "a few requests"):
            _one(bench, LOST + "a few requests", FAULTS[0], FEW, runs)
        for fault in FAULTS:
            if bench.wants(LOST + fault.name):
                _one(bench, LOST + fault.name, fault, REQUESTS, runs)
    finally:
        if runs:
            show(runs)


def _one(bench: Bench, name: str, fault: Fault, count: int, runs: list[Run]) -> None:
    runs.append(seen := run(fault, count))
    for each in [each for each in seen.asked if each.error or each.wrong][:5]:
        bench.say(f"{name}: {each.error or 'a wrong answer'}")
    never = count - len(seen.asked)
    bench.say(
        f"{name}: of {count:,} requests {seen.lost} lost ({seen.stopped} of them while the machine stood still), "
        f"{seen.wrong} wrong, {seen.twice} answered twice, {never} never made"
    )
    bench.record(name, seen.lost + seen.wrong + seen.twice + never)


def show(runs: Sequence[Run]) -> None:
    """A row for each run."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for name in (
        "killed",
        "requests",
        "kills",
        "lost",
        "twice",
        "wrong",
        "stopped",
        "p50 ms",
        "p99 ms",
        "max ms",
        "still s",
        "s",
    ):
        table.add_column(name, justify="left" if name == "killed" else "right")
    for one in runs:
        times = one.latencies() or [float("nan")]
        cuts = statistics.quantiles(times, n=100) if len(times) > 1 else times * 99
        table.add_row(
            one.fault.name,
            f"{len(one.asked):,}",
            *map(str, (len(one.kills), one.lost, one.twice, one.wrong, one.stopped)),
            *(f"{1000 * value:.1f}" for value in (statistics.median(times), cuts[98], times[-1])),
            f"{sum(b - a for a, b in one.still):.1f}",
            f"{one.seconds:.0f}",
        )
    Console(highlight=False, width=120).print(table)
