"""Long transfers over a few threads: encryption and file access release the interpreter's lock."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Final

_CORES: Final = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
# Often half of the processors are second threads of a core, which share its AES unit. Two even on a machine of two: the
# second can gain only while nothing else has that processor.
_THREADS: Final = min(4, max(min(2, _CORES), _CORES // 2))
_LONG: Final = 1 << 20  # bytes of a transfer that is worth splitting
_SMALL_BLOCK: Final = 16 << 10  # of smaller blocks the interpreter's own work is most, which threads cannot share
_SLICE: Final = 1 << 20  # bytes that a thread takes on at once


def split(count: int, size: int, work: Callable[[int, int], None]) -> None:
    """Call `work` for all of 0 to `count`, of blocks of `size` bytes, in several threads where that is faster."""
    if count * size < _LONG or size < _SMALL_BLOCK or _THREADS == 1:
        work(0, count)
        return
    step = max(1, _SLICE // size)
    todo = deque((start, min(start + step, count)) for start in range(0, count, step))

    def take() -> None:
        with contextlib.suppress(IndexError):
            while True:
                start, stop = todo.popleft()
                try:
                    work(start, stop)
                except BaseException:
                    todo.clear()
                    raise

    others: list[Future[None]] = []
    with contextlib.suppress(RuntimeError):  # no more threads: the interpreter is ending, or the system forbids them
        others.extend(_pool().submit(take) for _ in range(_THREADS - 1))
    try:
        take()
    finally:
        todo.clear()
        wait(others)  # they work on the caller's memory
    for other in others:
        other.result()


_executor: ThreadPoolExecutor | None = None


def _pool() -> ThreadPoolExecutor:
    global _executor
    if _executor is None:
        _executor = ThreadPoolExecutor(_THREADS - 1, thread_name_prefix="sealed")
    return _executor


def end_threads() -> None:
    """End the threads that wait for the next transfer, which starts others.

    For whoever gives up privileges: each thread has its own.
    """
    global _executor
    pool, _executor = _executor, None
    if pool is not None:
        pool.shutdown()


def _forget_pool() -> None:
    global _executor
    _executor = None  # a forked child has none of its threads


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)
