"""Landlock: what of the file system a program reaches, whatever its user id has a right to. Best effort.

`ruleset` collects the rules in boot; the program's process enters them once its own mounts are made, because no file
system can be mounted from within. What the running kernel does not know of is left out: `Ruleset.version` says how much
it knows. A program keeps what it had open before.

Source: the kernel's ``Documentation/userspace-api/landlock.rst`` and ``linux/landlock.h``.
"""

from __future__ import annotations

import ctypes
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

# The same on every architecture.
_CREATE_RULESET, _ADD_RULE = 444, 445
_CREATE_RULESET_VERSION: Final = 1
_RULE_PATH_BENEATH: Final = 1

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_TRUNCATE, _IOCTL_DEV = 1 << 14, 1 << 15
_OF_FILES: Final = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
# Version of the interface: all rights over files that it knows.
_KNOWN: Final = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}
_TCP_SINCE, _SCOPES_SINCE = 4, 6
_BIND_AND_CONNECT_TCP: Final = 0b11
_ABSTRACT_SOCKETS_AND_SIGNALS: Final = 0b11

LOOK: Final = _READ_DIR
READ: Final = _EXECUTE | _READ_FILE | _READ_DIR
WRITE: Final = _WRITE_FILE | _TRUNCATE
DEVICE: Final = _READ_FILE | _WRITE_FILE | _TRUNCATE | _IOCTL_DEV
CHANGE: Final = (1 << 16) - 1 - _IOCTL_DEV
EXECUTE: Final = _EXECUTE
"""Rights to grant: see names; read and execute; write to a file; use a device; do anything below a directory; of all
that, execute."""


@dataclass(frozen=True)
class Ruleset:
    """Rules that a process can enter.

    Attributes:
        descriptor: what ``landlock_restrict_self`` takes.
        version: of the kernel's interface.
    """

    descriptor: int
    version: int

    def close(self) -> None:
        os.close(self.descriptor)


def landlock_version() -> int:
    """The version of the running kernel's interface, 0 if it has none."""
    version: int = _libc().syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_CREATE_RULESET_VERSION))
    return max(version, 0)


def ruleset(rights: Iterable[tuple[str | int, int]], *, tcp: bool) -> Ruleset | None:
    """Rules that grant these rights and no others; None without Landlock.

    Also no process outside may be signalled, and none reached by an abstract socket, where the kernel knows that.

    Args:
        rights: a path or an open descriptor, and what may be done there and below. What does not exist, or is no file
            of a file system, such as a pipe, is passed over.
        tcp: allow TCP, as in a network namespace of its own.

    Raises:
        OSError: the kernel refused.
    """
    version = landlock_version()
    if version == 0:
        return None
    known = _KNOWN[min(version, max(_KNOWN))]
    handled = [known]
    if version >= _TCP_SINCE:
        handled.append(0 if tcp else _BIND_AND_CONNECT_TCP)
    if version >= _SCOPES_SINCE:
        handled.append(_ABSTRACT_SOCKETS_AND_SIGNALS)
    attributes = (ctypes.c_uint64 * len(handled))(*handled)
    libc = _libc()
    descriptor = libc.syscall(
        _CREATE_RULESET, attributes, ctypes.c_size_t(ctypes.sizeof(attributes)), ctypes.c_uint32(0)
    )
    if descriptor < 0:
        raise _error("landlock_create_ruleset")
    for place, granted in rights:
        try:
            at = os.open(place if isinstance(place, str) else f"/proc/self/fd/{place}", os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            allowed = granted & known & (-1 if stat.S_ISDIR(os.fstat(at).st_mode) else _OF_FILES)
            rule = _PathBeneath(allowed, at)
            if allowed:
                # EBADFD for pipes and sockets, which no rule concerns
                libc.syscall(_ADD_RULE, descriptor, _RULE_PATH_BENEATH, ctypes.byref(rule), ctypes.c_uint32(0))
        finally:
            os.close(at)
    return Ruleset(descriptor, version)


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32))


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _error(call: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), call)
