"""`strongroom mpc audit`: what the servers revealed, by their own logs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from strongroom.cli import output
from strongroom.errors import DivergedError, printable
from strongroom.mpc.audit import Log, Record, compare, read


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("log", type=Path, metavar="FILE", help="a server's log")
    parser.add_argument("other", type=Path, nargs="?", metavar="FILE", help="the other server's, to compare with")
    output.add_json(parser)


def run(args: argparse.Namespace) -> int:
    paths = [args.log] + ([args.other] if args.other else [])
    logs = [read(path) for path in paths]
    differences = compare(*logs) if len(logs) == 2 else None
    if args.json:
        output.result({"logs": [_summary(*each) for each in zip(paths, logs, strict=True)], "differences": differences})
        return DivergedError.exit_code if differences else 0
    for path, log in zip(paths, logs, strict=True):
        _print(path, log)
    for difference in differences or []:
        output.warn(difference)
    if differences and all("the end is missing" in each for each in differences):
        raise DivergedError(
            f"logs: {paths[0].name} and {paths[1].name} say the same as far as they go; an end is missing",
            hint="a server was killed, still runs, or its log was cut: then what followed is not in it",
        )
    if differences:
        raise DivergedError(
            f"logs: {_counted(len(differences), 'difference')} between {paths[0].name} and {paths[1].name}",
            hint="one server did, or wrote, something else than the other",
        )
    if differences is not None:
        output.stdout.print("both logs say the same")
    return 0


def _summary(path: Path, log: Log) -> dict[str, Any]:
    return {
        "file": str(path),
        "head": log.head,
        "cut": log.cut,
        "records": [{**record.fields, "digest": record.digest} for record in log.records],
    }


def _print(path: Path, log: Log) -> None:
    epochs = log.epochs()
    for epoch, records in epochs.items():
        begin = next((record.fields for record in records if record.kind == "begin"), {})
        stamp = str(records[0].fields.get("time"))[:19].replace("T", " ")
        _say(f"epoch {epoch[:12]} at {begin.get('party')}, {stamp} UTC, {begin.get('settings')}")
        output.stdout.print(_table(records))
    count = sum(record.kind == "reveal" for record in log.records)
    told = f"{_counted(count, 'reveal')} in {_counted(len(epochs), 'epoch')}"
    _say(f"{path}: {told}; the chain holds; head {log.head}")
    if log.cut:
        output.warn(f"{path}: the last record was cut by a crash: {log.cut} bytes; what it told of was not revealed")
    for epoch, records in epochs.items():
        if records[-1].kind != "end":
            output.warn(
                f"{path}: epoch {epoch[:12]} has no end: a crash, it still runs, or the log's end was taken off"
            )


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _say(line: str) -> None:
    output.stdout.print(printable(line), markup=False, soft_wrap=True)


def _table(records: list[Record]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("time", "what", "shape"):
        table.add_column(name, no_wrap=True)
    for name in ("of", "to", "at"):
        table.add_column(name, overflow="fold")
    for record in records:
        if record.kind in ("reveal", "refused"):
            table.add_row(*(Text(printable(value)) for value in _row(record)))
    return table


def _row(record: Record) -> tuple[str, ...]:
    fields = record.fields
    return (
        str(fields.get("time"))[11:19],
        record.kind,
        "x".join(map(str, fields.get("shape") or [])) or "a number",
        ", ".join(map(str, fields.get("owners") or [])),
        ", ".join(map(str, fields.get("to") or [])),
        f"{Path(str(fields.get('file'))).name}:{fields.get('line')}",
    )
