"""`strongroom unmount`: the end of what `strongroom mount` began."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import errno
import os
import re
import select
import shlex
import subprocess
from pathlib import Path

from strongroom.cli import output
from strongroom.cli.mount import log as mount_log
from strongroom.cli.mount.verb import SOURCE
from strongroom.errors import LockedError, MissingDependencyError, StrongroomError, UsageError

COMMIT = "user.strongroom.commit"  # as `shield._answers` has it, which imports what may be missing
_PATIENCE = 120.0
_CANNOT_ASK = (errno.ENOTCONN, errno.ECONNABORTED, errno.EROFS, errno.EOPNOTSUPP, errno.EPERM, errno.EACCES)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "Returns once everything that was written is committed. If it cannot be, the mount stays, so that nothing is "
        "lost: make room, say, and try again, or give it up with --force."
    )
    parser.add_argument("--force", action="store_true", help="end it even if what was written cannot be committed")
    parser.add_argument("mountpoint", type=Path, metavar="MOUNTPOINT")


def run(args: argparse.Namespace) -> int:
    point: Path = args.mountpoint.absolute()
    source = _source(point)
    if source is None or not source.startswith(SOURCE):
        raise UsageError(f"mount point: no vault is mounted at {point}")
    process = source.removeprefix(SOURCE)
    log = mount_log.ServerLog(process)
    try:
        if not args.force:
            _commit(point, log)
        _end(point, process, log)
    finally:
        log.close()
    return 0


def _commit(point: Path, log: mount_log.ServerLog) -> None:
    """Have everything committed while the mount is still there."""
    try:
        _write_back(point)
        os.setxattr(point, COMMIT, b"")
    except OSError as error:
        if error.errno in _CANNOT_ASK:
            return  # it is read-only, or the server is dead or another user's: what is lost is seen at the end
        said = log.lines()
        reason = said[-1].removeprefix("setxattr: ") if said else (error.strerror or str(error)).lower()
        raise StrongroomError(
            f"unmount: what was written to {point} cannot be committed: {reason}",
            hint="it is still mounted: mend that and try again, or lose what was not synced with --force",
        ) from None


def _write_back(point: Path) -> None:
    """Have the kernel hand over what it holds. What fails here, the programs that wrote it are told."""
    descriptor = os.open(point, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(descriptor) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
    finally:
        os.close(descriptor)


def _end(point: Path, process: str, log: mount_log.ServerLog) -> None:
    server = None
    with contextlib.suppress(OSError, ValueError):
        server = os.pidfd_open(int(process))
    _unmount(point)
    if server is None:
        return
    try:
        if not select.select([server], [], [], _PATIENCE)[0]:
            raise StrongroomError(f"unmount: process {process} has not committed within {_PATIENCE:.0f} s")
    finally:
        os.close(server)
    lost = log.lost()
    if lost is not None:
        raise StrongroomError(f"unmount: {lost}", hint="it is unmounted, and what is not kept is lost")
    if not log.known:
        output.note("whether everything was committed, only who mounted it can see")
    elif said := log.lines():
        output.note(f"something failed while it was mounted, last: {said[-1]}")


def _unmount(point: Path) -> None:
    command = ["fusermount3", "-u", "--", str(point)]
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True)  # noqa: S603  # no shell
    except FileNotFoundError:
        raise MissingDependencyError("fusermount3: is not installed", hint="package fuse3") from None
    if done.returncode == 0:
        return
    if "busy" in done.stderr.lower():
        raise LockedError(
            f"unmount: {point} is in use", hint=f"end the programs that use it: fuser -vm {shlex.quote(str(point))}"
        )
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
