"""What a process that holds keys asks of the kernel."""

from __future__ import annotations

import ctypes
import os
import sys

from strongroom.errors import EnclaveError

_PR_SET_DUMPABLE = 4


def keep_private() -> None:
    """Keep memory from reaching a core file, and other processes without privileges from attaching to this one.

    Programs that this one starts are dumpable again, but make no core files either, and none that the kernel would pipe
    to a program of the host's: a limit of 0 does not prevent that, one of 1 does (Linux, ``fs/coredump.c``). On Linux;
    elsewhere only core files are prevented, and on Windows nothing is.

    Raises:
        EnclaveError: the kernel refused.
    """
    if sys.platform == "win32":
        return
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    limit = 0 if hard == 0 or sys.platform != "linux" else 1
    resource.setrlimit(resource.RLIMIT_CORE, (limit, limit))
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0):
            raise EnclaveError(f"prctl: {os.strerror(ctypes.get_errno())}")
