"""What a process that holds keys asks of the kernel."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")

_PROGRAM = """
import ctypes, resource
from strongroom.enclave.process import keep_private

PR_GET_DUMPABLE = 3
libc = ctypes.CDLL(None)
before = libc.prctl(PR_GET_DUMPABLE, 0, 0, 0, 0)
keep_private()
print(before, libc.prctl(PR_GET_DUMPABLE, 0, 0, 0, 0), *resource.getrlimit(resource.RLIMIT_CORE))
"""


def test_memory_reaches_no_core_file() -> None:
    done = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, timeout=60, check=True)
    # A limit of 0 would not keep the kernel from piping memory to a program of the host's.
    assert done.stdout.split() in (["1", "0", "1", "1"], ["1", "0", "0", "0"])
