"""Three local processes of `strongroom mpc run`: start them, pass on what they say, and end them together."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final

from strongroom.cli import output
from strongroom.cli.mpc.dealer import read_dealer_policy
from strongroom.enclave.directories import directory_for_sockets
from strongroom.errors import ChannelError, MpcError, UnsupportedPlatformError, UsageError
from strongroom.mpc.peer import NAMES

ONE_DOMAIN: Final = (
    "three processes of one user on one machine are one trust domain, for trying things out; "
    "on three hosts each runs one party, with --rank and --peers"
)
_GRACE = 5.0  # seconds that the others have to notice that a party failed, and then to end when told to
_LONGEST = 1 << 16  # bytes of a line that is passed on at once
_KEPT = 400  # lines of a party that is not shown, in case it fails
_POLICY = "dealer.toml"
_DEALER = len(NAMES) - 1
_ENCLAVE_WAIT = 300  # seconds: the environment is measured, and PyTorch compiled from what was
_POLL = 0.05
_FOLLOWING = (ChannelError.exit_code, MpcError.exit_code)  # what a party ends with because another did

Event = tuple[int, int] | None  # a party and its exit status; or our own reader is gone


def run_three(args: argparse.Namespace, words: Sequence[str]) -> int:
    """Run all three parties, and return 0 or the exit status of the one that failed by itself."""
    if not hasattr(socket, "AF_UNIX"):
        raise UnsupportedPlatformError(
            "Unix sockets: not on this system", hint="run three parties with --rank and --peers, on 127.0.0.1"
        )
    shown = shown_parties(args.show)
    output.note(ONE_DOMAIN)
    short = directory_for_sockets()
    with tempfile.TemporaryDirectory(prefix="strongroom-mpc-", dir=short, ignore_cleanup_errors=True) as place:
        commands = [_command(args, words, rank, Path(place)) for rank in range(len(NAMES))]
        policy = Path(place) / _POLICY if args.dealer_enclave else None
        try:
            with _Parties(commands, _environment(args), shown, policy) as parties:
                if policy is not None and policy.exists():
                    output.note(f"the dealer's measurement is {read_dealer_policy(policy).measurements[0]}")
                ended = parties.outlast()
        finally:
            if args.report is not None:
                _merge(args.report, Path(place))
    return parties.blame(ended)


def shown_parties(text: str | None) -> list[int]:
    """The ranks in `P0,P1,D` or `all`; P0's if nothing is said. Raises UsageError."""
    words = [word.strip().upper() for word in (text or NAMES[0]).split(",")]
    if words == ["ALL"]:
        return list(range(len(NAMES)))
    if unknown := [word for word in words if word not in NAMES]:
        raise UsageError(f"--show: got {unknown[0][:20]!r}, wanted some of P0, P1 and D, or all")
    return [NAMES.index(word) for word in words]


def _command(args: argparse.Namespace, words: Sequence[str], rank: int, place: Path) -> list[str]:
    """The command line of one party. Without the current directory, in which modules of our names may lie."""
    command = [sys.executable, "-P", "-m", "strongroom", "mpc", "run"]
    command += ["--rank", str(rank), "--sockets", str(place)]
    if args.dealer_enclave:
        command += _dealer_options(args, rank, place)
    for name in ("settings", "timeout", "policy"):
        if (value := getattr(args, name)) not in (None, ""):
            command += [f"--{name}", str(value)]
    if args.audit is not None and rank < 2:
        command += ["--audit", f"{args.audit}.{NAMES[rank]}"]
    if args.report is not None and not (rank == _DEALER and args.dealer_enclave):
        command += ["--report", str(place / f"{NAMES[rank]}.json")]
    if args.debug:
        command.append("--debug")
    return [*command, *(["-m"] if args.module else []), *words]


def _dealer_options(args: argparse.Namespace, rank: int, place: Path) -> list[str]:
    options = ["--wait", str(_ENCLAVE_WAIT)]
    if rank != _DEALER:
        return [*options, "--dealer-policy", str(place / _POLICY)]
    options += ["--enclave", "--write-dealer-policy", str(place / _POLICY)]
    threads = args.threads or max(1, _cores() // len(NAMES))
    return [*options, "--threads", str(threads), *(f"--include={name}" for name in args.include)]


def _environment(args: argparse.Namespace) -> dict[str, str]:
    environment = dict(os.environ)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        if args.threads is not None or name not in environment:
            environment[name] = str(args.threads or max(1, _cores() // len(NAMES)))
    return environment


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Parties:
    """Three processes, each in a session of its own, so that Ctrl-C reaches them through us alone."""

    def __init__(
        self,
        commands: Sequence[Sequence[str]],
        environment: Mapping[str, str],
        shown: Sequence[int],
        policy: Path | None = None,
    ) -> None:
        self._policy = policy
        self._commands, self._environment, self._shown = commands, environment, shown
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._kept: dict[int, deque[bytes]] = {}
        self._processes: list[subprocess.Popen[bytes]] = []
        self._threads: list[threading.Thread] = []
        self._lifeline = -1

    def __enter__(self) -> _Parties:
        read, self._lifeline = os.pipe()
        try:
            ranks = list(range(len(self._commands)))
            if self._policy is not None:  # the dealer first: the servers read the policy that it writes
                ranks.remove(_DEALER)
                self._start(_DEALER, self._commands[_DEALER], read)
                while not self._policy.exists() and self._events.empty():
                    time.sleep(_POLL)
            for rank in ranks:
                self._start(rank, self._commands[rank], read)
        except BaseException:
            self.__exit__()
            raise
        finally:
            os.close(read)
        return self

    def __exit__(self, *error: object) -> None:
        """No process is left, whatever interrupts this."""
        try:
            self._signal(signal.SIGTERM)
            deadline = time.monotonic() + _GRACE
            for process in self._processes:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, deadline - time.monotonic()))
        finally:
            self._signal(signal.SIGKILL, also_ended=True)
            os.close(self._lifeline)
            for process in self._processes:
                process.wait()
            for thread in self._threads:
                thread.join(_GRACE)  # a program's own child may hold a pipe open

    def outlast(self) -> dict[int, int]:
        """The exit statuses by rank, in the order of the ends: of all three, or of those that ended once one failed.

        Raises:
            BrokenPipeError: whoever read our output left.
        """
        ended: dict[int, int] = {}
        deadline: float | None = None
        while len(ended) < len(self._processes):
            try:
                event = self._events.get(timeout=None if deadline is None else max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                break
            if event is None:
                raise BrokenPipeError
            ended[event[0]] = event[1]
            if event[1] and deadline is None:
                deadline = time.monotonic() + _GRACE
        return ended

    def blame(self, ended: Mapping[int, int]) -> int:
        """Say who failed by itself, if somebody did, and return its exit status."""
        failed = [(rank, code) for rank, code in ended.items() if code]
        if not failed:
            return 0
        # Of those that ended because another did, one that lost its connection knows more than one that was told.
        rank, code = min(failed, key=lambda each: _FOLLOWING.index(each[1]) if each[1] in _FOLLOWING else -1)
        for line in self._kept.get(rank, ()):
            sys.stderr.buffer.write(_prefix(rank) + line)
        sys.stderr.buffer.flush()
        if code < 0:
            output.error(
                MpcError(f"{NAMES[rank]}: was killed by {signal.Signals(-code).name}", hint="the others ended with it")
            )
            return 128 - code
        output.error(MpcError(f"{NAMES[rank]}: ended with status {code}"))
        return code

    def _start(self, rank: int, command: Sequence[str], lifeline: int) -> None:
        words = list(command)
        words[words.index("--sockets") : words.index("--sockets")] = ["--lifeline", str(lifeline)]
        alone, shown = self._shown == [rank], rank in self._shown
        process = subprocess.Popen(  # noqa: S603  # our own command
            words,
            env=dict(self._environment) if alone else {**self._environment, "PYTHONUNBUFFERED": "1"},
            stdin=None if rank == 0 else subprocess.DEVNULL,
            stdout=None if alone else subprocess.PIPE if shown else subprocess.DEVNULL,
            stderr=None if alone else subprocess.PIPE,
            pass_fds=[lifeline],
            start_new_session=True,
        )
        self._processes.append(process)
        if process.stdout is not None:
            self._follow(process.stdout, self._printing(rank, sys.stdout.buffer))
        if process.stderr is not None:
            kept = self._kept.setdefault(rank, deque(maxlen=_KEPT)) if not shown else None
            self._follow(process.stderr, kept.append if kept is not None else self._printing(rank, sys.stderr.buffer))
        thread = threading.Thread(target=lambda: self._events.put((rank, process.wait())), daemon=True)
        thread.start()

    def _follow(self, pipe: IO[bytes], take: Callable[[bytes], object]) -> None:
        def follow() -> None:
            with pipe:
                while line := pipe.readline(_LONGEST):
                    take(line)

        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        self._threads.append(thread)

    def _printing(self, rank: int, out: IO[bytes]) -> Callable[[bytes], None]:
        def take(line: bytes) -> None:
            with self._lock:
                try:
                    out.write(_prefix(rank) + line + (b"" if line.endswith(b"\n") else b"\n"))
                    out.flush()
                except (BrokenPipeError, ValueError):
                    self._events.put(None)

        return take

    def _signal(self, number: int, *, also_ended: bool = False) -> None:
        """Send a signal to each process and to its own children; to those that ended parties left, if asked to."""
        for process in self._processes:
            if also_ended or process.poll() is None:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, number)


def _prefix(rank: int) -> bytes:
    return f"{NAMES[rank]:2} | ".encode()


def _merge(report: Path, place: Path) -> None:
    """One report of the parties' own."""
    found: dict[str, Any] = {}
    for name in NAMES:
        with contextlib.suppress(OSError, ValueError):
            found[name] = json.loads((place / f"{name}.json").read_text())
    report.write_text(json.dumps({"parties": found}, indent=2) + "\n")
