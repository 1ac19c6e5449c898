"""An elastic torchrun of docs/how-to/distributed.md: replicas die, new ones are attested and join, it ends."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from strongroom.cli.run.replicas import listener_of
from strongroom.errors import EnclaveError
from tests.enclave.conftest import DATA, OUT, Job, World
from tests.enclave.test_distributed import QUIET, digits  # noqa: F401  # a fixture
from tests.enclave.test_frameworks import EXAMPLES, needs, results

ELASTIC = {
    "PET_NNODES": "2:3",
    "PET_RDZV_BACKEND": "c10d",
    "PET_RDZV_ENDPOINT": "replica-0:29400",
    "PET_RDZV_ID": "digits",
    "PET_RDZV_CONF": "last_call_timeout=1",
    "PET_MAX_RESTARTS": "100",
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
}


class Watched:
    """A replica whose output is read line by line."""

    def __init__(self, job: Job, number: int) -> None:
        read, write = os.pipe()
        self.lines = os.fdopen(read, errors="replace")
        try:
            listener, endpoint = listener_of(None, job.world.cas)
            self.enclave = job.launch(replica=number, listener=listener, endpoint=endpoint, stdout=write)
        finally:
            os.close(write)

    def until(self, text: str, times: int = 1) -> None:
        """Read on until it has printed that so often. Raises AssertionError if it ends before."""
        seen = []
        for line in self.lines:
            seen.append(line)
            times -= text in line
            if not times:
                return
        raise AssertionError(f"{text}: not in {seen[-20:]}")

    def kill(self) -> None:
        self.enclave._process.kill()
        with pytest.raises(EnclaveError, match="SIGKILL"):
            self.enclave.wait()
        self.lines.close()


@pytest.mark.parametrize("kills", [1, pytest.param(10, marks=pytest.mark.slow)])
def test_replicas_that_die_and_new_ones_that_join(kills, world: World, bubblewrap, digits: Path) -> None:  # noqa: F811
    needs("torch")
    script = "distributed_torch.py"
    contents = {name: (digits / name).read_bytes() for name in ("train.csv", "test.csv")}
    job = world.job_of(
        ("torchrun", script, "/data", "/out", "--epochs", str(100 + 100 * kills)),
        {script: EXAMPLES / script},
        rules=(DATA, OUT),
        vaults={"data": world.seal("data", **contents), "out": world.seal("out")},
        environment=QUIET | ELASTIC,
        replicas=3,
    )
    replicas: list[Watched] = []
    try:
        for number in range(3):
            replicas.append(Watched(job, number))
        first = replicas[0]
        first.until("replica 0 of 3")
        for kill in range(kills):
            first.until("epoch", 3)
            killed = 1 + kill % 2  # replica 0 has the rendezvous
            replicas[killed].kill()
            first.until("replica 0 of 2")
            replicas[killed] = Watched(job, killed)
            first.until("replica 0 of 3")
        first.until("right: ")
        assert [each.enclave.wait() for each in replicas] == [0, 0, 0]
    finally:
        for each in replicas:
            if each.enclave.running:
                each.enclave.stop()
            each.lines.close()
    found = results(job)
    labels = np.loadtxt(digits / "test.csv", delimiter=",", dtype=np.float32)[:, 0]
    logits = np.loadtxt(found["predictions.csv"].decode().splitlines(), delimiter=",")
    assert (logits.argmax(1) == labels).mean() > 0.9
