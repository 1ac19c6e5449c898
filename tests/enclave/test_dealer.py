"""A dealer in a real simulated enclave: measured, launched, appraised by two servers, and dealing."""

import datetime as dt
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from strongroom.attest.appraise import ReferenceValues
from strongroom.channel import Identity, accept
from strongroom.enclave.dealer_evidence import appraise_dealer
from strongroom.errors import MeasurementError, StrongroomError

pytest.importorskip("torch", reason="computing on shares needs PyTorch: it is not tested")

from strongroom.cli.mpc.dealer import dealer_dials, dealer_enclave, dealer_policy, read_dealer_policy
from strongroom.cli.remembered import compiled_code
from strongroom.enclave.launch import launch
from strongroom.enclave.measure import measure
from strongroom.mpc import World, reveal, share
from strongroom.mpc.connect import join_unix
from strongroom.mpc.ring import Settings
from strongroom.mpc.script import Script

PROGRAM = """
import os, sys
import torch
from strongroom import mpc
assert os.environ["STRONGROOM_MPC_RANK"] == "2", "the servers run it in this process"
assert sys.argv[1:] == ["--words"] and __name__ == "__main__"
status = open("/proc/self/status").read()
assert "CapEff:\\t0000000000000000" in status and "NoNewPrivs:\\t1" in status
x = mpc.share(lambda: 1 / 0, source=mpc.P0, shape=(3,))
mpc.reveal(torch.relu(x), to=mpc.P1)
"""
WAIT = 120.0  # PyTorch is compiled from what was measured first


@pytest.fixture
def short():
    """Sockets' paths are short."""
    with tempfile.TemporaryDirectory(prefix="sr-", dir="/tmp") as path:
        yield Path(path)


def servers(directory, program, reference):
    """What both servers returned or raised, in threads that have started."""
    found = {}

    def one(rank):
        try:
            party = join_unix(
                rank,
                directory,
                Settings(),
                wait=WAIT,
                program=program,
                appraise=lambda stream: appraise_dealer(stream, rank, reference, now=lambda: int(time.time())),
            )
            with party, World(party):
                x = share(lambda: np.array([-1.0, 2.0, 3.0]), source=0, shape=(3,))
                found[rank] = reveal(x.relu(), to=1)
        except StrongroomError as error:
            found[rank] = error

    threads = [threading.Thread(target=one, args=(rank,), daemon=True) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    return found, threads


def test_a_measured_dealer_deals_and_another_script_does_not(short, tmp_path, home_and_cas, monkeypatch):
    home, _ = home_and_cas
    monkeypatch.chdir(tmp_path)
    Path("program.py").write_text(PROGRAM)
    words = ["program.py", "--words"]
    config, files = dealer_enclave(words, Settings(), module=False, include=[])
    measured, vendor = measure(config, files), home.vendor()
    Path("dealer.toml").write_text(dealer_policy(measured.value, vendor.root_digest))
    reference = read_dealer_policy(Path("dealer.toml"))
    assert reference == ReferenceValues(("simulated",), (measured.value,), allow_simulated=vendor.root_digest)
    digest = Script.find(words, module=False).digest

    def launched():
        dials = dealer_dials(sockets=short, peers=None, wait=WAIT)
        return launch(config, files, cas=None, vendor=vendor, vaults={}, dials=dials, compiled=compiled_code(home))

    found, threads = servers(short, digest, reference)
    assert launched().wait() == 0
    for thread in threads:
        thread.join()
    assert found[1].tolist() == pytest.approx([0, 2, 3], abs=1e-3)

    Path("program.py").write_text(PROGRAM + "# and tells a friend what it dealt\n")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(short / "P0.sock"))
        listener.listen()
        other = launched()
        sock, _ = listener.accept()
        assert sock.recv(1) == b"\2"
        stream = accept(sock, expect=lambda chain: None, identity=Identity.fresh("P0", now=dt.datetime.now(dt.UTC)))
        with pytest.raises(MeasurementError, match=measured.value):
            appraise_dealer(stream, 0, reference, now=lambda: int(time.time()))
        with pytest.raises(MeasurementError):
            other.wait()
        stream.close()


@pytest.mark.slow
def test_three_processes_with_the_dealer_in_an_enclave(short, tmp_path):
    """The command: the dealer's policy reaches the servers, and a second file the enclave."""
    script = tmp_path / "program.py"
    script.write_text(
        "from pathlib import Path\nimport torch\nfrom strongroom import mpc\n"
        "count = int(Path(__file__).with_name('count').read_text())\n"
        "x = mpc.share(lambda: torch.arange(float(count)) - 1, source=0, shape=(count,))\n"
        "y = mpc.reveal(x.relu(), to=0)\n"
        "if isinstance(y, torch.Tensor):\n    print('revealed', y.tolist())\n"
    )
    (tmp_path / "count").write_text("3")
    ended = subprocess.run(
        [sys.executable, "-m", "strongroom", "mpc", "run", "--dealer-enclave", "--include", "count", "program.py"],
        cwd=tmp_path,
        env={**os.environ, "STRONGROOM_HOME": str(tmp_path / "home"), "TMPDIR": str(short)},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == "revealed [0.0, 0.0, 1.0]\n"
    assert "P0 appraised the dealer: simulated" in ended.stderr
    assert "protects nothing" in ended.stderr
