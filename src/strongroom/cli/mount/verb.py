"""`strongroom mount`: a vault as a directory that unmodified programs read and write."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import syslog
import time
from pathlib import Path
from types import FrameType

from strongroom import vault
from strongroom.cli import output, secrets
from strongroom.cli.mount import log as mount_log
from strongroom.cli.workspace import SealedVault
from strongroom.enclave.process import keep_private
from strongroom.errors import StrongroomError, UsageError
from strongroom.sealed import Grouped
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
    secrets.add_opening(parser)
    secrets.add_kind(parser)
    parser.add_argument("--create", action="store_true", help="make an empty vault, and its key file, first")
    parser.add_argument("--read-only", action="store_true", help="show the newest version, and change nothing")
    parser.add_argument("--foreground", action="store_true", help="serve from this process, until it is interrupted")
    parser.add_argument(
        "--allow-other", action="store_true", help="let other users in, as far as permission bits allow"
    )
    # Of the process in the background: pipes that bring the key, and hear when the vault is mounted.
    parser.add_argument("--pipes", type=int, nargs=2, help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    keep_private()  # before there is a key, in the process in the background too
    point = args.mountpoint.absolute()
    if args.create and args.read_only:
        raise UsageError("options: --create and --read-only exclude each other")
    if args.pipes:
        key = _read_key(args.pipes[0])
        sealed = SealedVault(args.vault, args.vault, key, args.anchor, encrypted=secrets.kind_of(args))
    else:
        sealed = secrets.sealed_vault(args.vault.absolute(), args)
        files.check_beside(point, sealed.path, sealed.anchor.path.absolute(), sealed.key_path.absolute())
        if args.create:
            _create(sealed)
    if args.foreground:
        _serve(args, sealed, point)
        return 0
    return _in_background(args, sealed, point)


def _create(sealed: SealedVault) -> None:
    new_key = sealed.secret is None and not sealed.key_path.exists()
    with sealed.create():
        pass
    if new_key:
        output.note(f"key written to {sealed.key_path}; nobody can unseal without it")


def _serve(args: argparse.Namespace, sealed: SealedVault, point: Path) -> None:
    with _open(sealed, read_only=args.read_only) as opened:
        for line in opened.notes:
            output.note(line)
        with files.mount(opened, point, allow_other=args.allow_other, source=f"{SOURCE}{os.getpid()}") as mounted:
            _until_told(mounted, args.pipes and args.pipes[1])
            _end(mounted, opened)
    if args.pipes:
        mount_log.committed()


def _end(mounted: files.MountedVault, opened: vault.Vault) -> None:
    """Unmount, and say of a commit that fails what was lost by that."""
    try:
        mounted.unmount()
    except (OSError, StrongroomError) as error:
        kept = f"version {opened.root.sequence}" if opened.root else "nothing"
        message = f"the last commit failed: {error}; {kept} is kept, and what was synced after it"
        if isinstance(error, ConnectionAbortedError):
            message = f"{error.strerror}; what had been handed over is committed"
        syslog.openlog("strongroom", syslog.LOG_PID)
        what = "was aborted" if isinstance(error, ConnectionAbortedError) else "could not make its last commit"
        syslog.syslog(syslog.LOG_ERR, f"{opened.name}: a mount {what}")  # no name out of the vault
        kind = type(error) if isinstance(error, StrongroomError) else StrongroomError
        raise kind(message) from error


def _open(sealed: SealedVault, *, read_only: bool) -> vault.Vault:
    """The vault. The anchor file follows its commits, at most five seconds apart, and not each fsync between them.

    Each step of a file costs three syncs, and it stops accidents only, not whoever could take away the end of the log.
    """
    opened = sealed.open("r")
    if read_only:
        return opened
    opened.discard()
    anchor = Grouped(sealed.anchor, every_commits=1, every_seconds=0, clock=time.monotonic)
    return vault.open(sealed.path, "r+", key=sealed.opener(), anchor=anchor, encrypted=sealed.encrypted)


def _in_background(args: argparse.Namespace, sealed: SealedVault, point: Path) -> int:
    """Start a fresh process that serves, and wait until it does. What it has to say of errors, it says itself."""
    if not (sealed.path / "meta").exists():
        sealed.open().discard()  # which says what is wrong
    key = sealed.key()
    given, to_give = os.pipe()
    heard, told = os.pipe()
    options = ["--foreground", "--pipes", str(given), str(told), "--anchor", str(sealed.anchor.path.absolute())]
    options += ["--authenticated"] * args.authenticated
    options += ["--read-only"] * args.read_only + ["--allow-other"] * args.allow_other + ["--debug"] * args.debug
    command = [sys.executable, "-m", "strongroom", "mount", *options, "--", str(sealed.path), str(point)]
    with subprocess.Popen(  # noqa: S603  # no shell
        command, pass_fds=[given, told], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True
    ) as server:
        os.close(given)
        os.close(told)
        with os.fdopen(to_give, "wb") as pipe:
            pipe.write(key)
        with os.fdopen(heard, "rb") as pipe:
            mounted = pipe.read(1) == b"1"
        if not mounted:
            return server.wait()
        server.returncode = 0  # it outlives this process
    output.note("whoever owns this machine sees the plaintext of what is mounted")
    output.note(f"strongroom unmount {args.mountpoint}   {'' if args.read_only else 'commits and '}ends it")
    return 0


def _read_key(descriptor: int) -> bytes:
    with os.fdopen(descriptor, "rb") as pipe:
        return pipe.read()


class _ToldError(Exception):
    """Somebody interrupted or terminated this process."""


def _until_told(mounted: files.MountedVault, told: int | None) -> None:
    def end(number: int, frame: FrameType | None) -> None:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_IGN)  # the commit shall not be interrupted
        raise _ToldError

    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, end)
    try:
        if told is None:
            output.note("whoever owns this machine sees the plaintext of what is mounted")
            output.note(f"mounted at {mounted.path}; Ctrl-C commits and ends it")
        else:
            _go_to_background(told)
        mounted.wait()
    except _ToldError:
        pass


def _go_to_background(told: int) -> None:
    """Keep no directory and no terminal of whoever started this process, and say that the mount is there."""
    os.chdir("/")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for each in (0, 1):
        os.dup2(nowhere, each)
    os.close(nowhere)
    mount_log.begin()
    os.write(told, b"1")
    os.close(told)
