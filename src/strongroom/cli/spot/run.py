"""`strongroom spot run`: a training that is really killed and started again along a trace, and its loss curve."""

from __future__ import annotations

import argparse
import os
import signal
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final

from rich.live import Live
from rich.text import Text

from strongroom.cli import output
from strongroom.cli.mirror.directory import places
from strongroom.cli.spot.verb import check_plot, describe_trace, hours, read_trace, show, trace_facts
from strongroom.errors import StrongroomError, UsageError, printable
from strongroom.mirror.restored import read
from strongroom.mirror.spot import Trace, curves
from strongroom.mirror.spot.host import LocalHost
from strongroom.mirror.spot.losses import Losses, pattern
from strongroom.mirror.spot.run import Course, Event
from strongroom.mirror.spot.run import run as walk
from strongroom.sealed import FileAnchor, load_key

_TOLD: Final = 5  # steps that came out differently are named


def run(args: argparse.Namespace) -> int:
    """Walk the trace, then report; the status is the command's, or that of what kept it from ending."""
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not command:
        raise UsageError(
            "command: none, wanted one after --", hint="strongroom spot run --trace FILE -- python train.py"
        )
    check_plot(args.plot)
    losses = Losses(pattern() if args.loss is None else pattern(args.loss))
    trace = read_trace(args)
    host = LocalHost(command)
    for line in describe_trace(trace, args):
        _tell(line)
    with _log(args.log) as log, _watching(trace, args.mirror, log) as watcher:
        course = walk(
            trace, args.bid, host, losses, speed=args.speed, boot_seconds=args.boot_seconds,
            notice_seconds=args.notice, skip_waiting=args.skip_waiting, limit=args.limit,
            first_hour_free=args.first_hour_free, tell=watcher.hear,
        )  # fmt: skip
    problem, status = _judge(course, losses, args, watcher.last)
    if args.plot is not None and losses.printed:
        args.plot.write_bytes(curves.png(losses, course, title=f"{args.trace.name}: {len(course.kills)} interruptions"))
    if args.json:
        wire = problem.to_wire() if problem else {}
        output.result(_facts(trace, args.bid, command, course, losses) | wire | {"exit_status": status})
        return status
    for line in _report(trace, course, losses):
        show(line)
    if args.plot is not None and losses.printed:
        output.note(f"drawn in {args.plot}")
    if problem:
        output.error(problem)
    return status


def _judge(course: Course, losses: Losses, args: argparse.Namespace, last: str) -> tuple[StrongroomError | None, int]:
    """What is wrong, if anything, and the exit status."""
    problem: StrongroomError | None = None
    if course.end == "stopped":
        return None, 128 + signal.SIGINT
    if course.end == "failed":
        status = course.status or 0
        how = f"ended with status {status}" if status > 0 else f"was ended by {_name(-status)}, which was not sent here"
        said = f"its output is in {args.log}" if args.log else f"it said last: {last}" if last else None
        return StrongroomError(f"command: {how}, in start {course.starts}", hint=said), _shell_status(status)
    if course.end in ("trace", "limit"):
        over = "the trace ended" if course.end == "trace" else f"the limit of {args.limit:g} s passed"
        again = losses.again if losses.printed else None
        stuck = course.starts > 1 and again is not None and again == sum(one.start > 1 for one in losses.printed)
        problem = UsageError(
            f"command: {over} before it did, after {course.starts} starts",
            hint="no start got farther than the first: a lower --speed gives each more time, a mirror keeps its work"
            if stuck
            else "a lower --speed, a higher --bid or a longer trace gives it more time",
        )
    elif losses.differing:
        problem = StrongroomError(
            f"losses: not the same curve: {_steps(len(losses.differing))} came out with another loss the second time",
            hint="is all that has a state in the mirror, and are the kernels deterministic?",
        )
    return problem, problem.exit_code if problem else 0


def _shell_status(status: int) -> int:
    return status if status >= 0 else 128 - status


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


# While it runs.


class _Watcher:
    """Tells a person what happens: lines for what counts, and on a terminal a last line that is always up to date."""

    def __init__(self, trace: Trace, mirror: Path | None, log: BinaryIO | None, live: Live | None) -> None:
        self._trace, self._mirror, self._log, self._live = trace, mirror, log, live
        self._starts = self._kills = 0
        self._state, self._loss = "", ""
        self._lines: deque[str] = deque(maxlen=1)

    @property
    def last(self) -> str:
        """The last line that the program printed."""
        return "".join(self._lines)

    def hear(self, event: Event) -> None:
        if event.kind == "said":
            self._said(event)
        elif event.kind == "waits":
            self._state = "no instance"
        elif event.kind == "boots":
            self._state = "booting"
        elif event.kind == "started":
            self._starts += 1
            self._state = "running"
            self._line(event, "started" if self._starts == 1 else f"started again ({self._starts})", "green")
        elif event.kind == "warned":
            self._state = "warned"
        elif event.kind == "killed":
            self._kills += 1
            self._state = "interrupted"
            self._line(event, f"interrupted ({self._kills}), {self._got_to()}", "yellow")
        if self._live is not None:
            self._live.update(self._now(event))

    def _said(self, event: Event) -> None:
        if event.line.strip():
            self._lines.append(event.line)
        if event.loss is not None:
            self._loss = f"step {event.loss.step:,}  loss {event.loss.text}"
        if self._log is not None:
            self._log.write(event.line.encode() + b"\n")
            self._log.flush()
        else:
            output.stderr.print(printable(event.line), markup=False, emoji=False, style="dim", soft_wrap=True)

    def _got_to(self) -> str:
        printed = self._loss.partition("  ")[0] or "no step yet"
        if self._mirror is None:
            return printed
        return f"{printed}; {_committed(self._mirror)}"

    def _line(self, event: Event, what: str, style: str) -> None:
        output.stderr.print(f"{self._when(event)}  {what}", markup=False, emoji=False, style=style, soft_wrap=True)

    def _when(self, event: Event) -> str:
        price = f"  {event.price:8.4g} USD/h" if self._trace.prices.any() else ""
        return f"{hours(event.time):>9} h{price}"

    def _now(self, event: Event) -> Text:
        kills = f"{self._kills} interruption{'' if self._kills == 1 else 's'}"
        shown = "  ".join((f"{self._when(event)}  {self._state}", kills, self._loss))
        return Text(printable(shown), style="bold", overflow="ellipsis", no_wrap=True)


def _committed(mirror: Path) -> str:
    """How far the mirror is, for a person. The program is not running."""
    file, key, anchor = places(mirror)
    if not all(path.exists() for path in (file, key, anchor)):
        return "the mirror is not there yet"
    try:
        with read(file, key=load_key(key), anchor=FileAnchor(anchor)) as restored:
            return f"the mirror is at step {restored.step:,}"
    except StrongroomError as error:
        return f"the mirror cannot be read: {error.message}"


@contextmanager
def _watching(trace: Trace, mirror: Path | None, log: BinaryIO | None) -> Iterator[_Watcher]:
    if not output.stderr.is_terminal:
        yield _Watcher(trace, mirror, log, None)
        return
    with Live(console=output.stderr, transient=True, refresh_per_second=8) as live:
        yield _Watcher(trace, mirror, log, live)


@contextmanager
def _log(path: Path | None) -> Iterator[BinaryIO | None]:
    if path is None:
        yield None
        return
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as file:
        yield file


def _tell(line: str) -> None:
    output.stderr.print(line, markup=False, emoji=False, soft_wrap=True)


# Afterwards.


def _report(trace: Trace, course: Course, losses: Losses) -> Iterator[str]:
    kills, ends = len(course.kills), {
        "done": "done", "failed": "the command failed", "trace": "the trace ended first",
        "limit": "the limit passed first", "stopped": "stopped",
    }  # fmt: skip
    yield f"{'ended':<16}{ends[course.end]}, after {hours(course.wall_seconds)} hours of the trace, {_real(course)}"
    yield f"{'interruptions':<16}{kills:,}, and {course.starts:,} start{'' if course.starts == 1 else 's'}"
    paid = f", {course.cost:,.2f} USD" if trace.prices.any() else ""
    yield f"{'instance':<16}{hours(course.running_seconds)} hours{paid}"
    if not losses.printed:
        yield f"{'losses':<16}no line of the output had a step and a loss; --loss REGEX says what such a line is like"
        return
    known = losses.curve()
    yield f"{'steps':<16}{len(known):,} with a loss, the last {max(known):,}"
    yield from _comparison(losses)
    numbers = curves.numbers(losses)
    steps = [kill.step for kill in course.kills if kill.step is not None]
    again = {loss.step for loss in losses.printed if loss.again}
    try:
        drawn = curves.text({"loss": numbers}, kills=steps, again=again)
    except UsageError as error:  # not a number among them
        yield f"{'curve':<16}{error.message}"
        return
    yield ""
    yield drawn


def _comparison(losses: Losses) -> Iterator[str]:
    if not losses.repeated:
        yield f"{'computed twice':<16}no step: no kill came between a loss and its commit"
        return
    if not losses.differing:
        every = "all " if losses.repeated > 1 else ""
        yield f"{'computed twice':<16}{_steps(losses.repeated)}, {every}with the same loss, digit for digit"
        return
    yield f"{'computed twice':<16}{_steps(losses.repeated)}, {len(losses.differing):,} of them with another loss:"
    for step, (first, other) in sorted(losses.differing.items())[:_TOLD]:
        yield f"{'':<16}step {step:,}: {first}, then {other}"
    if len(losses.differing) > _TOLD:
        yield f"{'':<16}and {len(losses.differing) - _TOLD:,} more"


def _steps(count: int) -> str:
    return f"{count:,} step{'' if count == 1 else 's'}"


def _real(course: Course) -> str:
    return f"{course.real_seconds:,.1f} s of real time"


def _facts(trace: Trace, bid: float | None, command: list[str], course: Course, losses: Losses) -> dict[str, Any]:
    return {
        "trace": trace_facts(trace, bid),
        "command": command,
        "ended": course.end,
        "command_status": course.status,
        "starts": course.starts,
        "interruptions": len(course.kills),
        "kills": [{"seconds": kill.time, "step": kill.step} for kill in course.kills],
        "wall_seconds": course.wall_seconds,
        "running_seconds": course.running_seconds,
        "cost_usd": course.cost,
        "real_seconds": course.real_seconds,
        "steps": len(losses.curve()),
        "steps_again": losses.repeated,
        "same_curve": not losses.differing if losses.repeated else None,
        "differing": {str(step): list(texts) for step, texts in sorted(losses.differing.items())},
        "losses": [
            {"start": one.start, "seconds": one.time, "step": one.step, "loss": one.text} for one in losses.printed
        ],
    }
