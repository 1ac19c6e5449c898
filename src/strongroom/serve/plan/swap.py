"""Swap space for the time of a measurement, so that a process that may not hold all its memory pages.

An enclave's pages go, encrypted, to memory outside of it and to no disk. What is nearest to that is swap in compressed
memory (zram): a page costs the processor's time alone, some 11 us, as on processors with a small EPC, and it does not
change with what else a disk does. Where the kernel has none it is a file on a disk.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal

from strongroom.errors import UnsupportedPlatformError

Medium = Literal["own", "memory", "file"]

_SWAPS: Final = Path("/proc/swaps")
# https://docs.kernel.org/admin-guide/blockdev/zram.html: reading hot_add makes a device and tells its number.
_ZRAM: Final = Path("/sys/class/zram-control")
# LZ4's acceleration: it gives up on a page at once, and keeps it as it is. Else a page of zeros and numbers, such as
# activations are, would take twice what one of numbers does; encryption takes the same for all.
_HASTY: Final = "algo=lz4 level=100000"


@contextlib.contextmanager
def swap(beside: Path, size: int) -> Iterator[Medium]:
    """Swap space: the machine's own if there is so much, in compressed memory, or a file that is there meanwhile.

    Args:
        beside: a directory on a disk, for the file.
        size: bytes.

    Raises:
        UnsupportedPlatformError: there is none and none can be made.
    """
    if _free() >= size:
        yield "memory" if _is_in_memory() else "own"
        return
    if sys.platform != "linux" or os.geteuid() != 0:
        raise UnsupportedPlatformError("paging: this machine has too little swap, and only root can make some")
    with contextlib.ExitStack() as stack:
        medium: Medium = "memory"
        try:
            place = stack.enter_context(_in_memory(size))
        except OSError:
            medium, place = "file", stack.enter_context(_in_a_file(beside, size))
        _root("mkswap", place)
        _root("swapon", place)
        stack.callback(_root, "swapoff", place)
        yield medium


def _free() -> int:
    """Bytes of swap that the machine has and nobody uses."""
    total = 0
    with contextlib.suppress(OSError):
        for line in _SWAPS.read_text().splitlines()[1:]:
            *_, size, used, _ = line.split()
            total += (int(size) - int(used)) << 10
    return total


def _is_in_memory() -> bool:
    """Whether all swap there is lies in compressed memory."""
    return all(line.startswith("/dev/zram") for line in _SWAPS.read_text().splitlines()[1:])


@contextlib.contextmanager
def _in_memory(size: int) -> Iterator[Path]:
    number = (_ZRAM / "hot_add").read_text().strip()
    device = Path("/sys/block") / f"zram{number}"
    try:
        with contextlib.suppress(OSError):  # before Linux 6.12
            (device / "comp_algorithm").write_text("lz4")
            (device / "algorithm_params").write_text(_HASTY)
        (device / "disksize").write_text(str(size))
        yield Path("/dev") / device.name
    finally:
        with contextlib.suppress(OSError):
            (device / "reset").write_text("1")
            (_ZRAM / "hot_remove").write_text(number)


@contextlib.contextmanager
def _in_a_file(beside: Path, size: int) -> Iterator[Path]:
    file = beside / f"swap-{os.getpid()}"
    try:
        beside.mkdir(parents=True, exist_ok=True)
        try:
            with os.fdopen(os.open(file, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600), "wb") as made:
                os.posix_fallocate(made.fileno(), 0, size)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise UnsupportedPlatformError(f"paging: a swap file at {file}: {reason}") from None
        yield file
    finally:
        file.unlink(missing_ok=True)


def _root(program: str, place: Path) -> None:
    """One of the programs that make swap."""
    try:
        done = subprocess.run([program, str(place)], capture_output=True, check=False)  # noqa: S603
    except FileNotFoundError:
        raise UnsupportedPlatformError(f"paging: {program} is not installed, wanted to make swap") from None
    if done.returncode:
        reason = done.stderr.decode(errors="replace").strip().lower()[:200]
        raise UnsupportedPlatformError(f"paging: {program} {place}: {reason}")
