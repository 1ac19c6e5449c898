"""Give up every privilege for good, then become the program. Standard library only: it runs before all else.

The program dies with the boot process, which alone seals what it wrote. With `no_new_privs` set, no later `execve` can
grant what the permitted set no longer holds, root or not.
"""

import ctypes
import errno
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
_CAPABILITY_VERSION_3 = 0x20080522
_CLONE_NEWNS = 0x00020000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REMOUNT, _MS_BIND = 1, 2, 4, 8, 32, 4096
_MS_BIND, _MS_REC = 4096, 16384
_MNT_DETACH = 2
_LANDLOCK_RESTRICT_SELF = 446  # on every architecture
_INSTRUCTION = 8  # sizeof(struct sock_filter)


class _Filter(ctypes.Structure):
    """``struct sock_fprog`` of ``linux/filter.h``."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def drop_privileges() -> None:
    """Raises OSError if the kernel refuses."""
    libc = ctypes.CDLL(None, use_errno=True)
    failed = (
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        or libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        or libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    )
    if failed:
        raise _error()
    keep_capabilities()


def keep_capabilities(*kept: int) -> None:
    """Keep these capabilities, of those that there are, and no others. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    data = (ctypes.c_uint32 * 6)()
    if kept and libc.capget(header, data):
        raise _error()
    wanted = sum(1 << number for number in kept)
    for word in range(2):
        left = data[3 * word + 1] & (wanted >> 32 * word)  # of the permitted ones
        data[3 * word], data[3 * word + 1], data[3 * word + 2] = left, left, 0
    if libc.capset(header, data):
        raise _error()


def filter_calls(instructions: bytes) -> None:
    """Have the kernel filter this process's system calls from now on, and those of all that it starts.

    Other threads are not covered. Raises OSError.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    program = _Filter(len(instructions) // _INSTRUCTION, instructions)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(
        _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0
    ):
        raise _error()


def become_user(user: int) -> None:
    """Take this user id and a group of the same number, and lose every capability. Raises OSError.

    The kernel then forgets with whom this process dies (`drop_privileges` says so again), and whether it is private.
    """
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)


def enter_ruleset(descriptor: int) -> None:
    """Enter Landlock's rules, for good. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(_LANDLOCK_RESTRICT_SELF, descriptor, ctypes.c_uint32(0)):
        raise _error()
    os.close(descriptor)


def hide(directory: str) -> None:
    """Cover a directory with an empty file system, in a mount namespace of this process's own. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    flags = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC | _MS_RDONLY
    failed = libc.unshare(_CLONE_NEWNS) or libc.mount(b"none", os.fsencode(directory), b"tmpfs", flags, b"size=4k")
    if failed:
        raise _error(directory)


def mount_memory(directory: str) -> None:
    """A file system in memory for its owner alone. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"none", os.fsencode(directory), b"tmpfs", _MS_NOSUID | _MS_NODEV, b"mode=700"):
        raise _error(directory)


def bind(source: str, target: str) -> None:
    """Show a directory, with what is mounted in it, or a file at another place as well. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(os.fsencode(source), os.fsencode(target), None, _MS_BIND | _MS_REC, None):
        raise _error(target)


def overlay(source: str, below: str, target: str) -> None:
    """Show a directory at another place, to read, through an overlay that has another below it. Raises OSError."""
    lower = ":".join("".join(f"\\{c}" if c in "\\:," else c for c in path) for path in (source, below))
    libc = ctypes.CDLL(None, use_errno=True)
    flags = _MS_RDONLY | _MS_NOSUID | _MS_NODEV
    if libc.mount(b"strongroom", os.fsencode(target), b"overlay", flags, os.fsencode(f"lowerdir={lower}")):
        raise _error(target)


def enter_root(directory: str) -> None:
    """Make a directory the root, in a mount namespace of this process's own in which nothing else is mounted any more.

    Raises OSError.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS):
        raise _error()
    bind(directory, directory)
    os.chdir(directory)
    # On top of the old root, which lies below it then: pivot_root(2), "pivot_root(".", ".")".
    if libc.pivot_root(b".", b".") or libc.umount2(b".", _MNT_DETACH):
        raise _error(directory)
    os.chdir("/")


def protect(directory: str) -> None:
    """Let nobody change what `mount_memory` has mounted there. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    flags = _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _MS_NOSUID | _MS_NODEV
    if libc.mount(b"none", os.fsencode(directory), None, flags, None):
        raise _error(directory)


def unmount(directory: str) -> None:
    """Take away what is mounted there, even while it is used. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(directory), _MNT_DETACH):
        raise _error(directory)


def execute(command: list[str], environment: dict[str, str]) -> OSError:
    """Become a program, looked up on its own `PATH`; or what the kernel said against it.

    As `os.execvpe` does it, which imports a module for that.
    """
    places = [""] if "/" in command[0] else [f"{each or '.'}/" for each in environment.get("PATH", "").split(":")]
    refused: OSError = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    for place in places:
        try:
            os.execve(place + command[0], command, environment)  # noqa: S606  # the measured command
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            refused = error if isinstance(refused, FileNotFoundError) else refused
    return refused


def main(arguments: list[str]) -> int:
    """``[--hide DIRECTORY] [--root DIRECTORY --directory DIRECTORY] [--user ID] [--ruleset DESCRIPTOR] [--filter HEX]
    [--environment DESCRIPTOR] -- COMMAND ...``

    In a root of its own the program starts in `--directory` there. Its variables may come through a descriptor, each
    ended by a zero byte: some have a say in how this interpreter runs.

    Returns only if the command cannot be run.
    """
    end = arguments.index("--")
    options, command = dict(zip(arguments[:end:2], arguments[1:end:2], strict=True)), arguments[end + 1 :]
    # Each step needs what a later one takes away.
    if "--hide" in options:
        hide(options["--hide"])
    environment = dict(os.environ)
    if "--environment" in options:
        with os.fdopen(int(options["--environment"]), "rb") as stream:
            told = [each.partition(b"=") for each in stream.read().split(b"\0") if each]
        environment = {os.fsdecode(name): os.fsdecode(value) for name, _, value in told}
    if "--root" in options:
        sys.meta_path.clear()  # what this process would import from now on is not its own
        enter_root(options["--root"])
    if "--user" in options:
        become_user(int(options["--user"]))
    drop_privileges()
    if "--ruleset" in options:
        enter_ruleset(int(options["--ruleset"]))
    if "--filter" in options:
        filter_calls(bytes.fromhex(options["--filter"]))
    try:
        if "--directory" in options:
            os.chdir(options["--directory"])
    except OSError as error:
        sys.stderr.write(f"strongroom: error: directory: {error.filename}: {(error.strerror or '').lower()}\n")
        return 126
    refused = execute(command, environment)
    sys.stderr.write(f"strongroom: error: command: {command[0]}: {(refused.strerror or '').lower()}\n")
    return 127 if isinstance(refused, FileNotFoundError) else 126


def _error(place: str | None = None) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), place)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
