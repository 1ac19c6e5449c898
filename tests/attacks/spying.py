"""Processes that look into an enclave from outside, and what they find."""

from __future__ import annotations

import subprocess
from pathlib import Path

STRANGER = 4242  # a user id that has nothing to do with enclaves

# Whatever of a process can be opened by name, or done to it by number.
SPY = """
import ctypes, errno, os, platform, sys
libc = ctypes.CDLL(None, use_errno=True)
own = {name: os.readlink(f"/proc/self/ns/{name}") for name in os.listdir("/proc/self/ns")}
buffer = ctypes.create_string_buffer(8)
class Piece(ctypes.Structure): _fields_ = [("base", ctypes.c_void_p), ("size", ctypes.c_size_t)]
here = Piece(ctypes.cast(buffer, ctypes.c_void_p), 8)
READ = {"x86_64": 310, "aarch64": 270}[platform.machine()]
def call(*words):
    ctypes.set_errno(0)
    return "did" if libc.syscall(*map(ctypes.c_long, words)) != -1 else errno.errorcode[ctypes.get_errno()]
for pid in sys.argv[1:]:
    for name in ("mem", "environ", "maps", "smaps", "pagemap", "auxv", "stack", "syscall", "io", "personality"):
        for place in (f"/proc/{pid}", *(f"/proc/{pid}/task/{task}" for task in os.listdir(f"/proc/{pid}/task"))):
            try:
                with open(f"{place}/{name}", "rb") as file: data = name == "mem" or file.read(4096)
                if data: print(pid, name)
            except OSError: pass
    for name in ("fd", "fdinfo", "map_files", "cwd/", "root/", "root/tmp", "root/run", "root/program", "root/dev/shm"):
        try: print(pid, name, os.listdir(f"/proc/{pid}/{name}"))
        except OSError: pass
    for name in ("exe", "cwd", "root", *(f"ns/{name}" for name in own)):
        try: print(pid, name, os.readlink(f"/proc/{pid}/{name}"))
        except OSError: pass
    for number in range(16):
        try: os.close(os.open(f"/proc/{pid}/fd/{number}", os.O_RDONLY)); print(pid, "opens", number)
        except OSError: pass
    there = Piece(0x400000, 8)
    if call(READ, int(pid), ctypes.addressof(here), 1, ctypes.addressof(there), 1, 0) != "EPERM":
        print(pid, "process_vm_readv")
    pidfd = os.pidfd_open(int(pid))
    if call(438, pidfd, 0, 0) != "EPERM": print(pid, "pidfd_getfd")
    if libc.setns(pidfd, 0x20000) != -1: print(pid, "setns")
    try: os.kill(int(pid), 0); print(pid, "signal")
    except OSError: pass
    if libc.ptrace(0x4206, int(pid), None, None) != -1:  # PTRACE_SEIZE, which stops nothing
        print(pid, "ptrace")
        libc.ptrace(17, int(pid), None, None)
"""


def family(pid: int) -> list[int]:
    """A process and all that descend from it."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    return [pid, *(each for child in children for each in family(child))]


def as_user(user: int) -> tuple[str, ...]:
    """The words before a command that has it run by another user."""
    words = ("--reuid", str(user), "--regid", str(user), "--clear-groups", "--bounding-set", "-all")
    return ("setpriv", *words)


def spied(pids: list[int], *identity: str) -> list[str]:
    """What a process with this identity sees of others."""
    command = [*identity, "/usr/bin/python3", "-I", "-c", SPY, *map(str, pids)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()
