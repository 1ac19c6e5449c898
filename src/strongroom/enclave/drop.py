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
_CLONE_NEWNS = 0x00020000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 1, 2, 4, 8


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


def hide(directory: str) -> None:
    """Cover a directory with an empty file system, in a mount namespace of this process's own. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    flags = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC | _MS_RDONLY
    failed = libc.unshare(_CLONE_NEWNS) or libc.mount(b"none", os.fsencode(directory), b"tmpfs", flags, b"size=4k")
    if failed:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), directory)


def main(arguments: list[str]) -> int:
    """``[--hide DIRECTORY] -- COMMAND ...``: returns only if the command cannot be run."""
    end = arguments.index("--")
    if end:
        hide(arguments[1])
    drop_privileges()
    command = arguments[end + 1 :]
    try:
        os.execvp(command[0], command)  # noqa: S606  # the measured command
    except OSError as error:
        sys.stderr.write(f"strongroom: error: command: {command[0]}: {(error.strerror or '').lower()}\n")
        return 127 if isinstance(error, FileNotFoundError) else 126


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
