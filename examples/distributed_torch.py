"""Train a small convolutional network in PyTorch on several replicas, with DistributedDataParallel over Gloo.

An ordinary script for ``torchrun``. It reads ``DATA/train.csv`` and ``DATA/test.csv``, which ``digits_files.py``
writes; the replica of rank 0 writes ``OUT/weights.pt`` and ``OUT/predictions.csv``. For three replicas on one machine::

    torchrun --nproc-per-node 3 distributed_torch.py DATA OUT

Each replica keeps a checkpoint of every epoch at ``--keep``. After a start, the one that is furthest tells all others,
so replicas may come and go under an elastic ``torchrun``: whoever is left goes on.
"""

import argparse
import os
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset


def digits(path: Path) -> TensorDataset:
    """Images, N x 1 x 8 x 8 in [0, 1], and labels."""
    rows = np.loadtxt(path, delimiter=",", dtype=np.float32)
    images = torch.from_numpy(rows[:, 1:] / 16).reshape(-1, 1, 8, 8)
    return TensorDataset(images, torch.from_numpy(rows[:, 0]).long())


def network() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10)),
    )


def restore(kept: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Everybody takes the state of the replica that is furthest; the number of epochs that it has behind it."""
    saved = torch.load(kept) if kept.exists() else None
    epochs: list[int] = [0] * dist.get_world_size()
    dist.all_gather_object(epochs, saved["epoch"] if saved else 0)
    if (furthest := max(epochs)) == 0:
        return 0
    told = [saved]
    dist.broadcast_object_list(told, src=epochs.index(furthest))
    model.load_state_dict(told[0]["model"])
    optimizer.load_state_dict(told[0]["optimizer"])
    return furthest


def save(kept: Path, model: nn.Module, optimizer: torch.optim.Optimizer, epoch: int) -> None:
    written = kept.with_suffix(f".{os.getpid()}")
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}, written)
    written.replace(kept)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch", type=int, default=48, help="of all replicas together")
    parser.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir(), "distributed_torch.pt"))
    args = parser.parse_args()

    torch.set_num_threads(1)  # for images of 8 x 8 a second one waits more than it works
    torch.manual_seed(0)
    dist.init_process_group("gloo")
    rank, replicas = dist.get_rank(), dist.get_world_size()
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    done = restore(args.keep, model, optimizer)
    print(f"replica {rank} of {replicas} begins after epoch {done}", flush=True)

    data = digits(args.data / "train.csv")
    sampler: DistributedSampler[tuple[torch.Tensor, ...]] = DistributedSampler(data)
    loader = DataLoader(data, args.batch // replicas, sampler=sampler)
    parallel = DistributedDataParallel(model)
    for epoch in range(done + 1, args.epochs + 1):
        sampler.set_epoch(epoch)
        total = torch.zeros(1)
        for images, labels in loader:
            loss = nn.functional.cross_entropy(parallel(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach()
        dist.all_reduce(total)
        save(args.keep, model, optimizer, epoch)
        if rank == 0:
            print(f"epoch {epoch} loss {total.item() / replicas / len(loader):.4f}", flush=True)

    if rank == 0:
        images, labels = digits(args.data / "test.csv").tensors
        with torch.inference_mode():
            logits = model(images)
        torch.save(model.state_dict(), args.out / "weights.pt")
        np.savetxt(args.out / "predictions.csv", logits.numpy(), fmt="%.9g", delimiter=",")
        print(f"right: {(logits.argmax(1) == labels).float().mean():.1%} of {len(labels)}", flush=True)
    dist.barrier()
    dist.destroy_process_group()
    args.keep.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
