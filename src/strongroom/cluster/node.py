"""One node of a Ray cluster, as the program of an enclave.

::

    python -m strongroom.cluster.node [--patience S] [--slots N] [--store BYTES] -- python train.py ...

Which node it is, how many there are and where the head is stand in ``RANK``, ``WORLD_SIZE`` and ``MASTER_ADDR``, as a
launcher of several replicas sets them. Node 0 is the head: it waits until all others have joined, runs the job beside
them with ``RAY_ADDRESS`` set, and ends the cluster with the job's exit status. The job is measured with every node: it
is the same program.

Whatever does not come about within the patience is an error of every node, and each says which: a head that cannot be
reached, nodes that do not come, Ray that does not start.
"""

from __future__ import annotations

import argparse
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from types import FrameType
from typing import NoReturn, Self

from strongroom.cluster.processes import GCS_PORT, ROLL_PORT, TOKEN, start_command, variables
from strongroom.cluster.roll import Head, Member
from strongroom.errors import EnclaveError, MissingDependencyError, StrongroomError, UsageError

PATIENCE = 120.0
STORE_BYTES = 256 << 20
_GRACE, _LOOK = 10.0, 0.5
_LAST_LINES, _LAST_BYTES = 6, 4096


@dataclass(frozen=True)
class Place:
    """Which node this is, of how many, and their addresses."""

    number: int
    nodes: int
    head: str
    own: str

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Place:
        """From a replica's variables.

        Raises:
            UsageError: one is missing, or out of its range.
            EnclaveError: a name of theirs has no address.
        """
        nodes = _number(environment, "WORLD_SIZE", 1, 1000)
        number = _number(environment, "RANK", 0, nodes - 1)
        head = _address(environment.get("MASTER_ADDR", "localhost"))
        return cls(number, nodes, head, head if number == 0 else _address(socket.gethostname()))


def _number(environment: Mapping[str, str], name: str, least: int, most: int) -> int:
    text = environment.get(name, "")
    if not (text.isascii() and text.isdigit() and len(text) < 10 and least <= int(text) <= most):
        raise UsageError(
            f"{name}: got {text[:20] or 'none'}, wanted {least} to {most}", hint="strongroom ray up sets it"
        )
    return int(text)


def _address(name: str) -> str:
    try:
        return str(socket.getaddrinfo(name, None, socket.AF_INET, socket.SOCK_STREAM)[0][4][0])
    except OSError as error:
        raise EnclaveError(f"ray: {name}: {(error.strerror or str(error)).lower()}") from None


@dataclass(frozen=True)
class Settings:
    """What the command line says of a node."""

    job: Sequence[str]
    patience: float = PATIENCE
    slots: int = 1
    store_bytes: int = STORE_BYTES


def run(place: Place, settings: Settings) -> int:
    """Be that node; the job's exit status.

    Raises:
        EnclaveError: the cluster did not come about, or ended before the job.
    """
    if place.number == 0:
        return _head(place, settings)
    end = time.monotonic() + settings.patience
    with Member.answer(place.head, ROLL_PORT, place.number, patience=settings.patience) as member:
        return _member(place, settings, member, end)


def _head(place: Place, settings: Settings) -> int:
    token = os.environ.get(TOKEN) or secrets.token_hex(32)
    environment = variables(dict(os.environ), head=place.head, token=token, patience=settings.patience)
    end = time.monotonic() + settings.patience
    with Head(place.own, ROLL_PORT, place.nodes) as head, Ray(place, settings, environment, end) as ray:
        # The other nodes learn the token once there is something to join.
        _await_listening(place, ray, end)
        head.call(token, patience=max(1.0, end - time.monotonic()))
        _await_joined(place, settings, environment, ray, head, end)
        _say(f"ray: {place.nodes} nodes have joined")
        status = _job(settings.job, environment, ray, head)
        head.end(status)
    return status


def _await_listening(place: Place, ray: Ray, end: float) -> None:
    while time.monotonic() < end:
        ray.check()
        with socket.socket() as probe:
            probe.settimeout(1)
            if probe.connect_ex((place.own, GCS_PORT)) == 0:
                return
        time.sleep(_LOOK / 5)
    raise EnclaveError(f"ray: does not listen on port {GCS_PORT} in time{ray.last_words()}")


def _await_joined(
    place: Place, settings: Settings, environment: Mapping[str, str], ray: Ray, head: Head, end: float
) -> None:
    with tempfile.TemporaryFile() as said:
        count = [sys.executable, "-m", "strongroom.cluster.joined", str(place.nodes)]
        counting = subprocess.Popen(count, env=environment, stdout=said, stderr=subprocess.DEVNULL)  # noqa: S603
        try:
            while counting.poll() is None:
                ray.check()
                head.check()
                if time.monotonic() >= end:
                    said.seek(0)
                    there = (said.read().split() or [b"none"])[-1].decode("ascii", "replace")
                    late = f"{there} of {place.nodes} nodes joined within {settings.patience:g} s"
                    raise EnclaveError(f"ray: {late}", hint="--patience SECONDS, on a slow machine")
                time.sleep(_LOOK / 5)
        finally:
            _stop(counting)
    if counting.returncode != 0:
        raise EnclaveError(f"ray: its nodes cannot be counted{ray.last_words()}")


def _job(command: Sequence[str], environment: Mapping[str, str], ray: Ray, head: Head) -> int:
    """The job's exit status, 128 + n if signal n ended it."""
    words = [sys.executable, *command[1:]] if command[0] in ("python", "python3") else list(command)
    try:
        job = subprocess.Popen(words, env=environment)  # noqa: S603  # the measured command
    except OSError as error:
        raise EnclaveError(f"command: {command[0]}: {(error.strerror or str(error)).lower()}") from None
    try:
        while True:
            try:
                code = job.wait(_LOOK)
            except subprocess.TimeoutExpired:
                ray.check()
                head.check(_say)
                continue
            return code if code >= 0 else 128 - code
    finally:
        _stop(job)


def _member(place: Place, settings: Settings, member: Member, end: float) -> int:
    environment = variables(dict(os.environ), head=place.head, token=member.token, patience=settings.patience)
    with Ray(place, settings, environment, end) as ray:
        while (status := member.ended(_LOOK)) is None:
            try:
                ray.check()
            except EnclaveError as error:
                member.fail(error.message)
                raise
    return status


class Ray:
    """Ray's processes of this node, and what they have said; a context, which they end with.

    Ray gives a node 30 seconds to begin, whatever the machine (``ray/_private/node.py``), and then ends it: until the
    patience is over it is started again.
    """

    def __init__(self, place: Place, settings: Settings, environment: Mapping[str, str], end: float) -> None:
        """
        Args:
            end: until when it may be started again, by the monotonic clock.
        """
        self._command = start_command(
            head=place.head, own=place.own, slots=settings.slots, store_bytes=settings.store_bytes
        )
        self._environment, self._end = environment, end

    def __enter__(self) -> Self:
        self._log = tempfile.TemporaryFile()
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        _stop(self._process)
        self._log.close()

    def _start(self) -> None:
        self._log.seek(0)
        self._log.truncate()
        log = self._log.fileno()
        self._process = subprocess.Popen(self._command, env=self._environment, stdout=log, stderr=log)  # noqa: S603

    def check(self) -> None:
        """Raises EnclaveError if they have ended, and it is too late to begin again."""
        status = self._process.poll()
        if status is None:
            return
        if time.monotonic() > self._end:
            raise EnclaveError(f"ray: ended with status {status}{self.last_words()}")
        _say("ray: did not begin in its time, and is started again")
        self._start()

    def last_words(self) -> str:
        size = os.fstat(self._log.fileno()).st_size
        said = os.pread(self._log.fileno(), _LAST_BYTES, max(0, size - _LAST_BYTES)).decode("utf-8", "replace")
        lines = [line.strip() for line in said.splitlines() if line.strip(" -^")]
        return f": {' | '.join(lines[-_LAST_LINES:])}" if lines else ""


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _say(text: str) -> None:
    print(f"strongroom: {text}", file=sys.stderr, flush=True)


def _settings(arguments: Sequence[str]) -> Settings:
    parser = argparse.ArgumentParser(prog="strongroom.cluster.node", description="One node of a Ray cluster.")
    parser.add_argument("--patience", type=float, default=PATIENCE)
    parser.add_argument("--slots", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--store", type=int, default=STORE_BYTES, metavar="BYTES")
    parser.add_argument("job", nargs=argparse.REMAINDER)
    given = parser.parse_args(arguments)
    job = given.job[1:] if given.job[:1] == ["--"] else given.job
    if not job:
        raise UsageError("command: give the job's after --")
    return Settings(job, given.patience, given.slots, given.store)


def main(arguments: Sequence[str], run: Callable[[Place, Settings], int] = run) -> int:
    """The exit status; errors are said as the command line says them."""
    signal.signal(signal.SIGTERM, _ended)
    try:
        settings = _settings(arguments)
        if find_spec("ray") is None:
            raise MissingDependencyError("ray is not installed", hint="pip install 'strongroom[ray]'")
        return run(Place.of(os.environ), settings)
    except StrongroomError as error:
        print(f"strongroom: error: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"    {error.hint}", file=sys.stderr)
        return error.exit_code


def _ended(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
