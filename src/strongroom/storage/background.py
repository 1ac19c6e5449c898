"""Slow work of the kernel that nobody has to wait for: writing out what will be synced, freeing what was removed."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final

WRITE_OUT: Final = 8 << 20
"""Bytes written to a file after which the kernel is asked to begin, so that the next sync has less to wait for."""

_LARGE: Final = 4 << 20  # bytes of a file that takes more than a millisecond to free
_SYNC_FILE_RANGE_WRITE: Final = 2  # linux/fs.h

_call = getattr(ctypes.CDLL(None, use_errno=True), "sync_file_range", None) if sys.platform == "linux" else None
if _call is not None:
    _call.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)


def write_out(fd: int) -> None:
    """Have the kernel begin to write a file to its disk. What fails of that, the next sync reports."""
    if _call is not None:
        _call(fd, 0, 0, _SYNC_FILE_RANGE_WRITE)


def unlink(path: Path) -> None:
    """Remove a name at once, and the content of a large file behind it in a thread. Raises OSError as `unlink` does."""
    fd = -1
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        path.unlink()
        if fd >= 0 and os.fstat(fd).st_size >= _LARGE:
            _freeing.close(fd)
            fd = -1
    finally:
        if fd >= 0:
            os.close(fd)


def freed() -> bool:
    """Wait until all that was removed is free; whether there was anything to wait for."""
    return _freeing.wait()


class _Freeing:
    """Closes descriptors of files without a name, which is when the kernel frees them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._pending: dict[int, Future[None] | None] = {}

    def close(self, fd: int) -> None:
        with self._lock:
            self._pending[fd] = None
            try:
                self._pool = self._pool or ThreadPoolExecutor(1, thread_name_prefix="freeing")
                self._pending[fd] = self._pool.submit(self._close, fd)
            except RuntimeError:  # no more threads: the interpreter is ending, or the system forbids them
                del self._pending[fd]
                os.close(fd)

    def _close(self, fd: int) -> None:
        os.close(fd)
        with self._lock:
            self._pending.pop(fd, None)

    def wait(self) -> bool:
        with self._lock:
            pending = [future for future in self._pending.values() if future]
        for future in pending:
            future.result()
        return bool(pending)

    def forget(self) -> None:
        """In a forked child, which has no such thread, and whose descriptors would keep the files."""
        for fd in self._pending:
            with contextlib.suppress(OSError):
                os.close(fd)
        self.__init__()  # type: ignore[misc]  # anew


_freeing = _Freeing()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_freeing.forget)
