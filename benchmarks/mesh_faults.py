"""Replicas over the mesh while something is gone: replicas killed in an elastic training, the CAS away for a minute.

- An elastic `torchrun` of three replicas, of which one is killed ten times: its program, which the enclave's `torchrun`
  starts again, or its whole enclave, whose place is free once its lease is over. The training ends with the accuracy
  that is expected of it.
- Two replicas talk, twenty times a second, and a CAS of its own is stopped (SIGSTOP: connections are made, and nobody
  answers) or killed (connections are refused) for a minute. Meanwhile a third replica comes, and the first one's
  program ends, whose results need the CAS's anchor. What must hold: no silence between the two; the newcomer says that
  it waits, and comes; the results wait, and are sealed.
- All of it is on one machine, which the enclaves that start share with those that go on.
"""

from __future__ import annotations

import importlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from benchmarks.harness import Bench, Goal

KILLS: Final = 10
AWAY: Final = 60.0
BRIEFLY: Final = 6.0
_LIMIT = 240.0  # for whatever is waited for
_EXAMPLES = Path(__file__).parents[1] / "examples"

# The first two talk until the first is told to end; then the second waits for the third.
TALK: Final = """
import os, signal, socket, time
rank = int(os.environ["RANK"])
ended = []
signal.signal(signal.SIGUSR1, lambda *_: ended.append(True))
def reach(number, port):
    return socket.create_connection((os.environ["MASTER_ADDR"].replace("replica-0", f"replica-{number}"), port), 200)
if rank == 0:
    peer, _ = socket.create_server(("", 7000)).accept()
    while not ended:
        peer.sendall(peer.recv(1))
    open("/out/result", "w").write("of a run")
    peer.close()
elif rank == 1:
    listener = socket.create_server(("", 7001))
    peer, longest, last = reach(0, 7000), 0.0, time.monotonic()
    print("talks", flush=True)
    while True:
        peer.sendall(b".")
        if not peer.recv(1):
            break
        now = time.monotonic()
        longest, last = max(longest, now - last - 0.05), now
        time.sleep(0.05)
    print(f"silent for {longest:.3f} s", flush=True)
    newcomer, _ = listener.accept()
    newcomer.sendall(b"hello")
    assert newcomer.recv(1) == b""
else:
    peer = reach(1, 7001)
    assert peer.recv(5) == b"hello"
    print("came", flush=True)
"""


@dataclass(frozen=True)
class Fault:
    """How the CAS is away, and for how long."""

    name: str
    stopped: bool
    seconds: float


@dataclass
class Seen:
    """What became of replicas while the CAS was away.

    Attributes:
        failures: what should have been otherwise, in words.
        silence: the longest between the two that talked, in seconds.
        sealed, came: seconds after the CAS was back.
    """

    fault: Fault
    failures: list[str] = field(default_factory=list)
    silence: float = float("nan")
    sealed: float = float("nan")
    came: float = float("nan")


BRIEF: Final = Fault("CAS killed for 6 s", False, BRIEFLY)
FAULTS: Final = (
    Fault("CAS stopped for a minute", True, AWAY),
    Fault("CAS killed for a minute", False, AWAY),
)
_FAILURES, _SILENCE = ": failures", ": silence"
_PROGRAMS, _ENCLAVES = f"{KILLS} programs killed: accuracy", f"{KILLS} enclaves killed: accuracy"
GOALS: Sequence[Goal] = (
    Goal(BRIEF.name + _FAILURES, 0, "", "at most"),
    *(Goal(fault.name + _FAILURES, 0, "", "at most", full_only=True) for fault in FAULTS),
    *(Goal(fault.name + _SILENCE, 1.0, "s", "at most", full_only=True) for fault in FAULTS),
    Goal(_PROGRAMS, 0.85, "", "at least", full_only=True),
    Goal(_ENCLAVES, 0.85, "", "at least", full_only=True),
)


class Cas:
    """`strongroom cas start` at a port of its own, which can be stopped, killed and started again."""

    def __init__(self, directory: Path) -> None:
        self._log = directory / "cas.log"
        self._environment = {**os.environ, "STRONGROOM_HOME": str(directory / "operator")}
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None
        said = self.start()
        self.url, self.root = said[said.index("at") + 1], said[said.index("root") + 1]

    def start(self) -> list[str]:
        """The words that it prints once it answers."""
        with self._log.open("w") as log:
            command = [sys.executable, "-m", "strongroom", "cas", "start", "--port", str(self._port)]
            self._process = subprocess.Popen(command, env=self._environment, stdout=log, stderr=log)
        _until(lambda: "\nroot " in self._log.read_text(), "the CAS to start")
        return self._log.read_text().split()

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)
        if number == signal.SIGKILL:
            self._process.wait()

    def close(self) -> None:
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGKILL)


def _until(seen: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + _LIMIT
    while not seen():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {_LIMIT:.0f} s for {what}")
        time.sleep(0.02)


def _tests(name: str) -> Any:
    """A module of the enclaves' tests, which are not typed throughout."""
    return importlib.import_module(f"tests.enclave.{name}")


@contextmanager
def _world() -> Iterator[Any]:
    """A directory, a home, and the development CAS."""
    from strongroom.cli.workspace import Home

    enclaves = _tests("conftest")
    with tempfile.TemporaryDirectory() as folder:
        home = Home.open(Path(folder) / "home")
        enclaves.know_platform(home)
        with home.cas() as cas:
            yield enclaves.World(Path(folder), home, cas)


def away(fault: Fault) -> Seen:
    """Have replicas talk, and the CAS away."""
    from strongroom.cas.client.address import CasAddress
    from strongroom.cli.run.replicas import listener_of

    seen = Seen(fault)
    with _world() as world, ExitStack() as resources:
        cas = Cas(world.directory)
        resources.callback(cas.close)
        world = replace(world, cas=CasAddress(cas.url, cas.root))
        job = world.job(TALK, rules=(_tests("conftest").OUT,), vaults={"out": world.seal("out")}, replicas=3)
        jobs = [replace(job, events=[]) for _ in range(3)]
        logs = [world.directory / f"replica-{number}" for number in range(3)]
        times: dict[tuple[int, str], float] = {}

        def launch(number: int) -> Any:
            listener, endpoint = listener_of(None, world.cas)
            with logs[number].open("wb") as log:
                enclave = jobs[number].launch(
                    replica=number, listener=listener, endpoint=endpoint, stdout=log.fileno(), stderr=log.fileno()
                )
            resources.callback(enclave.stop)
            return enclave

        def told(number: int, word: str) -> bool:
            """Whether that replica's enclave has reported such an event, or a notice with that text."""
            events = list(jobs[number].events)
            found = any(word == name or (name == "notice" and word in detail["text"]) for name, detail in events)
            if found:
                times.setdefault((number, word), time.monotonic())
            return found

        enclaves = [launch(0), launch(1)]
        _until(lambda: "talks" in logs[1].read_text(), "two replicas to talk")
        cas.signal(signal.SIGSTOP if fault.stopped else signal.SIGKILL)
        began = time.monotonic()
        enclaves.append(launch(2))
        time.sleep(max(0.0, began + 0.6 * fault.seconds - time.monotonic()))
        enclaves[0].signal(signal.SIGUSR1)
        time.sleep(max(0.0, began + fault.seconds - time.monotonic()))
        for number, word in ((0, "sealed"), (2, "attested")):
            if told(number, word):
                seen.failures.append(f"replica {number} {word} while the CAS was away")
        if not told(2, "waiting for the CAS"):
            seen.failures.append("the newcomer did not say that it waits")
        if fault.stopped:
            cas.signal(signal.SIGCONT)
        else:
            cas.start()
        back = time.monotonic()
        _until(lambda: told(0, "sealed"), "the results to be sealed")
        _until(lambda: "came" in logs[2].read_text(), "the newcomer")
        seen.came = time.monotonic() - back
        for number, enclave in enumerate(enclaves):
            if status := enclave.wait():
                seen.failures.append(f"replica {number} ended with {status}: {logs[number].read_text()[-500:]}")
        seen.sealed = times.get((0, "sealed"), float("nan")) - back
        seen.silence = float(logs[1].read_text().partition("silent for ")[2].split()[0])
        sealed = job.vaults["out"]
        with world.owner() as client:
            sealed.anchor.advance(sealed.anchor.read(), client.anchor(job.policy.name, "out").read())
        with sealed.open() as opened:
            if opened.read_bytes("result") != b"of a run":
                seen.failures.append("another result was sealed than was written")
    return seen


def accuracy(victim: Any) -> float:
    """Of an elastic training whose replicas were killed; 0 if it did not end, or fewer were killed."""
    with _world() as world:
        digits = world.directory / "digits"
        command = [sys.executable, _EXAMPLES / "digits_files.py", digits, "--train", "300", "--test", "100"]
        subprocess.run(command, check=True, capture_output=True)
        ended = _tests("elastic").train(world, digits, victim, KILLS)
        results = _tests("test_frameworks").results
        return float(results(ended.job)["right"]) if (ended.status, ended.kills) == (0, KILLS) else 0.0


def measure(bench: Bench) -> None:
    """Measure every goal that `bench` wants."""
    if not sys.platform.startswith("linux"):
        raise NotImplementedError("mesh_faults: enclaves are launched on Linux alone")
    runs: list[Seen] = []
    try:
        for fault in (BRIEF, *FAULTS):
            names = [goal.name for goal in GOALS if goal.name.startswith(fault.name)]
            if bench.wants(*names):
                runs.append(seen := away(fault))
                for failure in seen.failures:
                    bench.say(f"{fault.name}: {failure}")
                for name in filter(bench.wants, names):
                    bench.record(name, seen.silence if name.endswith(_SILENCE) else len(seen.failures))
    finally:
        if runs:
            show(runs)
    for name, victim in ((_PROGRAMS, "program"), (_ENCLAVES, "enclave")):
        if bench.wants(name):
            bench.record(name, accuracy(victim))


def show(runs: Sequence[Seen]) -> None:
    """A row for each run."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for name in ("away", "failures", "longest silence ms", "sealed after s", "newcomer after s"):
        table.add_column(name, justify="left" if name == "away" else "right")
    for one in runs:
        table.add_row(
            one.fault.name, str(len(one.failures)), f"{1000 * one.silence:.0f}", f"{one.sealed:.1f}", f"{one.came:.1f}"
        )
    Console(highlight=False, width=120).print(table)
