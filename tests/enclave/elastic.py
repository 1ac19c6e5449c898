"""An elastic torchrun of docs/how-to/distributed.md, whose replicas die again and again."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from strongroom.cli.run.replicas import Replicas, listener_of
from strongroom.enclave.launch import Enclave
from strongroom.errors import StrongroomError
from tests.enclave.conftest import DATA, OUT, Job, World

EXAMPLES = Path(__file__).parents[2] / "examples"
ELASTIC = {
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "OMP_NUM_THREADS": "1",
    "PET_NNODES": "2:3",
    "PET_RDZV_BACKEND": "c10d",
    "PET_RDZV_ENDPOINT": "replica-0:29400",
    "PET_RDZV_ID": "digits",
    "PET_RDZV_CONF": "last_call_timeout=1",
    "PET_MAX_RESTARTS": "100",
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
}
LEASE = 20  # seconds after which whoever was killed may be replaced

# The example's network and what it keeps. It goes on until as many replicas have died and been replaced as it is told,
# and ten epochs more. Where programs are to die, that of rank 0 says which; enclaves are killed from outside, and it
# counts those that are new.
PROGRAM = """
import os, signal, sys
from pathlib import Path
import torch, torch.distributed as dist
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from distributed_torch import digits, network, restore, save

data, out, kills, programs = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "program"
kept, known, counted = Path("/tmp/kept.pt"), Path("/tmp/known"), Path("/tmp/deaths")
torch.set_num_threads(1)
torch.manual_seed(0)
dist.init_process_group("gloo")
rank, replicas = dist.get_rank(), dist.get_world_size()
model = network()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
new = torch.tensor(0.0 if known.exists() else 1.0)
dist.all_reduce(new)
known.touch()
done = epoch = restore(kept, model, optimizer)
deaths = 0
if rank == 0 and (counted.exists() or replicas == 3):
    deaths = int(counted.read_text()) + (0 if programs else int(new)) if counted.exists() else 0
    counted.write_text(str(deaths))
print(f"replica {rank} of {replicas}, {deaths} died", flush=True)
parallel = DistributedDataParallel(model)
images, labels = digits(data / "train.csv").tensors
mine = slice(rank, None, replicas)
said = torch.zeros(2)  # whether this was the last epoch, and who is to die
while not said[0]:
    epoch += 1
    for x, y in zip(images[mine].split(20), labels[mine].split(20)):
        optimizer.zero_grad()
        cross_entropy(parallel(x), y).backward()
        optimizer.step()
    save(kept, model, optimizer, epoch)
    if rank == 0:
        if programs and deaths < kills and epoch == done + 3:
            deaths += 1
            counted.write_text(str(deaths))
            said[1] = 1 + deaths % (replicas - 1)
        said[0] = replicas == 3 and deaths == kills and epoch >= done + 10
        print(f"epoch {epoch}", flush=True)
    dist.broadcast(said, 0)
    if said[1] == rank > 0:
        print("dies", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
if rank == 0:
    images, labels = digits(data / "test.csv").tensors
    right = (model(images).argmax(1) == labels).float().mean().item()
    (out / "right").write_text(str(right))
dist.barrier()
"""

Victim = Literal["enclave", "program"]


class Launcher:
    """Launches replicas of a job, knows the newest of each number, and reads what they print."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._read, self._write = os.pipe()
        self.newest: dict[int, Enclave] = {}

    def __call__(self, number: int, stdout: int | None, stderr: int | None) -> Enclave:
        listener, endpoint = listener_of(None, self._job.world.cas)
        enclave = self._job.launch(
            replica=number, listener=listener, endpoint=endpoint, stdout=self._write, stderr=stderr
        )
        self.newest[number] = enclave
        return enclave

    def __enter__(self) -> Self:
        return self

    def lines(self) -> Iterator[str]:
        """Each as it is printed, until all have ended."""
        with os.fdopen(self._read, errors="replace") as stream:
            yield from stream

    def close_after(self, replicas: Replicas) -> None:
        """Once they have all ended, so that the lines end."""
        with suppress(StrongroomError):
            replicas.wait()
        os.close(self._write)

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


@dataclass(frozen=True)
class Ended:
    """What became of a training: its exit status, and how many replicas were killed."""

    job: Job
    status: int
    kills: int


def train(world: World, digits: Path, victim: Victim, kills: int) -> Ended:
    """Three replicas, of which the other two than 0, which has the rendezvous, are killed in turn."""
    script = world.directory / "elastic.py"
    script.write_text(PROGRAM)
    contents = {name: (digits / name).read_bytes() for name in ("train.csv", "test.csv")}
    job = world.job_of(
        ("torchrun", "elastic.py", "/data", "/out", str(kills), victim),
        {"elastic.py": script, "distributed_torch.py": EXAMPLES / "distributed_torch.py"},
        rules=(DATA, OUT),
        vaults={"data": world.seal("data", **contents), "out": world.seal("out")},
        environment=ELASTIC,
        replicas=3,
        lease=LEASE,
    )
    killed = 0
    with Launcher(job) as launcher:
        replicas = Replicas(range(3), launcher, elastic=True)
        waiter = threading.Thread(target=launcher.close_after, args=(replicas,))
        waiter.start()
        lines = launcher.lines()
        until(lines, "replica 0 of 3, 0 died")
        for kill in range(kills if victim == "enclave" else 0):
            until(lines, "epoch", 3)
            launcher.newest[1 + kill % 2]._process.kill()
            killed += 1
            until(lines, f"replica 0 of 3, {killed} died")
        for line in lines:
            killed += "dies" in line
        waiter.join()
        return Ended(job, replicas.wait(), killed)
