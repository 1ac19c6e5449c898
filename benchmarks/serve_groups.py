"""Pipelines of processes with little memory each: what `serve` runs in enclaves, in control groups instead.

- A part is `serve_part.py`: the same stage, frames and TLS as in an enclave, without its boot.
- The limit is on what a process takes beyond what it held before it loads a model, or with ``hard`` on all of it. It is
  a control group's, with swap; where the machine has no swap, a swap file is made for the time. That takes root, or a
  delegated unit of systemd; without, UnavailableError says so.
- It is set once a model is loaded, and what is too much goes to swap then: ONNX Runtime holds a model two or three
  times while it loads it, faster than a disk takes it away, and the kernel would end the process.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from benchmarks import peers
from benchmarks.serve_part import RATE, pace
from strongroom.channel import Channel, Identity, TlsChannel, connect
from strongroom.errors import StrongroomError
from strongroom.serve.pipeline.cut import cut
from strongroom.serve.pipeline.document import Pipeline
from strongroom.serve.pipeline.link import Link
from strongroom.serve.pipeline.model import PipelineModel
from strongroom.serve.plan import Plan
from strongroom.serve.plan.paging_probe import paged_group, swap

SWAP = 2 << 30
PLENTY = 1 << 40
_TRIES = 100
_ANSWER_SECONDS = 600.0


class EndedError(Exception):
    """A part ended, or was not up in time: it takes more than it may."""


@contextlib.contextmanager
def swapping(beside: Path) -> Iterator[None]:
    """Swap for what follows. Raises UnavailableError where there can be no limit on memory."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(swap(beside, SWAP))
            stack.enter_context(paged_group(1 << 30))
        except StrongroomError as error:
            raise peers.UnavailableError(f"{error.message}; {error.hint or 'run it as root on Linux'}") from None
        yield


@contextlib.contextmanager
def running(
    model: bytes,
    plan: Plan,
    place: Path,
    *,
    limit: int | None,
    hard: bool = False,
    rate: int = 0,
    seconds: float = 120.0,
) -> Iterator[PipelineModel]:
    """A plan's stages, each in a process of its own; `infer` goes through all of them.

    Args:
        place: a directory for their files.
        limit: bytes that each may take; None for no limit.
        hard: the limit is on all that a process holds.
        rate: bytes a second between the front door and each part, in each direction; 0 for what the machine does.
        seconds: that one may take to load its model.

    Raises:
        EndedError: one ended, or took longer.
    """
    pieces = cut(model, plan)
    policies = tuple(f"benchmark/part-{number}" for number in range(1, len(plan.stages) + 1))
    pipeline = pieces.pipeline("model", front="benchmark/front", policies=policies)
    document = place / "pipeline.json"
    document.write_text(pipeline.to_text())
    with contextlib.ExitStack() as stack:
        doors, processes = [], []
        for number in range(1, len(plan.stages) + 1):
            file = place / f"part-{number}.onnx"
            file.write_bytes(pieces.models[number - 1])
            doors.append(Path("-") if limit is None else stack.enter_context(paged_group(PLENTY)))
            words = [str(doors[-1]), str(document), str(number), str(file), *(["hard"] if hard else [])]
            processes.append(stack.enter_context(_part(words, rate)))
        ports = [_port(process, number, seconds) for number, process in enumerate(processes, 1)]
        for door in doors if limit else ():
            lower(door, limit or 0)
        links = [_link(pipeline, number, port, rate) for number, port in enumerate(ports, 1)]
        served = PipelineModel(pipeline, links, deadline=_ANSWER_SECONDS)
        stack.callback(served.close)
        for number, link in enumerate(links, 1):
            if not link.wait(seconds):
                raise EndedError(f"part {number} does not answer")
        yield served


def lower(door: Path, limit: int) -> None:
    """Set a group's limit below what it holds: the kernel swaps until it fits."""
    for file in ("memory.limit_in_bytes", "memory.max"):
        if (door.parent / file).exists():
            for _ in range(_TRIES):
                with contextlib.suppress(OSError):  # busy: swap did not take so much at once
                    (door.parent / file).write_text(str(limit))
                    return
    raise EndedError(f"control group: cannot be held to {limit} bytes")


@contextlib.contextmanager
def _part(words: list[str], rate: int) -> Iterator[subprocess.Popen[str]]:
    env = {**os.environ, RATE: str(rate)}
    command = [sys.executable, "-m", "benchmarks.serve_part", *words]
    with subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def _port(process: subprocess.Popen[str], number: int, seconds: float) -> int:
    assert process.stdout is not None and process.stderr is not None  # pipes
    late = threading.Timer(seconds, process.kill)
    late.start()
    try:
        line = process.stdout.readline()
    finally:
        late.cancel()
    if not line:
        process.wait()
        said = process.stderr.read().strip()[-300:]
        raise EndedError(f"part {number}: ended with status {process.returncode} while it loaded: {said}")
    return int(line)


def _link(pipeline: Pipeline, number: int, port: int, rate: int) -> Link:
    identity = Identity.fresh("front", now=dt.datetime.now(dt.UTC))

    def dial() -> Channel:
        sock = socket.create_connection(("127.0.0.1", port))
        pace(sock, rate)
        stream = connect(sock, expect=lambda chain: None, identity=identity)
        return TlsChannel(stream, f"part {number}", seconds=_ANSWER_SECONDS)

    return Link(pipeline, number, dial, tell=lambda text: None)
