"""`strongroom unmount`: the end of what `strongroom mount` began."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import select
import subprocess
from pathlib import Path

from strongroom.cli.mount import SOURCE
from strongroom.errors import LockedError, MissingDependencyError, StrongroomError, UsageError

_PATIENCE = 120.0


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "Returns once everything that was written is committed."
    parser.add_argument("mountpoint", type=Path, metavar="MOUNTPOINT")


def run(args: argparse.Namespace) -> int:
    point: Path = args.mountpoint.absolute()
    source = _source(point)
    if source is None or not source.startswith(SOURCE):
        raise UsageError(f"mount point: no vault is mounted at {point}")
    process = source.removeprefix(SOURCE)
    server = None
    with contextlib.suppress(OSError, ValueError):
        server = os.pidfd_open(int(process))
    _unmount(point)
    if server is None:
        return 0
    try:
        if not select.select([server], [], [], _PATIENCE)[0]:
            raise StrongroomError(f"unmount: process {process} has not committed within {_PATIENCE:.0f} s")
    finally:
        os.close(server)
    return 0


def _unmount(point: Path) -> None:
    command = ["fusermount3", "-u", "--", str(point)]
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True)  # noqa: S603  # no shell
    except FileNotFoundError:
        raise MissingDependencyError("fusermount3: is not installed", hint="package fuse3") from None
    if done.returncode == 0:
        return
    if "busy" in done.stderr.lower():
        raise LockedError(f"unmount: {point} is in use", hint="end the programs that use it: fuser -m MOUNTPOINT")
    raise StrongroomError(f"unmount: {done.stderr.strip()}")


def _source(point: Path) -> str | None:
    """What the kernel calls the mount at a directory; the last one, where several lie on top of each other."""
    found = None
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        path = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), left.split(" ")[4])
        if path == str(point):
            found = right.split(" ")[1]
    return found
