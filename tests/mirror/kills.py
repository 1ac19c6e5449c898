"""A PyTorch training that is killed over and over, beside one that is left alone. Run as a module, it compares them.

``python -m tests.mirror.kills OPTIMIZER --kills N --seed S --directory D`` prints a line of JSON (see `lives`).
Children are forked from one process that has imported everything, so that the kills fall into the training and its
commits.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch._dynamo  # which an optimizer imports, and takes seconds
from torch import nn
from torch.utils.data import DataLoader, Dataset

from strongroom import mirror
from strongroom.mirror.torch import Training
from strongroom.sealed import FileAnchor
from tests.mirror.lives import Lives, Trace

KEY = bytes(range(32))
RECORDS = 90
BATCH = 8

OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9, nesterov=True),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01, amsgrad=True),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.01),
}


class Noisy(Dataset[Any]):
    """Images with augmentations that draw from all three generators."""

    def __init__(self) -> None:
        rng = np.random.default_rng(7)
        self.images = rng.normal(size=(RECORDS, 1, 12, 12)).astype(np.float32)
        self.labels = rng.integers(0, 4, RECORDS)

    def __len__(self) -> int:
        return RECORDS

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image = torch.from_numpy(self.images[index]) + 0.1 * torch.randn(1, 12, 12)
        if random.random() < 0.5:  # noqa: S311
            image = image.flip(-1)
        return image + float(np.random.normal()), int(self.labels[index])


def train(directory: Path, log: Path, trace: Path, *, optimizer: str, workers: int, mode: str, epochs: int) -> None:
    """Train to the end, from wherever the mirror in `directory` is; each step is a line of `log`."""
    tracer = Trace(trace)
    torch.set_num_threads(1)
    torch.manual_seed(1)
    random.seed(2)
    np.random.seed(3)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(600, 4)
    )
    made = OPTIMIZERS[optimizer](model.parameters())
    scheduler = torch.optim.lr_scheduler.OneCycleLR(made, 0.05, total_steps=epochs * -(-RECORDS // BATCH))
    loader = DataLoader(Noisy(), batch_size=BATCH, shuffle=True, num_workers=workers)
    with mirror.open(
        directory / "mirror",
        key=KEY,
        anchor=FileAnchor(directory / "anchor"),
        mode=mode,  # type: ignore[arg-type]
        delta=mode == "overlapped",
        durability="process",
    ) as opened:
        training = Training(opened, model=model, optimizer=made, scheduler=scheduler, loader=loader)
        tracer.watch(opened)
        tracer.enter("restore")
        training.restore()
        tracer.enter("step")
        with log.open("a") as lines:
            for _, batches in training.epochs(epochs):
                for images, labels in batches:
                    loss = nn.functional.cross_entropy(model(images), labels)
                    made.zero_grad()
                    loss.backward()
                    made.step()
                    scheduler.step()
                    lines.write(f"{training.step + 1} {loss.item().hex()}\n")
                    lines.flush()
                    training.commit()
            digest = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in model.state_dict().values()))
            lines.write(f"end {digest.hexdigest()}\n")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("optimizer", choices=OPTIMIZERS)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=3, help="of 12 steps")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--mode", default="synchronous")
    parser.add_argument("--directory", type=Path, required=True)
    args = parser.parse_args()
    options = {"optimizer": args.optimizer, "workers": args.workers, "mode": args.mode, "epochs": args.epochs}
    print(json.dumps(Lives(args.directory, functools.partial(train, **options)).run(args.kills, args.seed)))


if __name__ == "__main__":
    main()
