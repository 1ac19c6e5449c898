"""`strongroom mirror`: look into the mirror of a training, verify it, go back in it, and export from it."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from strongroom.cli import output, progress
from strongroom.cli.mirror.directory import places
from strongroom.cli.mirror.reading import opening, print_table, size, time
from strongroom.cli.mirror.show import show, values_of
from strongroom.cli.parser import add_debug
from strongroom.errors import IntegrityError, StrongroomError, UsageError
from strongroom.mirror import export as exporting
from strongroom.mirror import kept
from strongroom.mirror.restored import Restored, read

_EXAMPLES: Final = {
    "ls": ("list the commits that a mirror keeps", "ls run.mirror"),
    "show": ("list what a commit holds, or describe one array of it", "show run.mirror model/0.weight"),
    "verify": ("read every block of every commit that is kept", "verify run.mirror"),
    "restore": ("make an older commit the one that training goes on from", "restore run.mirror --step 4000"),
    "export": ("write arrays in clear to a safetensors file", "export run.mirror model.safetensors --part model"),
}


def configure(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, (summary, example) in _EXAMPLES.items():
        action = actions.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            epilog=f"Example: strongroom mirror {example}",
        )
        add_debug(action)
        output.add_json(action)
        action.add_argument("mirror", type=Path, metavar="MIRROR", help="its file, or the directory of `run --mirror`")
        action.add_argument("--key", type=Path, metavar="FILE", help="the key file (default: MIRROR.key)")
        group = action.add_mutually_exclusive_group()
        group.add_argument("--anchor", type=Path, metavar="FILE", help="the anchor file (default: MIRROR.anchor)")
        group.add_argument(
            "--no-anchor", action="store_true", help="accept any authentic version of the mirror, however old"
        )
        if name in ("show", "export"):
            action.add_argument("--step", type=int, metavar="N", help="of the commit (default: the newest)")
        if name == "show":
            action.add_argument("name", nargs="?", metavar="NAME", help="an array, or a part of the state")
        if name == "restore":
            action.add_argument("--step", type=int, metavar="N", required=True, help="of a commit that is kept")
        if name == "export":
            action.add_argument("out", type=Path, metavar="OUT.safetensors")
            action.add_argument(
                "--part", metavar="NAME", help="a part of the state, such as model (default: all of it)"
            )
            action.add_argument("--skip", action="store_true", help="leave out arrays that safetensors cannot hold")
            action.add_argument("--overwrite", action="store_true", help="replace a file that is there")


def run(args: argparse.Namespace) -> int:
    args.mirror, key, anchor = places(args.mirror)
    args.key, args.anchor = args.key or key, args.anchor or anchor
    if args.action == "show":
        return show(args)
    status: int = {"ls": ls, "verify": verify, "restore": restore, "export": export}[args.action](args)
    return status


def _commits(args: argparse.Namespace) -> Iterator[tuple[int, Restored | StrongroomError]]:
    """The commits that are kept, the oldest first, or what is wrong with one."""
    key, anchor = opening(args)
    with read(args.mirror, key=key, anchor=anchor) as newest:
        for step in kept.steps(newest):
            if step == newest.step:
                yield step, newest
                continue
            try:
                older = read(args.mirror, key=key, anchor=anchor, step=step)
            except UsageError:
                continue  # whoever trains has released it meanwhile
            except StrongroomError as error:
                yield step, error
                continue
            with older:
                yield step, older


# The verbs.


def ls(args: argparse.Namespace) -> int:
    listed: list[dict[str, Any]] = []
    for step, found in _commits(args):
        if isinstance(found, StrongroomError):
            raise type(found)(f"step {step}: {found.message}", hint=found.hint)
        sizes = [entry.nbytes for entry in found.arrays.values()]
        listed.append(
            {"step": step, "time": found.time, "bytes": sum(sizes), "arrays": len(sizes), "parts": _parts(found)}
            | {"root": str(found.root)}
        )
    if args.json:
        output.result(listed)
        return 0
    rows = [
        [str(one["step"]), time(one["time"]), f"{one['arrays']:,}", size(one["bytes"]), ", ".join(one["parts"])]
        for one in listed
    ]
    print_table(["step", "committed", "arrays", "size", "parts"], rows, right={"step", "arrays", "size"})
    return 0


def _parts(found: Restored) -> list[str]:
    """The names of the parts; what adapters were given by name stands for the part that they put it in."""
    raw = found._parts.get("parts")
    inner = raw.get("d") if isinstance(raw, dict) else None
    names = [str(pair[0]) for pair in inner if isinstance(pair, list) and pair] if isinstance(inner, list) else []
    return [*names, *(name for name in found if name != "parts" or not names)]


def verify(args: argparse.Namespace) -> int:
    listed, errors = [], []
    for step, found in _commits(args):
        try:
            if isinstance(found, StrongroomError):
                raise found
            blocks = found.verify()
            for _ in values_of(found):
                pass  # the state has its form
        except StrongroomError as error:
            errors.append(error)
            listed.append({"step": step, **error.to_wire()})
            if not args.json:
                output.error(type(error)(f"step {step}: {error.message}", hint=error.hint))
            continue
        listed.append({"step": step, "blocks": blocks, "root": str(found.root)})
        if not args.json:
            output.stdout.print(f"step {step}: {blocks:,} blocks as committed, root {found.root}", soft_wrap=True)
    codes = {error.exit_code for error in errors}
    status = 0 if not codes else codes.pop() if len(codes) == 1 else IntegrityError.exit_code
    if args.json:
        output.result({"commits": listed, "exit_status": status})
    return status


def restore(args: argparse.Namespace) -> int:
    key, anchor = opening(args)
    with read(args.mirror, key=key, anchor=anchor) as newest:
        before, steps = newest.step, kept.steps(newest)
    with progress.bar("restoring") as advance:
        root = kept.go_back(args.mirror, args.step, key=key, anchor=anchor, progress=advance)
    given_up = [step for step in steps if step > args.step]
    if args.json:
        output.result({"step": args.step, "before": before, "given_up": given_up, "root": str(root)})
        return 0
    if not given_up:
        output.stdout.print(f"step {args.step} is the newest already", markup=False)
        return 0
    output.stdout.print(f"training goes on from step {args.step}, in place of {before}", markup=False)
    output.note(f"given up: {', '.join(map(str, given_up))}; from now on the anchor refuses a copy from before")
    return 0


def export(args: argparse.Namespace) -> int:
    key, anchor = opening(args)
    if args.out.exists() and not args.overwrite:
        raise UsageError(f"out: {args.out} exists", hint="choose another name, or --overwrite")
    with read(args.mirror, key=key, anchor=anchor, step=args.step) as found:
        done = exporting.export(found, args.out, part=args.part, skip=args.skip, overwrite=args.overwrite)
        step = found.step
    if args.json:
        wire = {"file": str(args.out), "step": step, "bytes": done.size, "tensors": done.names}
        output.result(wire | {"left_out": done.left_out, "encrypted": False})
        return 0
    for name, reason in done.left_out.items():
        output.note(f"left out: {name}, {reason}")
    count = f"{len(done.names):,} tensor{'s' * (len(done.names) != 1)}"
    output.stdout.print(f"exported {count} of step {step}, {size(done.size)}", markup=False)
    output.warn(f"{args.out} is not encrypted")
    return 0
