"""The system calls that an enclave's program does without: a filter of the kernel's, made of a list of rules.

A list of what is refused, not of what is allowed: the programs are anybody's, frameworks take up calls with each
release, and namespaces, the lack of capabilities and Landlock already bound what a call can reach. The filter shuts
what these do not: calls that look into other processes, load code into the kernel, make namespaces or mounts, or have
been a kernel's weak spot and serve no computation.

- Calls newer than the newest one that was looked at here do not exist (ENOSYS), as on an older kernel.
- ``clone3`` does not exist either: its flags lie in memory, where no filter sees them. C libraries then use ``clone``.
- A call by another architecture's convention kills the process; x32's numbers are beyond the newest one.
- Memory may be made executable after it was written, shared, and locked: compilers at run time and loaders need that.

Sources: ``linux/filter.h``, ``linux/seccomp.h``, ``linux/audit.h`` and the kernel's tables of system calls.
"""

from __future__ import annotations

import errno
import platform
import struct
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

_NEWEST: Final = 469  # file_setattr, Linux 6.17; from 424 on all architectures have the same numbers

# Name: number on x86-64 and on aarch64; None where it has none.
_REFUSED: Final[dict[str, tuple[int | None, int | None]]] = {
    # other processes
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    # the kernel's own code and keys, and what watches it
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "userfaultfd": (323, 282),
    "fanotify_init": (300, 262),
    "lookup_dcookie": (212, 18),
    "syslog": (103, 116),
    # asynchronous calls, which no filter sees
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    # mounts, roots, namespaces
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "open_tree_attr": (467, 467),
    "open_by_handle_at": (304, 265),
    "unshare": (272, 97),
    "setns": (308, 268),
    # the machine
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "vhangup": (153, 58),
    "nfsservctl": (180, 42),
    "iopl": (172, None),
    "ioperm": (173, None),
    "modify_ldt": (154, None),
    "uselib": (134, None),
    "sysfs": (139, None),
    "_sysctl": (156, None),
}
_CLONE, _CLONE3, _PERSONALITY, _IOCTL, _SOCKET = (56, 220), (435, 435), (135, 92), (16, 29), (41, 198)
_NAMESPACES: Final = 0x7E020000  # CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
_PERSONALITIES: Final = (0, 0x8, 0xFFFFFFFF)  # PER_LINUX, PER_LINUX32, the question which one it is
_TERMINAL: Final = (0x5412, 0x541C)  # TIOCSTI and TIOCLINUX put words into the mouth of a terminal's reader
_UNIX, _INET, _INET6, _NETLINK = 1, 2, 10, 16

BOOT_NEEDS: Final = frozenset({"mount", "umount2", "unshare", "pivot_root", "sethostname"})
"""What boot does before the program starts: it mounts vaults, and gives the program a root and a network."""

# linux/audit.h: EM_X86_64 and EM_AARCH64, 64 bits, little-endian.
_MACHINES: Final = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}

# linux/filter.h and linux/seccomp.h
_LOAD, _EQUAL, _GREATER, _ANY_BIT, _RETURN = 0x20, 0x15, 0x25, 0x45, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data

_Instruction = tuple[int, int, int, int]
"""Code, instructions to skip if true, if false, operand."""


@dataclass(frozen=True)
class Refuse:
    """A call that fails with `error`.

    Attributes:
        number: the call's.
        argument: which of its arguments has a say; None refuses every call. Only the lower 32 bits are looked at, which
            is all that the kernel takes of these arguments, or all that has a meaning there.
        bits: refused if the argument has any of them.
        values: refused if it is one of them.
        unless: refused if it is none of them.
    """

    number: int
    error: int = errno.EPERM
    argument: int | None = None
    bits: int = 0
    values: tuple[int, ...] = ()
    unless: tuple[int, ...] = ()

    def assembled(self) -> list[_Instruction]:
        refuse, allow = _ret(_ERRNO | self.error), _ret(_ALLOW)
        body: list[_Instruction]
        if self.argument is None:
            body = [refuse]
        else:
            body = [(_LOAD, 0, 0, _ARGUMENTS + 8 * self.argument)]
            if self.bits:
                body += [(_ANY_BIT, 0, 1, self.bits), refuse, allow]
            for value in self.values or self.unless:
                body += [(_EQUAL, 0, 1, value), refuse if self.values else allow]
            if self.values or self.unless:
                body.append(allow if self.values else refuse)
        return [(_EQUAL, 0, len(body), self.number), *body]


def _ret(value: int) -> _Instruction:
    return _RETURN, 0, 0, value


def assemble(rules: Sequence[Refuse], architecture: int) -> bytes:
    """The rules as an array of ``struct sock_filter``; the first rule for a call decides."""
    program: list[_Instruction] = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, architecture),
        _ret(_KILL),
        (_LOAD, 0, 0, _NUMBER),
        (_GREATER, 0, 1, _NEWEST),
        _ret(_ERRNO | errno.ENOSYS),
    ]
    for rule in rules:
        program += rule.assembled()
    program.append(_ret(_ALLOW))
    return b"".join(struct.pack("=HBBI", *each) for each in program)


def seccomp_filter(
    *, network: bool = True, allow: Collection[str] = (), machine: str = platform.machine()
) -> bytes | None:
    """The filter for a machine, None for a kind of machine that has none here.

    Args:
        network: let it have sockets of IP, and of netlink, which tells of interfaces: where a network namespace of its
            own keeps it from others.
        allow: names of calls that are left to it all the same.
    """
    if machine not in _MACHINES:
        return None
    column, architecture = _MACHINES[machine]
    families = (_UNIX, _INET, _INET6, _NETLINK) if network else (_UNIX,)
    numbers = [each[column] for name, each in _REFUSED.items() if name not in allow]
    rules = [Refuse(number) for number in numbers if number is not None]
    rules += [
        Refuse(_CLONE3[column], errno.ENOSYS),
        Refuse(_CLONE[column], argument=0, bits=_NAMESPACES),
        Refuse(_PERSONALITY[column], argument=0, unless=_PERSONALITIES),
        Refuse(_IOCTL[column], argument=1, values=_TERMINAL),
        Refuse(_SOCKET[column], errno.EAFNOSUPPORT, argument=0, unless=families),
    ]
    return assemble(rules, architecture)
