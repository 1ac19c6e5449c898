"""Locks between processes of one user, which the kernel ends with the process that holds them."""

from __future__ import annotations

import sys

if sys.platform != "win32":
    import fcntl


def locked(descriptor: int) -> bool:
    """Whether who opened that file has its lock, from now on until it is closed.

    On Windows, and in a file system without locks, everybody has it.
    """
    if sys.platform == "win32":
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def unlock(descriptor: int) -> None:
    if sys.platform != "win32":
        fcntl.flock(descriptor, fcntl.LOCK_UN)
