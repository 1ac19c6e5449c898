"""A launcher's own directories are gone when it has ended, and when it was killed."""

import os
import select
import signal
import subprocess
import sys

import pytest

from strongroom.enclave.directories import cleared_away, directory_for_sockets

pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="Linux has descriptors of processes")

LAUNCHER = """
import os, sys
from pathlib import Path
from strongroom.enclave.directories import cleared_away
with cleared_away([Path(sys.argv[1])]):
    print(Path(f"/proc/self/task/{os.getpid()}/children").read_text(), flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def directory(tmp_path):
    path = tmp_path / "own"
    (path / "inner").mkdir(parents=True)
    (path / "inner/file").write_text("x")
    return path


def test_of_one_that_has_ended(directory):
    with cleared_away([directory]):
        assert (directory / "inner/file").exists()
    assert not directory.exists()


def test_of_one_that_was_killed(directory):
    command = [sys.executable, "-c", LAUNCHER, directory]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as launcher:
        shell = os.pidfd_open(int(launcher.stdout.readline().split()[0]))
        launcher.send_signal(signal.SIGKILL)
        select.select([shell], [], [])  # until it has ended
        os.close(shell)
    assert not directory.exists()


def test_sockets_fit_in_their_directory(monkeypatch):
    for path, wanted in (("/tmp/short", "/tmp/short"), (f"/tmp/{'long' * 30}", "/tmp"), (f"/tmp/{'ä' * 30}", "/tmp")):
        monkeypatch.setattr("tempfile.tempdir", path)
        assert directory_for_sockets() == wanted
