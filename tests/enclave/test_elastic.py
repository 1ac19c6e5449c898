"""An elastic torchrun of docs/how-to/distributed.md: replicas die, new ones are attested and join, it ends."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Self

import pytest

from strongroom.cli.run.replicas import Replicas, listener_of
from strongroom.enclave.launch import Enclave
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

# The example's network and what it keeps; it goes on until as many replicas have died and been replaced as it is told.
PROGRAM = """
import sys
from pathlib import Path
import torch, torch.distributed as dist
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from distributed_torch import digits, network, restore, save

data, out, kept, worlds = Path(sys.argv[1]), Path(sys.argv[2]), Path("/tmp/kept.pt"), Path("/tmp/worlds")
torch.set_num_threads(1)
torch.manual_seed(0)
dist.init_process_group("gloo")
rank, replicas = dist.get_rank(), dist.get_world_size()
model = network()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
done = epoch = restore(kept, model, optimizer)
with worlds.open("a") as file:
    file.write(str(replicas))
deaths = worlds.read_text().count("32")
print(f"replica {rank} of {replicas}", flush=True)
parallel = DistributedDataParallel(model)
images, labels = digits(data / "train.csv").tensors
mine = slice(rank, None, replicas)
last = torch.zeros(1)
while not last:
    epoch += 1
    for x, y in zip(images[mine].split(20), labels[mine].split(20)):
        optimizer.zero_grad()
        cross_entropy(parallel(x), y).backward()
        optimizer.step()
    save(kept, model, optimizer, epoch)
    if rank == 0:
        last += replicas == 3 and deaths == int(sys.argv[3]) and epoch >= done + 10
        print(f"epoch {epoch}", flush=True)
    dist.broadcast(last, 0)
if rank == 0:
    images, labels = digits(data / "test.csv").tensors
    right = (model(images).argmax(1) == labels).float().mean().item()
    (out / "right").write_text(str(right))
dist.barrier()
"""


class Launcher:
    """Launches replicas of a job, knows the newest of each number, and reads what replica 0 prints."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._read, self._write = os.pipe()
        self.newest: dict[int, Enclave] = {}

    def __call__(self, number: int, stdout: int | None, stderr: int | None) -> Enclave:
        listener, endpoint = listener_of(None, self._job.world.cas)
        shown = self._write if number == 0 else stdout
        enclave = self._job.launch(replica=number, listener=listener, endpoint=endpoint, stdout=shown, stderr=stderr)
        self.newest[number] = enclave
        return enclave

    def __enter__(self) -> Self:
        return self

    def lines(self) -> Iterator[str]:
        """Each as it is printed, until replica 0 ends; once it has been launched."""
        os.close(self._write)
        with os.fdopen(self._read, errors="replace") as stream:
            yield from stream

    def __exit__(self, *_: object) -> None:
        for enclave in self.newest.values():
            enclave.stop()


def until(lines: Iterator[str], text: str, times: int = 1) -> None:
    """Read on until that was printed so often. Raises AssertionError if it ends before."""
    for line in lines:
        times -= text in line
        if not times:
            return
    raise AssertionError(f"{text}: was not printed")


@pytest.mark.slow
@pytest.mark.parametrize("kills", [1, 10])
def test_replicas_that_die_and_new_ones_that_join(kills, world: World, bubblewrap, digits, tmp_path) -> None:  # noqa: F811
    needs("torch")
    (tmp_path / "elastic.py").write_text(PROGRAM)
    contents = {name: (digits / name).read_bytes() for name in ("train.csv", "test.csv")}
    job = world.job_of(
        ("torchrun", "elastic.py", "/data", "/out", str(kills)),
        {"elastic.py": tmp_path / "elastic.py", "distributed_torch.py": EXAMPLES / "distributed_torch.py"},
        rules=(DATA, OUT),
        vaults={"data": world.seal("data", **contents), "out": world.seal("out")},
        environment=QUIET | ELASTIC,
        replicas=3,
    )
    with world.owner() as client:  # a number is given again once the lease of who had it is over
        later = job.policy.text.replace("[policy]", "[policy]\nlease = 20").replace("version = 1", "version = 2")
        client.apply(later.replace('previous = ""', f'previous = "{job.policy.digest}"'))
    with Launcher(job) as launcher:
        replicas = Replicas(range(3), launcher, elastic=True)
        lines = launcher.lines()
        until(lines, "replica 0 of 3")
        for kill in range(kills):
            until(lines, "epoch", 3)
            launcher.newest[1 + kill % 2]._process.kill()  # not replica 0, which has the rendezvous
            until(lines, "replica 0 of 2")
            until(lines, "replica 0 of 3")
        for _ in lines:
            pass
        assert replicas.wait() == 0
    assert float(results(job)["right"]) > 0.85
