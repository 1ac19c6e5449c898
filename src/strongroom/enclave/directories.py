"""Directories of a launcher's own, which it removes when the enclave ends, and where they may lie."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from strongroom.errors import UnsupportedPlatformError

_IN_MEMORY = {"tmpfs", "ramfs"}
_LONG = 60  # bytes of a path in which sockets may not fit


def temporary_directory(prefix: str, parent: Path) -> Path:
    """A new directory with this process's number in its name; those of launchers that were killed are cleared away."""
    for stale in parent.glob(f"{prefix}*"):
        launcher = stale.name.removeprefix(prefix).partition("-")[0]
        if launcher.isdigit() and not Path("/proc", launcher).exists():
            shutil.rmtree(stale, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}-", dir=parent))


@contextmanager
def cleared_away(directories: Sequence[Path]) -> Iterator[None]:
    """Have directories removed when the block has ended, or this process has, however it is killed.

    A shell waits for the end of a pipe that nobody else holds; without one they stay until `temporary_directory`.
    """
    wait = 'cat; for try in 1 2 3 4 5; do rm -rf -- "$@" && exit; sleep 1; done'
    command = ["/bin/sh", "-c", wait, "sh", *map(str, directories)]
    null = subprocess.DEVNULL
    try:
        shell = subprocess.Popen(  # noqa: S603  # a constant, and directories of our own
            command, stdin=subprocess.PIPE, stdout=null, stderr=null, cwd="/", start_new_session=True
        )
    except OSError:
        yield
        return
    try:
        yield
    finally:
        shell.communicate()


def directory_for_sockets() -> str:
    """That for temporary files, unless its path is so long that a socket's may not fit: then ``/tmp``."""
    usual = tempfile.gettempdir()
    return usual if len(os.fsencode(usual)) <= _LONG else "/tmp"  # noqa: S108  # what is made in it is 0700


def directory_in_memory() -> Path:
    """That for temporary files if it is in memory, else ``/dev/shm``.

    Raises:
        UnsupportedPlatformError: neither is.
    """
    places = (Path(tempfile.gettempdir()), Path("/dev/shm"))  # noqa: S108
    for place in places:
        if _in_memory(place):
            return place
    raise UnsupportedPlatformError(
        f"launcher: neither {places[0]} nor {places[1]} is in memory, and a host may change what is on a disk after it "
        "was measured",
        hint="mount a tmpfs and name it in TMPDIR",
    )


def _in_memory(directory: Path) -> bool:
    """Whether a directory is on a file system that is nowhere but in memory, and in swap."""
    try:
        device = directory.stat().st_dev
        mounts = Path("/proc/self/mountinfo").read_text(errors="replace").splitlines()
    except OSError:
        return False
    # Device and type are the third field, and the first after a hyphen by itself (proc_pid_mountinfo(5)).
    wanted = f"{os.major(device)}:{os.minor(device)}"
    told = (line.partition(" - ") for line in mounts)
    kinds = {kind.split()[0] for before, _, kind in told if before.split()[2] == wanted}
    return bool(kinds) and kinds <= _IN_MEMORY
