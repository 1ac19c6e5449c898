"""Three real processes: what the survivors say when one of them dies without a word."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import os, sys
from pathlib import Path
import numpy as np
from strongroom.errors import StrongroomError
from strongroom.mpc import join_unix, matmul, relu
from strongroom.mpc.protocols.reveal import reveal, share

rank, directory, dies = int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
x = np.linspace(-2, 2, 64).reshape(8, 8)
try:
    with join_unix(rank, directory) as party:
        secret = share(party, lambda: x, source=0, shape=x.shape)
        product = matmul(secret, secret)
        if rank == dies:
            os._exit(9)
        result = reveal(relu(product), to=[0])
except StrongroomError as error:
    sys.exit(f"{error.code}: {error.message}")
if result is not None:
    print(np.abs(result - np.maximum(x @ x, 0)).max() < 1e-3)
"""


@pytest.mark.slow  # each process imports torch
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs Unix sockets")
@pytest.mark.parametrize("dies", [None, 1], ids=["nobody", "P1"])
def test_three_processes(dies, tmp_path):
    tmp_path.chmod(0o700)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(rank), str(tmp_path), str(-1 if dies is None else dies)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(3)
    ]
    ended = [(*process.communicate(timeout=100), process.returncode) for process in processes]
    if dies is None:
        assert ended == [("True\n", "", 0), ("", "", 0), ("", "", 0)]
        return
    assert ended[1][2] == 9
    for out, errors, code in (ended[0], ended[2]):
        assert code == 1
        assert out == ""
        assert errors.startswith(("channel: P1: ", "mpc: P0: ended: P1: "))
        assert "Traceback" not in errors
