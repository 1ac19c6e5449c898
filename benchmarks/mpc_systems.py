"""Who is measured by `benchmarks.mpc`, and how: the processes of all parties, started, asked to run, and ended.

- Every party is a process of its own on this machine. A run begins when the first party begins and ends when the last
  has its share of the result; inputs are shared before it, results are opened after it.
- A party that takes longer than a limit is ended, and the row says so.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from benchmarks import peers
from benchmarks.mpc_peers.workloads import Floats, Row, Turn

ROOT = Path(__file__).parent.parent

CRYPTEN = (
    "--no-deps",  # one of its requirements has a name that cannot be installed any more
    *("crypten==0.4.1", "torch==2.13.0", "numpy==2.4.6", "pyyaml==6.0.4", "omegaconf==2.3.0"),
    *("antlr4-python3-runtime==4.9.3", "filelock", "typing-extensions", "sympy", "mpmath", "networkx", "jinja2"),
    *("markupsafe", "fsspec"),
)
SPU = ("spu==0.9.5",)


class TooSlowError(Exception):
    """A run was ended before it was done."""


class FailedError(Exception):
    """A party ended by itself; the text is what it said last."""


@dataclass(frozen=True)
class System:
    """One way to compute on shares.

    Attributes:
        name: as the table calls it.
        module: of each party, run as ``python -m``.
        parties: how many processes.
        requirements: of an environment of its own; ours has none.
        variant: of the module, which knows what that means.
        environment: the name of the environment.
    """

    name: str
    module: str
    parties: int
    requirements: Sequence[str] = ()
    variant: str = ""
    environment: str = ""

    def python(self, *, make: bool) -> Path:
        """The interpreter. Raises `peers.UnavailableError`."""
        if not self.requirements:
            return Path(sys.executable)
        return peers.environment(self.environment, self.requirements, make=make)


OURS = System("Strongroom", "benchmarks.mpc_ours", 3, variant="unix")
OURS_TLS = System("Strongroom, TLS", "benchmarks.mpc_ours", 3, variant="tls")
OURS_OWNED = System("Strongroom, P1's weights", "benchmarks.mpc_ours", 3, variant="unix-owned")
PEERS: dict[str, System] = {
    "semi2k": System("SPU semi2k", "benchmarks.mpc_peers.spu_party", 2, SPU, "semi2k", "spu"),
    "aby3": System("SPU ABY3", "benchmarks.mpc_peers.spu_party", 3, SPU, "aby3", "spu"),
    "crypten": System("CrypTen", "benchmarks.mpc_peers.crypten_party", 2, CRYPTEN, "tfp", "crypten"),
    "crypten-ttp": System("CrypTen, third party", "benchmarks.mpc_peers.crypten_party", 3, CRYPTEN, "ttp", "crypten"),
}


@dataclass
class Measured:
    """All runs of one system on one row; bytes and rounds are of one run.

    Attributes:
        seconds: of each run.
        processor: seconds of each party that says so, of each run.
        sent: bytes of payload by each party.
        peaks_mib: the most memory that each party took, by rank.
        trouble: why there is no more.
        single: it was too slow to be run again: the first run is the one that counts.
    """

    seconds: list[float] = field(default_factory=list)
    processor: list[list[float]] = field(default_factory=list)
    sent: list[int | None] = field(default_factory=list)
    rounds: int | None = None
    peaks_mib: list[float] = field(default_factory=list)
    error: float | None = None
    trouble: str | None = None
    single: bool = False


Command = Callable[[int, Sequence[str]], Sequence[str]]


class Group:
    """The running parties of one system, which hold one row's values.

    Args:
        place: puts a party's command somewhere else, by its rank: for namespaces.
        hosts: where the parties find each other, by rank; this machine's loopback by default.
    """

    def __init__(
        self,
        system: System,
        row: Row,
        python: Path,
        *,
        seconds: float = 300,
        place: Command = lambda rank, command: command,
        hosts: Sequence[str] = ("127.0.0.1",) * 3,
    ) -> None:
        self._system, self._row, self._seconds = system, row, seconds
        self._folder = tempfile.TemporaryDirectory(prefix="mpc")  # mode 0700
        self.directory = Path(self._folder.name)
        self._logs = [(self.directory / f"{rank}.log").open("wb") for rank in range(system.parties)]
        self._children: list[subprocess.Popen[bytes]] = []
        self._buffers = [b"" for _ in range(system.parties)]
        ports = _free_ports(system.parties)
        environ = {**os.environ, "PYTHONWARNINGS": "ignore"}
        if system.requirements:
            environ.pop("PYTHONPATH", None)  # that is for our interpreter
        try:
            for rank in range(system.parties):
                command = [str(python), "-m", system.module, "--row", row.name, "--rank", str(rank)]
                command += ["--directory", str(self.directory), "--variant", system.variant]
                for host, port in zip(hosts, ports, strict=False):
                    command += ["--host", host, "--port", str(port)]
                self._children.append(
                    subprocess.Popen(
                        place(rank, command),
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        stderr=self._logs[rank],
                        cwd=ROOT,
                        env=environ,
                    )
                )
            ready = self._answers(range(system.parties))
        except BaseException:
            self.close()
            raise
        self._asked = [rank for rank in range(system.parties) if ready[rank].get("ready") == "asked"]

    def run(self) -> dict[int, Turn]:
        """Once; by rank, of the parties that tell. Raises TooSlowError or FailedError."""
        self._tell("run")
        return {rank: Turn(**facts) for rank, facts in sorted(self._answers(self._asked).items())}

    def finish(self) -> tuple[Floats, list[float]]:
        """The last run's result, and each party's peak memory in MiB, by rank. Raises as `run`."""
        self._tell("finish")
        answers = self._answers(range(self._system.parties))
        peaks = [float(answers[rank]["peak_mib"]) for rank in sorted(answers)]
        result: Floats = np.load(self.directory / "result.npy", allow_pickle=False)
        return result, peaks

    def close(self) -> None:
        """End every party that still runs."""
        for child in self._children:
            if child.stdin is not None:
                with contextlib.suppress(BrokenPipeError):
                    child.stdin.close()
        deadline = time.monotonic() + 3
        for child in self._children:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(max(deadline - time.monotonic(), 0.01))
            child.kill()
            child.wait()
            if child.stdout is not None:
                child.stdout.close()
        for log in self._logs:
            log.close()
        self._folder.cleanup()

    def _tell(self, word: str) -> None:
        for rank in self._asked:
            stdin = self._children[rank].stdin
            assert stdin is not None  # opened above
            try:
                stdin.write(f"{word}\n".encode())
                stdin.flush()
            except BrokenPipeError:
                raise FailedError(self._said(rank)) from None

    def _answers(self, ranks: Sequence[int] | range) -> dict[int, dict[str, Any]]:
        """One line of each."""
        answers: dict[int, dict[str, Any]] = {}
        deadline = time.monotonic() + self._seconds
        with selectors.DefaultSelector() as selector:
            for rank in ranks:
                selector.register(self._stream(rank), selectors.EVENT_READ, rank)
            while len(answers) < len(ranks):
                ready = selector.select(max(deadline - time.monotonic(), 0))
                if not ready:
                    raise TooSlowError(f"longer than {self._seconds:g} s")
                for key, _ in ready:
                    rank = key.data
                    piece = os.read(key.fd, 1 << 16)
                    if not piece:
                        raise FailedError(self._said(rank))
                    self._buffers[rank] += piece
                    if b"\n" in self._buffers[rank]:
                        line, _, self._buffers[rank] = self._buffers[rank].partition(b"\n")
                        answers[rank] = json.loads(line)
                        selector.unregister(key.fileobj)
        return answers

    def _stream(self, rank: int) -> IO[bytes]:
        stdout = self._children[rank].stdout
        assert stdout is not None  # opened above
        return stdout

    def _said(self, rank: int) -> str:
        self._logs[rank].flush()
        lines = (self.directory / f"{rank}.log").read_text(errors="replace").strip().splitlines()
        return f"{self._system.name}, party {rank}: {lines[-1][:300] if lines else 'ended without a word'}"


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on just now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("", 0))
        return [each.getsockname()[1] for each in sockets]


def elapsed(turns: Mapping[int, Turn]) -> float:
    """Seconds from the first party's beginning to the last one's end."""
    return max(turn.ended for turn in turns.values()) - min(turn.began for turn in turns.values())


@dataclass(frozen=True)
class Plan:
    """How often, and for how long.

    Attributes:
        rounds: runs that count.
        budget: seconds for a row, after which no further round begins.
        patience: seconds; who needed more for the first run is not run again.
        limit: seconds for one run.
        turn: seconds; what is quick is run several times in a turn, of which the median counts: everybody is as warm.
    """

    rounds: int = 7
    budget: float = 90
    patience: float = 60
    limit: float = 300
    turn: float = 0.3


class Contest:
    """One row, measured in turns: each round, every system runs once.

    Args:
        reference: the error of a result, from float64.
    """

    def __init__(self, row: Row, pythons: Mapping[System, Path], plan: Plan, reference: Callable[[Floats], float]):
        self._row, self._pythons, self._plan, self._reference = row, pythons, plan, reference
        self.measured = {system: Measured() for system in pythons}

    def measure(self) -> dict[System, Measured]:
        """Everything; what goes wrong with a peer is in its `Measured`."""
        if self._row.large:
            for system in self._pythons:
                self._measure([system])
        else:
            self._measure(list(self._pythons))
        return self.measured

    def _measure(self, systems: Sequence[System]) -> None:
        with contextlib.ExitStack() as stack:
            groups: dict[System, Group] = {}
            for system in systems:
                with self._noting(system):
                    groups[system] = Group(system, self._row, self._pythons[system], seconds=self._plan.limit)
                    stack.callback(groups[system].close)
            alive = list(groups)
            began = time.monotonic()
            times: dict[System, int] = {}
            for system in list(alive):  # warm up
                if not self._turn(system, groups[system], alive):
                    continue
                kept = self.measured[system]
                kept.single = kept.seconds[0] > self._plan.patience
                if kept.single:
                    continue
                if kept.seconds[0] < 10 * self._plan.turn and not self._turn(system, groups[system], alive):
                    continue
                times[system] = min(max(round(self._plan.turn / kept.seconds[-1]), 1), 20)
                kept.seconds.clear()
                kept.processor.clear()
            again = [system for system in alive if system in times]
            for done in range(self._plan.rounds):
                if done and time.monotonic() - began > self._plan.budget:
                    break
                for system in list(again):
                    self._turn(system, groups[system], again, times[system])
            for system, group in groups.items():
                if self.measured[system].trouble is None:
                    with self._noting(system):
                        result, self.measured[system].peaks_mib = group.finish()
                        self.measured[system].error = self._reference(result)

    def _turn(self, system: System, group: Group, running: list[System], times: int = 1) -> bool:
        """So many runs, of which the median counts; a system that fails is no longer `running`."""
        with self._noting(system):
            runs = [group.run() for _ in range(times)]
            kept = self.measured[system]
            kept.seconds.append(statistics.median(map(elapsed, runs)))
            processor = zip(*([turn.processor for turn in turns.values()] for turns in runs), strict=True)
            kept.processor.append([statistics.median(each) for each in processor])
            kept.sent = [turn.sent for turn in runs[-1].values()]
            kept.rounds = runs[-1][0].rounds
            return True
        running.remove(system)
        return False

    @contextlib.contextmanager
    def _noting(self, system: System) -> Iterator[None]:
        try:
            yield
        except (TooSlowError, FailedError) as error:
            self.measured[system].trouble = str(error)
