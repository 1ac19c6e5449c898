"""Paging, measured: passes over memories of several sizes, in a control group with little memory and with swap.

A pass does with memory what a run of a model does: it reads most of it once, in order, as weights are, and writes the
rest again and again, as what every operator uses. Its contents are random numbers, as weights are to whoever compresses
or encrypts them. It stays on one processor: on each page that it takes from one that has been on several, the kernel
tells these, which takes as long again where they are busy.

A process enters the group when it has imported what it needs: what it held before is not charged to the group, so the
limit is what it may take beyond that. The same group limits a stage's memory as an enclave's is limited.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import mmap
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from strongroom.enclave.limits import places
from strongroom.errors import UnsupportedPlatformError, UsageError
from strongroom.serve.plan.paging import PAGE, Paging, Point, fit
from strongroom.serve.plan.swap import swap as swap

LIMIT: Final = 64 << 20
_SHARES: Final = (0.8, 1.04, 1.08, 1.15, 1.25, 1.5, 2.0)  # of the limit
_WORKING: Final = 0.15  # of a memory, written again and again
_TURNS: Final = 16  # times in a pass
_PASSES: Final = 7
_SETTLED: Final = 2  # passes after which what comes back is what comes back in every one
_TRIES: Final = 3  # the kernel may end a process that pages fast
_SECONDS: Final = 60.0
_numbers = itertools.count()


def measure(*, swap_beside: Path, say: Callable[[str], None] = lambda text: None) -> Paging:
    """Fit the paging model to this machine: some 20 seconds.

    Args:
        swap_beside: a directory on a disk, where a swap file is made for the time if the machine has no swap and no
            compressed memory.

    Raises:
        UnsupportedPlatformError: no control group can be made here, or there is no swap and none can be made.
    """
    points: list[Point] = []
    fits = 0.0
    with swap(swap_beside, 4 * LIMIT) as medium, paged_group(LIMIT) as door:
        for share in _SHARES:
            size = int(LIMIT * share) // PAGE * PAGE
            say(f"paging: {size >> 20} MiB in {LIMIT >> 20} MiB, swap: {medium}")
            found = _passes(door, size, processor=medium == "memory")
            if found is None:
                continue
            pages, nanoseconds = found
            if size <= LIMIT:
                fits = nanoseconds / size
            else:
                points.append(Point(size, size - _working(size), pages, nanoseconds - fits * size))
    try:
        return fit(LIMIT, points)
    except UsageError as error:
        raise UnsupportedPlatformError(f"{error.message}", hint="is the disk that holds the swap very slow?") from None


def _passes(door: Path, size: int, *, processor: bool) -> tuple[float, float] | None:
    """Pages that came back in a pass over `size` bytes in the group, and its nanoseconds: of the processor or all."""
    command = [sys.executable, "-m", "strongroom.serve.plan.paging_probe", str(door), str(size), str(int(processor))]
    for _ in range(_TRIES):
        try:
            done = subprocess.run(command, stdout=subprocess.PIPE, timeout=_SECONDS, check=False)  # noqa: S603
        except subprocess.TimeoutExpired:
            return None
        if done.returncode == 0 and done.stdout:
            pages, nanoseconds = json.loads(done.stdout)
            return float(pages), float(nanoseconds)
    return None


def _working(size: int) -> int:
    return int(size * _WORKING) // PAGE * PAGE


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
        if version == "1":  # its own memory is all that there is to push out
            (group / "memory.swappiness").write_text("100")
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


def _main(door: str, size: int, processor: bool) -> None:
    """In the group: one pass after another over a memory of its own; prints pages and nanoseconds of one, of settled
    passes the median."""
    import numpy as np

    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    clock = time.process_time_ns if processor else time.perf_counter_ns
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        whole = np.frombuffer(memory, np.uint8)
        Path(door).write_text(str(os.getpid()))
        some = np.random.default_rng().standard_normal(1 << 18, np.float32).view(np.uint8)
        for start in range(0, size, len(some)):
            whole[start : start + len(some)] = some[: size - start]
        working = whole[: _working(size) : PAGE]
        weights = np.array_split(whole[_working(size) :: PAGE], _TURNS)
        seen: list[tuple[int, int]] = []
        for _ in range(_PASSES):
            pages, start = resource.getrusage(resource.RUSAGE_SELF).ru_majflt, clock()
            for part in weights:
                part.sum()
                working += 1
            spent = clock() - start
            seen.append((resource.getrusage(resource.RUSAGE_SELF).ru_majflt - pages, spent))
        print(json.dumps([statistics.median(each) for each in zip(*seen[_SETTLED:], strict=True)]), flush=True)
        os._exit(0)  # the array still looks into the memory


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]), bool(int(sys.argv[3])))
