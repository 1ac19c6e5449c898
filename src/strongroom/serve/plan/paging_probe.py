"""Paging, measured: passes over arrays of several sizes, in a control group with little memory and with swap.

A process enters the group when it has imported what it needs: what it held before is not charged to the group, so the
limit is what it may take beyond that. The same group limits a stage's memory as an enclave's is limited.
"""

from __future__ import annotations

import contextlib
import itertools
import mmap
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from strongroom.enclave.limits import places
from strongroom.errors import UnsupportedPlatformError, UsageError
from strongroom.serve.plan.paging import PAGE, Paging, fit

LIMIT: Final = 64 << 20
_SHARES: Final = (0.8, 1.06, 1.12, 1.25, 1.5, 2.0, 3.0)  # of the limit
_PASSES: Final = 3
_SECONDS: Final = 60.0
_SWAPS: Final = Path("/proc/swaps")
_numbers = itertools.count()


def measure(*, swap_beside: Path, say: Callable[[str], None] = lambda text: None) -> Paging:
    """Fit the paging model to this machine: some 20 seconds.

    Args:
        swap_beside: a directory on a disk, where a swap file is made for the time if the machine has no swap.

    Raises:
        UnsupportedPlatformError: no control group can be made here, or there is no swap and none can be made.
    """
    points: list[tuple[int, float]] = []
    fits = 0.0
    with swap(swap_beside, 4 * LIMIT), paged_group(LIMIT) as door:
        for share in _SHARES:
            size = int(LIMIT * share) // PAGE * PAGE
            say(f"paging: {size >> 20} MiB in {LIMIT >> 20} MiB")
            spent = _pass_ns(door, size)
            if spent is None:  # the kernel ended it: swap was not fast enough
                continue
            if size <= LIMIT:
                fits = spent / size
            else:
                points.append((size, spent - fits * size))
    try:
        return fit(LIMIT, points)
    except UsageError as error:
        raise UnsupportedPlatformError(f"{error.message}", hint="is the disk that holds the swap very slow?") from None


def _pass_ns(door: Path, size: int) -> float | None:
    """Nanoseconds of a pass over `size` bytes in the group."""
    command = [sys.executable, "-m", "strongroom.serve.plan.paging_probe", str(door), str(size)]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, timeout=_SECONDS, check=False)  # noqa: S603
    except subprocess.TimeoutExpired:
        return None
    return float(done.stdout) if done.returncode == 0 and done.stdout else None


@contextlib.contextmanager
def paged_group(limit: int) -> Iterator[Path]:
    """A control group of so much memory, and as much swap as there is; what a process writes its number to, to enter.

    Raises:
        UnsupportedPlatformError: none can be made here.
    """
    place = places(("memory",)).get("memory")
    if place is None:
        raise UnsupportedPlatformError(
            "paging: no control group for memory can be made here", hint="run it as root, or in a delegated unit"
        )
    version, parent = place
    group = parent / f"strongroom-paged-{os.getpid()}-{next(_numbers)}"
    try:
        group.mkdir()
        (group / ("memory.limit_in_bytes" if version == "1" else "memory.max")).write_text(str(limit))
    except OSError as error:
        with contextlib.suppress(OSError):
            group.rmdir()
        reason = (error.strerror or str(error)).lower()
        raise UnsupportedPlatformError(f"paging: the control group {group}: {reason}", hint="run it as root") from None
    try:
        yield group / "cgroup.procs"
    finally:
        with contextlib.suppress(OSError):
            group.rmdir()


@contextlib.contextmanager
def swap(beside: Path, size: int) -> Iterator[None]:
    """Swap space: the machine's own, or a file that is there meanwhile.

    Raises:
        UnsupportedPlatformError: there is none and none can be made.
    """
    with contextlib.suppress(OSError):
        if len(_SWAPS.read_text().splitlines()) > 1:
            yield
            return
    if sys.platform != "linux" or os.geteuid() != 0:
        raise UnsupportedPlatformError("paging: this machine has no swap, and only root can make some")
    beside.mkdir(parents=True, exist_ok=True)
    file = beside / f"swap-{os.getpid()}"
    try:
        with os.fdopen(os.open(file, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600), "wb") as made:
            os.posix_fallocate(made.fileno(), 0, size)
        _root("mkswap", str(file))
        _root("swapon", str(file))
        try:
            yield
        finally:
            _root("swapoff", str(file))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UnsupportedPlatformError(f"paging: a swap file at {file}: {reason}") from None
    finally:
        file.unlink(missing_ok=True)


def _root(program: str, file: str) -> None:
    """One of the programs that make swap."""
    try:
        done = subprocess.run([program, file], capture_output=True, check=False)  # noqa: S603
    except FileNotFoundError:
        raise UnsupportedPlatformError(f"paging: {program} is not installed, wanted to make a swap file") from None
    if done.returncode:
        reason = done.stderr.decode(errors="replace").strip().lower()[:200]
        raise UnsupportedPlatformError(f"paging: {program} {file}: {reason}")


def _main(door: str, size: int) -> None:
    """In the group: one pass after another over a memory of its own; prints the median of the nanoseconds."""
    import numpy as np

    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        pages = np.frombuffer(memory, np.uint8)[::PAGE]
        Path(door).write_text(str(os.getpid()))
        pages[:] = 1
        pages.sum()
        times = []
        for _ in range(_PASSES):
            start = time.perf_counter_ns()
            pages.sum()
            times.append(time.perf_counter_ns() - start)
        print(statistics.median(times), flush=True)
        os._exit(0)  # the array still looks into the memory


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]))
