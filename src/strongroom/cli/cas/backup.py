"""`strongroom cas backup` and `restore`: a CAS's state in one file, and back."""

from __future__ import annotations

import argparse
from pathlib import Path

from strongroom.cas.service.backup import back_up, restore
from strongroom.cas.state.trust_disk import MASTER_KEY
from strongroom.cli import output
from strongroom.cli.parser import add_debug
from strongroom.cli.workspace import Home

ACTIONS = {
    "backup": "write the state of a CAS, running or not, to a file",
    "restore": "make the state of a CAS of such a file",
}


def configure(parser: argparse.ArgumentParser, action: str) -> None:
    """Add the options of one of `ACTIONS`."""
    parser.add_argument("file", type=Path, metavar="FILE")
    if action == "backup":
        parser.add_argument(
            "--state", type=Path, metavar="DIR", help="the CAS's (default: this user's development CAS)"
        )
    else:
        parser.add_argument(
            "--state", type=Path, required=True, metavar="DIR", help="where to: a directory that is empty or not there"
        )
    parser.add_argument("--database", metavar="URL", help="the PostgreSQL that has its tables, or shall have them")
    add_debug(parser)
    output.add_json(parser)


def run(args: argparse.Namespace, home: Home) -> int:
    directory = args.state or home.path / "cas"
    if args.action == "backup":
        done = back_up(directory, args.file, database=args.database)
        said = f"{args.file}: the state of {directory} at log entry {done.entries}"
    else:
        done = restore(args.file, directory, database=args.database)
        said = f"{directory}: the state that {args.file} holds, at log entry {done.entries}"
    if args.json:
        told = {"file": str(args.file), "state": str(directory), "entries": done.entries}
        told |= {"head": str(done.head), "files": list(done.files)}
        output.result(told | {"plain": done.plain} | ({"verified": done.verified} if args.action == "restore" else {}))
    else:
        output.stdout.print(f"{said}\nhead {done.head}", markup=False, soft_wrap=True)
    if done.plain:
        output.warn(f"{args.file} holds {MASTER_KEY} in plain, which opens all the rest: guard it like a key")
    if args.action == "restore":
        if not done.verified:
            output.warn("only its log was looked through: its rows are verified when it starts and has its root secret")
        output.warn(
            "what came after that entry is lost; clients and witnesses who have seen it will call this a rollback, and "
            "a plain `strongroom cas confirm` shuts it: docs/how-to/backup.md has the steps"
        )
    return 0
