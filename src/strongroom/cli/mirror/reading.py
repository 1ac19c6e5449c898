"""What opens a mirror, and how its commits are told, for the actions of `strongroom mirror`."""

from __future__ import annotations

import argparse
import datetime as dt
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Final

from strongroom.cli import output
from strongroom.errors import UsageError, printable
from strongroom.sealed import NO_FRESHNESS, FileAnchor, NoFreshness, load_key

_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB")


def opening(args: argparse.Namespace) -> tuple[bytes, FileAnchor | NoFreshness]:
    """The key and the anchor that the arguments name.

    Raises:
        UsageError: there is no mirror, key file or anchor file.
        FormatError: one of these files is none.
    """
    path: Path = args.mirror
    if not path.exists():
        raise UsageError(
            f"mirror: {path} does not exist",
            hint="a training makes one with strongroom.mirror.open, or under strongroom run --mirror",
        )
    if path.is_dir():
        raise UsageError(f"mirror: {path} is a directory without a mirror, wanted one with it, or the mirror's file")
    if not args.key.exists():
        raise UsageError(f"key file: {args.key} does not exist", hint="--key FILE names another than MIRROR.key")
    key = load_key(args.key)
    if args.no_anchor:
        output.warn("freshness is not checked: this may be an old version of the mirror")
        return key, NO_FRESHNESS
    anchor = FileAnchor(args.anchor)
    if anchor.read() is None:
        raise UsageError(
            f"anchor file: {anchor.path} does not exist",
            hint="it says which version is the newest, and appears beside the directory of `run --mirror` when the run "
            "has ended; --anchor FILE names another, --no-anchor accepts any version",
        )
    return key, anchor


def print_table(names: Sequence[str], rows: Sequence[Sequence[str]], *, right: Container[str] = ()) -> None:
    """Columns below their names, those of `right` flush right; lines are as long as they have to be."""
    rows = [[printable(cell) for cell in row] for row in (names, *rows)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(names))]
    for row in rows:
        cells = [
            cell.rjust(width) if name in right else cell.ljust(width)
            for name, cell, width in zip(names, row, widths, strict=True)
        ]
        output.stdout.print("  ".join(cells).rstrip(), markup=False, soft_wrap=True)


def size(count: int) -> str:
    amount, unit = float(count), 0
    while amount >= 1024 and unit < len(_UNITS) - 1:
        amount, unit = amount / 1024, unit + 1
    return f"{count:,} B" if unit == 0 else f"{amount:.4g} {_UNITS[unit]}"


def time(seconds: float) -> str:
    try:
        return dt.datetime.fromtimestamp(seconds, dt.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (OverflowError, ValueError, OSError):
        return f"{seconds:g} s"  # of a clock that was wrong
