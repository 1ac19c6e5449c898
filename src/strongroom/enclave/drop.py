"""Drop every capability for good, then become the program. Standard library only: it runs before all else.

The program dies with the boot process, which alone seals what it wrote. With `no_new_privs` set, no later `execve` can
grant what the permitted set no longer holds, root or not.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
_CAPABILITY_VERSION_3 = 0x20080522


def drop_privileges() -> None:
    """Raises OSError if the kernel refuses."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    nothing = (ctypes.c_uint32 * 6)()
    failed = (
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        or libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        or libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
        or libc.capset(header, nothing)
    )
    if failed:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


if __name__ == "__main__":
    drop_privileges()
    try:
        os.execvp(sys.argv[1], sys.argv[1:])  # noqa: S606  # the measured command
    except OSError as error:
        sys.stderr.write(f"strongroom: error: command: {sys.argv[1]}: {(error.strerror or '').lower()}\n")
        sys.exit(127 if isinstance(error, FileNotFoundError) else 126)
