"""A running `strongroom serve`, plain ONNX Runtime beside it, and clients that ask as often as they can.

- The service is the command that a person types: its own home, a sealed model, an enclave, TLS 1.3, clients that
  appraise. Whoever asks runs on the same cores.
- Plain ONNX Runtime is a process of its own with as many threads, at its defaults otherwise (`plain_onnx.py`).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from benchmarks.enclave_runs import PROGRAMS, Runs, Talk

Arrays = Mapping[str, npt.NDArray[Any]]
CORES = 2
_ALL_CORES = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set[int]()
_START_SECONDS = 240.0
_END_SECONDS = 90.0


class Turn(NamedTuple):
    """What was answered in one turn.

    Attributes:
        rate: answers a second.
        ms: the median time of one from call to return.
    """

    rate: float
    ms: float


@dataclass(frozen=True)
class Service:
    """One that runs.

    Attributes:
        url, policy: as it told them.
        home: with its CAS.
        seconds: from the command to the line that says it serves.
        attested: from the command to the line that says that it has its keys.
        process: the launcher's number.
    """

    url: str
    policy: str
    home: Path
    seconds: float
    attested: float
    process: int

    def client(self, **more: Any) -> Any:
        """A client that has taken the policy from the CAS. A context manager."""
        return self.clients(**more)()

    def clients(self, **more: Any) -> Callable[[], Any]:
        """What makes clients that know the policy, each of which has seen nothing of the service."""
        from strongroom.cas.client.address import ADDRESS_FILE, CasAddress
        from strongroom.cas.client.owner import OwnerClient
        from strongroom.serve import Client

        address = CasAddress.load(self.home / "cas" / ADDRESS_FILE)
        with OwnerClient(address.url, cas_root=address.cas_root) as owner:
            reference = owner.policy(self.policy).reference
        known = {"cas_root": address.cas_root, "policy": self.policy, "reference": reference, **more}
        return lambda: Client(self.url, **known)


@contextlib.contextmanager
def service(place: Runs, model: Path, *options: str) -> Iterator[Service]:
    """Seal a model and serve it until the end of the block."""
    sealed = place.directory / f"{model.name}.vault"
    if not sealed.exists():
        if not (place.directory / model.name).exists():
            os.link(model, place.directory / model.name) if _same_disk(model, place.directory) else shutil.copy(
                model, place.directory / model.name
            )
        place.run([sys.executable, "-m", "strongroom", "seal", model.name])
    command = [sys.executable, "-m", "strongroom", "serve", sealed.name, "--port", "0", "--json", *options]
    began = time.perf_counter()
    with subprocess.Popen(
        command,
        cwd=place.directory,
        env=place.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        attested, notes = [0.0], deque[str](maxlen=20)

        def listen() -> None:
            assert process.stderr is not None  # a pipe
            for line in process.stderr:
                notes.append(line)
                if "attested" in line and not attested[0]:
                    attested[0] = time.perf_counter() - began

        listener = threading.Thread(target=listen, daemon=True)
        listener.start()
        late = threading.Timer(_START_SECONDS, process.kill)
        late.start()
        try:
            told = _told(process)
        finally:
            late.cancel()
        if "url" not in told:
            process.kill()
            listener.join()
            raise RuntimeError(f"{' '.join(command)}: {told} {''.join(notes)}")
        took = time.perf_counter() - began
        try:
            yield Service(told["url"], told["policy"], place.home, took, attested[0], process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_END_SECONDS)
            process.kill()


def _told(process: subprocess.Popen[str]) -> dict[str, Any]:
    """The JSON object, over several lines, that the command prints; empty if it ended without one."""
    assert process.stdout is not None  # a pipe
    lines: list[str] = []
    while not lines or lines[-1].rstrip() != "}":
        lines.append(process.stdout.readline())
        if not lines[-1]:
            return {}
    told: dict[str, Any] = json.loads("".join(lines))
    return told


def descendants(process: int) -> list[int]:
    """The numbers of the processes that descend from one, without itself."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    found = {process}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return sorted(found - {process})


def processor_seconds(process: int) -> float:
    """What a process and its descendants have taken of processors so far."""
    ticks = 0
    for number in (process, *descendants(process)):
        with contextlib.suppress(OSError):
            words = Path("/proc", str(number), "stat").read_text().rpartition(")")[2].split()
            ticks += int(words[11]) + int(words[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _same_disk(one: Path, other: Path) -> bool:
    return one.stat().st_dev == other.stat().st_dev


class Plain:
    """ONNX Runtime alone, in a process of its own. A context manager."""

    def __init__(self, place: Runs, model: Path, *, threads: int, inputs: Path) -> None:
        command = [sys.executable, str(PROGRAMS / "plain_onnx.py"), str(model), str(threads), str(inputs)]
        self._talk = Talk(command, place)

    def __enter__(self) -> Plain:
        self._talk.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._talk.__exit__(*error)

    def hammer(self, seconds: float, at_once: int) -> Turn:
        return Turn(*self._talk.ask(seconds, at_once))


def hammer(once: Any, seconds: float, at_once: int) -> Turn:
    """Call `once` from `at_once` threads until `seconds` are over."""
    durations: list[list[float]] = [[] for _ in range(at_once)]
    began = time.perf_counter()
    troubles: list[BaseException] = []

    def work(mine: list[float]) -> None:
        now = time.perf_counter()
        try:
            while now < began + seconds:
                once()
                after = time.perf_counter()
                mine.append(after - now)
                now = after
        except BaseException as error:
            troubles.append(error)

    threads = [threading.Thread(target=work, args=(mine,)) for mine in durations]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if troubles:
        raise troubles[0]
    every = [duration for mine in durations for duration in mine]
    return Turn(len(every) / (time.perf_counter() - began), 1000 * statistics.median(every))


def inputs_of(model: Path, batch: int = 1) -> dict[str, npt.NDArray[Any]]:
    """Random inputs of a model, of floats; open sizes are `batch`."""
    import onnx

    graph = onnx.load(model, load_external_data=False).graph
    weights = {each.name for each in graph.initializer}
    rng = np.random.default_rng(1)
    found = {}
    for each in graph.input:
        if each.name not in weights:
            shape = [size.dim_value or batch for size in each.type.tensor_type.shape.dim]
            found[each.name] = rng.standard_normal(shape).astype(np.float32)
    return found


@contextlib.contextmanager
def pinned(cores: int = CORES) -> Iterator[None]:
    """Keep this process, and what it starts, on the first cores that it may use."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, set(sorted(before)[:cores]))
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def apart() -> Iterator[None]:
    """Where there are other cores than the `pinned` ones, keep this process, a client, on those."""
    others = sorted(_ALL_CORES)[CORES:]
    if not others:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, set(others))
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def saved(inputs: Arrays, path: Path) -> Path:
    """The inputs in a file, for a process of its own."""
    np.savez(path, **inputs)  # type: ignore[arg-type]
    return path


def medians(turns: Sequence[Turn]) -> Turn:
    """Of several turns."""
    return Turn(statistics.median(each.rate for each in turns), statistics.median(each.ms for each in turns))
