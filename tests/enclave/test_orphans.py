"""Enclaves whose bubblewrap is killed before it has tied them to itself."""

import os
import subprocess
import sys
from contextlib import ExitStack
from types import SimpleNamespace

import pytest

from strongroom.enclave import sandbox
from strongroom.enclave.launch import Enclave, _read_pid
from strongroom.errors import EnclaveError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="bubblewrap is Linux's")


@pytest.fixture
def orphan():
    child = subprocess.Popen(["sleep", "1000"])
    yield child
    child.kill()
    child.wait()


def test_one_that_outlives_its_bubblewrap_is_ended(orphan):
    host = SimpleNamespace(join=lambda: None, status=0, failure=None)
    group = SimpleNamespace(out_of_memory=False)
    killed = subprocess.Popen(["true"])
    killed.wait()
    assert Enclave(killed, host, ExitStack(), orphan.pid, None, group).wait() == 0
    assert orphan.wait() == -9


def test_one_that_was_never_reported_is_not_waited_for():
    """It holds the pipe for the report, as bubblewrap's child does."""
    read, write = os.pipe()
    command = [sys.executable, "-c", "import os; os.fork() or os.execlp('sleep', 'sleep', '1000'); os._exit(1)"]
    with subprocess.Popen(command, pass_fds=[write], start_new_session=True) as killed:
        os.close(write)
        assert _read_pid(read, killed) is None
    assert os.read(read, 1) == b""  # nobody holds it
    os.close(read)


def test_a_trial_that_was_killed_says_nothing_of_what_there_is(tmp_path):
    bwrap = tmp_path / "bwrap"
    bwrap.write_text("#!/bin/sh\nkill -9 $$\n")
    bwrap.chmod(0o755)
    with pytest.raises(EnclaveError, match="ended by SIGKILL as it was tried"):
        sandbox._works([str(bwrap)])
