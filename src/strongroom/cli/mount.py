"""`strongroom mount`: a vault as a directory that unmodified programs read and write."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

from strongroom.cli import output
from strongroom.cli.workspace import SealedVault
from strongroom.errors import UsageError
from strongroom.shield import files

SOURCE = "strongroom:"  # and the number of the process that serves it, for `strongroom unmount`


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "Returns once the mount is there; a process in the background serves it until `strongroom unmount MOUNTPOINT` "
        "or `fusermount3 -u MOUNTPOINT`. What a program has synced is durable at once, everything else within five "
        "seconds. Whoever owns this machine sees the plaintext of what is mounted: only inside an enclave is it kept "
        "from them."
    )
    parser.add_argument("vault", type=Path, metavar="VAULT")
    parser.add_argument("mountpoint", type=Path, metavar="MOUNTPOINT", help="an empty directory")
    parser.add_argument("--key", type=Path, metavar="FILE", help="the key file (default: VAULT.key)")
    parser.add_argument("--create", action="store_true", help="make an empty vault first")
    parser.add_argument("--read-only", action="store_true", help="show the newest version, and change nothing")
    parser.add_argument("--foreground", action="store_true", help="serve from this process, until it is interrupted")
    parser.add_argument(
        "--allow-other", action="store_true", help="let other users in, as far as permission bits allow"
    )
    parser.add_argument("--started-by", type=int, help=argparse.SUPPRESS)  # a pipe that hears when it is mounted


def run(args: argparse.Namespace) -> int:
    sealed = SealedVault.at(args.vault.absolute(), args.key and args.key.absolute())
    point = args.mountpoint.absolute()
    if args.create and args.read_only:
        raise UsageError("options: --create and --read-only exclude each other")
    if args.create and args.started_by is None:
        with sealed.create():
            pass
        output.note(f"key written to {sealed.key_path}; nobody can unseal without it")
    if not args.foreground:
        return _in_background(args, sealed, point)
    with sealed.open("r" if args.read_only else "r+") as opened:
        for line in opened.notes:
            output.note(line)
        with files.mount(opened, point, allow_other=args.allow_other, source=f"{SOURCE}{os.getpid()}") as mounted:
            _until_told(mounted, args.started_by)
    return 0


def _in_background(args: argparse.Namespace, sealed: SealedVault, point: Path) -> int:
    """Start a fresh process that serves, and wait until it does. What it has to say of errors, it says itself."""
    heard, told = os.pipe()
    options = ["--foreground", "--started-by", str(told), "--key", str(sealed.key_path)]
    options += ["--read-only"] * args.read_only + ["--allow-other"] * args.allow_other + ["--debug"] * args.debug
    command = [sys.executable, "-m", "strongroom", "mount", *options, "--", str(sealed.path), str(point)]
    with subprocess.Popen(  # noqa: S603  # no shell
        command, pass_fds=[told], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True
    ) as server:
        os.close(told)
        with os.fdopen(heard, "rb") as pipe:
            mounted = pipe.read(1) == b"1"
        if not mounted:
            return server.wait()
        server.returncode = 0  # it outlives this process
    output.note("whoever owns this machine sees the plaintext of what is mounted")
    output.note(f"strongroom unmount {args.mountpoint}   commits and ends it")
    return 0


class _ToldError(Exception):
    """Somebody interrupted or terminated this process."""


def _until_told(mounted: files.MountedVault, started_by: int | None) -> None:
    def end(number: int, frame: FrameType | None) -> None:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_IGN)  # the commit shall not be interrupted
        raise _ToldError

    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, end)
    try:
        if started_by is None:
            logging.basicConfig(format="strongroom: %(message)s")
            output.note("whoever owns this machine sees the plaintext of what is mounted")
            output.note(f"mounted at {mounted.path}; Ctrl-C commits and ends it")
        else:
            _go_to_background(started_by)
        mounted.wait()
    except _ToldError:
        pass
    mounted.unmount()


def _go_to_background(started_by: int) -> None:
    """Keep no directory and no terminal of whoever started this process, and say that the mount is there."""
    os.chdir("/")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for each in (0, 1, 2):
        os.dup2(nowhere, each)
    os.close(nowhere)
    os.write(started_by, b"1")
    os.close(started_by)
