"""A replica of a training with DistributedDataParallel over Gloo, or of sums over all replicas; timed by rank 0.

Run as every replica, with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT in the environment. Rank 0 prints one line: the
seconds of each step, the first two left out.
"""

import argparse
import time
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

WARMUP = 2
BATCH = 128


def network() -> nn.Sequential:
    """VGG-11 for images of 32 x 32 (Simonyan and Zisserman 2015, table 1 A): 10.3 million parameters."""
    layers: list[nn.Module] = []
    channels = 3
    for width in (64, "pool", 128, "pool", 256, 256, "pool", 512, 512, "pool", 512, 512, "pool"):
        if isinstance(width, str):
            layers.append(nn.MaxPool2d(2))
            continue
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
        channels = width
    classifier = [nn.Flatten(), nn.Linear(512, 1024), nn.ReLU(), nn.Linear(1024, 512), nn.ReLU(), nn.Linear(512, 10)]
    return nn.Sequential(*layers, *classifier)


def training() -> Callable[[], None]:
    model = network()
    parallel: nn.Module = DistributedDataParallel(model) if dist.get_world_size() > 1 else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    images, labels = torch.randn(BATCH, 3, 32, 32), torch.randint(10, (BATCH,))

    def step() -> None:
        loss = nn.functional.cross_entropy(parallel(images), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call,unused-ignore]
        optimizer.step()

    return step


def sums(size: int) -> Callable[[], None]:
    tensor = torch.ones(size // 4)

    def step() -> None:
        tensor.fill_(1)
        dist.all_reduce(tensor)
        if tensor[0] != dist.get_world_size():
            raise SystemExit(f"sum: got {tensor[0]}, wanted {dist.get_world_size()}")

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", choices=["train", "sum"])
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--size", type=int, default=100_000_000, help="bytes of a sum")
    args = parser.parse_args()

    torch.set_num_threads(1)  # of two or three replicas on a few cores
    torch.manual_seed(0)
    dist.init_process_group("gloo")
    step = training() if args.work == "train" else sums(args.size)
    taken = []
    for _ in range(WARMUP + args.steps):
        dist.barrier()
        began = time.perf_counter()
        step()
        taken.append(time.perf_counter() - began)
    if dist.get_rank() == 0:
        print("seconds", *taken[WARMUP:], flush=True)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
