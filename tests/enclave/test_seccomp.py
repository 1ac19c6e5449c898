"""The filter of system calls, run by an interpreter of its instructions: the kernel runs it in `test_sandbox.py`."""

import errno
import struct

import pytest

from strongroom.enclave.seccomp import BOOT_NEEDS, seccomp_filter

ALLOWED, KILLED = "allowed", "killed"
X86, ARM = 0xC000003E, 0xC00000B7
UNIX, INET, INET6, NETLINK, VSOCK = 1, 2, 10, 16, 40


def answer(program, number, *arguments, architecture):
    """What the kernel does at a call: by the documentation of classic BPF, `linux/filter.h`."""
    data = struct.pack("=iIQ6Q", number, architecture, 0, *arguments, *[0] * (6 - len(arguments)))
    at, accumulator = 0, 0
    while True:
        code, if_true, if_false, operand = struct.unpack_from("=HBBI", program, 8 * at)
        at += 1
        match code:
            case 0x20:
                (accumulator,) = struct.unpack_from("=I", data, operand)
            case 0x15:
                at += if_true if accumulator == operand else if_false
            case 0x25:
                at += if_true if accumulator > operand else if_false
            case 0x45:
                at += if_true if accumulator & operand else if_false
            case 0x06:
                kinds = {0x7FFF0000: ALLOWED, 0x80000000: KILLED, 0x00050000: operand & 0xFFFF}
                return kinds[operand & 0xFFFF0000]
            case _:
                raise AssertionError(hex(code))


@pytest.fixture(params=["x86_64", "aarch64"])
def machine(request):
    """Numbers by name, and what a filter answers."""
    names = "read mmap mprotect shmat futex clone personality ioctl socket ptrace mount unshare bpf keyctl arch_prctl"
    architecture, numbers = {
        "x86_64": (X86, (0, 9, 10, 30, 202, 56, 135, 16, 41, 101, 165, 272, 321, 250, 158)),
        "aarch64": (ARM, (63, 222, 226, 196, 98, 220, 92, 29, 198, 117, 40, 97, 280, 219, 167)),
    }[request.param]
    known = dict(zip(names.split(), numbers, strict=True))

    def ask(call, *arguments, **options):
        program = seccomp_filter(machine=request.param, **options)
        return answer(program, known.get(call, call), *arguments, architecture=architecture)

    return ask


def test_computing_is_allowed_and_looking_into_others_is_not(machine):
    for call in ("read", "mmap", "mprotect", "shmat", "futex", "arch_prctl"):
        assert machine(call) == ALLOWED
    for call in ("ptrace", "mount", "unshare", "bpf", "keyctl"):
        assert machine(call) == errno.EPERM


def test_calls_that_nobody_has_looked_at_do_not_exist(machine):
    assert machine(469) == ALLOWED
    assert machine(470) == errno.ENOSYS
    assert machine(435) == errno.ENOSYS  # clone3
    assert machine(0x40000000) == errno.ENOSYS  # x32


def test_another_architecture_is_killed():
    program = seccomp_filter(machine="x86_64")
    assert answer(program, 0, architecture=0x40000003) == KILLED  # int 0x80
    assert seccomp_filter(machine="m68k") is None


def test_threads_and_children_are_made_but_no_namespaces(machine):
    assert machine("clone", 0x003D0F00) == ALLOWED  # a thread, as glibc makes it
    for bit in (17, 25, 26, 27, 28, 29, 30):
        assert machine("clone", 1 << bit | 17) == errno.EPERM


def test_arguments_are_compared_as_the_kernel_takes_them(machine):
    high = 1 << 32  # which the kernel drops
    assert machine("ioctl", 0, 0x5412) == errno.EPERM
    assert machine("ioctl", 0, high | 0x5412) == errno.EPERM
    assert machine("ioctl", 0, 0x5413) == ALLOWED  # the size of a terminal
    assert machine("personality", 0xFFFFFFFF) == ALLOWED
    assert machine("personality", 0x0040000) == errno.EPERM  # no randomised addresses


def test_sockets_are_for_what_a_namespace_holds(machine):
    for family in (UNIX, INET, INET6, NETLINK):
        assert machine("socket", family) == ALLOWED
    assert machine("socket", VSOCK) == errno.EAFNOSUPPORT
    assert machine("socket", UNIX, network=False) == ALLOWED
    for family in (INET, INET6, NETLINK, VSOCK):
        assert machine("socket", family, network=False) == errno.EAFNOSUPPORT


def test_boot_may_mount_and_nothing_more(machine):
    for call in BOOT_NEEDS & {"mount", "unshare"}:
        assert machine(call, allow=BOOT_NEEDS) == ALLOWED
    assert machine("ptrace", allow=BOOT_NEEDS) == errno.EPERM
