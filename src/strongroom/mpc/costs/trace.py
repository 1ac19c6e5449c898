"""What ran when, as files for viewers: the Trace Event Format, and TensorBoard's.

The first is Google's "Trace Event Format": a JSON object whose `traceEvents` are complete events (`ph` X, with times in
microseconds) and metadata (`ph` M) that name processes and threads. Perfetto, chrome://tracing and Speedscope open it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from strongroom.errors import FormatError, MissingDependencyError, UsageError
from strongroom.mpc.costs.figures import Row
from strongroom.mpc.peer import NAMES

_MOST = 1 << 30  # bytes of a file to merge


@dataclass(frozen=True)
class Span:
    """Something with a beginning and an end.

    Attributes:
        start: in seconds since 1970.
        seconds: it lasted.
        facts: shown beside it.
    """

    name: str
    kind: str
    start: float
    seconds: float
    facts: Mapping[str, object]


def write_trace(path: Path, rank: int, rows: Mapping[str, Sequence[Span]]) -> None:
    """One party's spans, a row of the viewer for each kind. Processes and rows count from 1: 0 is the idle process."""
    process = rank + 1
    events: list[dict[str, Any]] = [_about("process_name", process, 0, name=NAMES[rank])]
    events.append(_about("process_sort_index", process, 0, sort_index=rank))
    for thread, (name, spans) in enumerate(rows.items(), 1):
        events.append(_about("thread_name", process, thread, name=name))
        events.append(_about("thread_sort_index", process, thread, sort_index=thread))
        for each in sorted(spans, key=lambda span: (span.start, -span.seconds)):
            events.append(
                {
                    "name": each.name,
                    "cat": each.kind or name,
                    "ph": "X",
                    "pid": process,
                    "tid": thread,
                    "ts": round(each.start * 1e6, 1),
                    "dur": round(each.seconds * 1e6, 1),
                    "args": dict(each.facts),
                }
            )
    _write(path, events)


def merge_traces(paths: Iterable[Path | str], to: Path | str) -> None:
    """One file out of several parties' traces, each a process in it.

    Times stay as each machine's clock has them: what began at once looks as far apart as their clocks are.

    Raises:
        FormatError: a file is not a trace.
        UsageError: two files are of one party.
    """
    events: list[dict[str, Any]] = []
    seen: set[int] = set()
    for path in map(Path, paths):
        found = _read(path)
        parties = {event["pid"] for event in found}
        if parties & seen:
            raise UsageError(f"traces: {path} is of a party that another file is of", hint="merge one file of each")
        seen |= parties
        events += found
    _write(Path(to), events)


def _about(kind: str, process: int, thread: int, **facts: object) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "pid": process, "tid": thread, "args": facts}


def _read(path: Path) -> list[dict[str, Any]]:
    if path.stat().st_size > _MOST:
        raise FormatError(f"trace: {path} has more than {_MOST} bytes")
    try:
        events = json.loads(path.read_bytes())["traceEvents"]
        if not all(isinstance(event["pid"], int) for event in events):
            raise KeyError
    except (ValueError, KeyError, TypeError):
        raise FormatError(f"trace: {path} is none", hint="`chrome_trace` of a profile writes them") from None
    found: list[dict[str, Any]] = events
    return found


def _write(path: Path, events: Sequence[Mapping[str, Any]]) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump({"traceEvents": events, "displayTimeUnit": "ms"}, file)


def write_tensorboard(directory: Path, rank: int, rows: Sequence[Row], text: str, step: int) -> None:
    """Scalars `milliseconds computing/MODULE` and so on, and the table as a text."""
    if find_spec("tensorboard") is None:
        raise MissingDependencyError("tensorboard: is not installed", hint="pip install tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    writer: Any = SummaryWriter(str(directory))
    try:
        for row in rows:
            values = {
                **{f"milliseconds {name}": 1e3 * seconds for name, seconds in row.seconds.items()},
                "bytes sent": row.figures.sent[rank],
                "rounds": row.figures.rounds,
            }
            for name, value in values.items():
                writer.add_scalar(f"{name}/{row.label}", value, step)
        indented = "\n".join(f"    {line}" for line in text.splitlines())
        writer.add_text("profile", indented, step)
    finally:
        writer.close()
