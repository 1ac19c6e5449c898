"""Two ranks that train together with PyTorch, killed over and over, one or both, beside two that are left alone.

``python -m tests.mirror.kills_ranks KIND --kills N --seed S --directory D`` prints a line of JSON; KIND is ddp or fsdp.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from strongroom import mirror
from strongroom.mirror.ranks import RankedMirror
from strongroom.mirror.torch import TorchRanks, Training
from strongroom.sealed import NO_FRESHNESS, FileAnchor
from tests.mirror.kills import KEY
from tests.mirror.lives import child, curve

RANKS = 2
EPOCHS = 2


def train(rank: int, directory: Path, kind: str, attempt: int) -> None:
    """Train to the end, from wherever the mirrors in `directory` are; each step is a line of the rank's log."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{directory}/store-{attempt}",
        rank=rank,
        world_size=RANKS,
        timeout=datetime.timedelta(seconds=20),
    )
    torch.manual_seed(1 + rank)
    generator = torch.Generator().manual_seed(5)
    data = TensorDataset(torch.randn(96, 10, generator=generator), torch.randint(0, 3, (96,), generator=generator))
    loader = DataLoader(data, batch_size=6, sampler=DistributedSampler(data, RANKS, rank, shuffle=True))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        inner = nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3))
    model: nn.Module
    if kind == "fsdp":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        model = fully_shard(inner, mesh=init_device_mesh("cpu", (RANKS,)))
    else:
        model = nn.parallel.DistributedDataParallel(inner)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    part = mirror.open(directory / f"part{rank}", key=KEY, anchor=NO_FRESHNESS, durability="process")
    record = None
    if rank == 0:
        record = mirror.open(
            directory / "record", key=KEY, anchor=FileAnchor(directory / "anchor"), durability="process"
        )
    with RankedMirror(part, record, TorchRanks(timeout=20)) as ranked, (directory / f"log{rank}").open("a") as lines:
        training = Training(ranked, model=model, optimizer=optimizer, loader=loader)
        training.restore()
        for _, batches in training.epochs(EPOCHS):
            for inputs, labels in batches:
                loss = nn.functional.cross_entropy(model(inputs), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                lines.write(f"{training.step + 1} {loss.item().hex()}\n")
                lines.flush()
                training.commit()
        digest = hashlib.sha256()
        for value in model.state_dict().values():
            local = value.to_local() if hasattr(value, "to_local") else value
            digest.update(local.detach().numpy().tobytes())
        lines.write(f"end {digest.hexdigest()}\n")
    distributed.destroy_process_group()


def run(directory: Path, kind: str, kills: int, seed: int) -> dict[str, Any]:
    rng = random.Random(seed)  # noqa: S311  # a failure must come back
    for name in ("alone", "killed"):
        (directory / name).mkdir()
    began = time.monotonic()
    alone = [child(train, rank, directory / "alone", kind, 0) for rank in range(RANKS)]
    assert [os.waitpid(number, 0)[1] for number in alone] == [0] * RANKS
    took = time.monotonic() - began
    done = attempt = 0
    while True:
        attempt += 1
        numbers = [child(train, rank, directory / "killed", kind, attempt) for rank in range(RANKS)]
        victims = rng.choice(([0], [1], [0, 1]))
        wanted = done < kills
        deadline = time.monotonic() + (rng.uniform(0, took * 0.7) if wanted else 600)
        codes: dict[int, int] = {}
        patience = float("inf")  # a launcher ends the others, too, where they do not see by themselves that one is gone
        while len(codes) < RANKS:
            if wanted and time.monotonic() > deadline:
                for rank in victims:
                    if rank not in codes:
                        os.killpg(numbers[rank], signal.SIGKILL)
                done, wanted, patience = done + 1, False, time.monotonic() + 2
            if time.monotonic() > patience:
                for rank in set(range(RANKS)) - codes.keys():
                    os.killpg(numbers[rank], signal.SIGKILL)
            for rank, number in enumerate(numbers):
                if rank not in codes and (found := os.waitpid(number, os.WNOHANG))[0]:
                    codes[rank] = found[1]
            time.sleep(0.0005)
        if codes == dict.fromkeys(range(RANKS), 0):
            break
        assert attempt < 10 * kills + 10, codes
    same = [curve(directory / "alone" / f"log{rank}") == curve(directory / "killed" / f"log{rank}") for rank in (0, 1)]
    return {"kills": done, "steps": len(curve(directory / "alone" / "log0")) - 1, "same": same}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=("ddp", "fsdp"))
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--directory", type=Path, required=True)
    args = parser.parse_args()
    print(json.dumps(run(args.directory, args.kind, args.kills, args.seed)))


if __name__ == "__main__":
    main()
