"""A PyTorch training that is killed over and over, beside one that is left alone. Run as a module, it compares them.

``python -m tests.mirror.kills OPTIMIZER --kills N --seed S --directory D`` prints a line of JSON. Children are forked
from one process that has imported everything, so that the kills fall into the training and its commits.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from strongroom import mirror
from strongroom.mirror.torch import Training
from strongroom.sealed import FileAnchor

KEY = bytes(range(32))
EPOCHS = 3
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


def train(directory: Path, log: Path, optimizer: str, workers: int, mode: str) -> None:
    """Train to the end, from wherever the mirror in `directory` is; each step is a line of `log`."""
    torch.set_num_threads(1)
    torch.manual_seed(1)
    random.seed(2)
    np.random.seed(3)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(600, 4)
    )
    made = OPTIMIZERS[optimizer](model.parameters())
    scheduler = torch.optim.lr_scheduler.OneCycleLR(made, 0.05, total_steps=EPOCHS * -(-RECORDS // BATCH))
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
        training.restore()
        with log.open("a") as lines:
            for _, batches in training.epochs(EPOCHS):
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


def curve(log: Path) -> dict[str, set[str]]:
    """What was said of each step; more than one thing if a step done again went otherwise."""
    said: dict[str, set[str]] = {}
    for line in log.read_text().splitlines():
        step, _, value = line.partition(" ")
        if value:  # a kill may have cut the last line
            said.setdefault(step, set()).add(value)
    return said


def child(function: Any, *arguments: Any) -> int:
    """Run it in a fork with a process group of its own."""
    number = os.fork()
    if number:
        return number
    code = 1
    try:
        os.setsid()
        function(*arguments)
        code = 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run(directory: Path, optimizer: str, workers: int, mode: str, kills: int, seed: int) -> dict[str, Any]:
    """The curve of a run left alone and of one that was killed `kills` times, and where."""
    rng = random.Random(seed)  # noqa: S311  # a failure must come back
    for name in ("alone", "killed"):
        (directory / name).mkdir()
    began = time.monotonic()
    alone = child(train, directory / "alone", directory / "alone.log", optimizer, workers, mode)
    assert os.waitpid(alone, 0)[1] == 0
    took = time.monotonic() - began
    done = 0
    while True:
        number = child(train, directory / "killed", directory / "killed.log", optimizer, workers, mode)
        deadline = time.monotonic() + (rng.uniform(0, took * 0.6) if done < kills else 600)
        while time.monotonic() < deadline:
            if os.waitpid(number, os.WNOHANG)[0]:
                number = 0
                break
            time.sleep(0.0005)
        if not number:
            break
        os.killpg(number, signal.SIGKILL)
        os.waitpid(number, 0)
        done += 1
    one, other = curve(directory / "alone.log"), curve(directory / "killed.log")
    return {
        "kills": done,
        "steps": len(one) - 1,
        "repeated": len((directory / "killed.log").read_text().splitlines()) - len(other),
        "same": one == other,
        "differ": sorted(step for step in one.keys() | other.keys() if one.get(step) != other.get(step))[:5],
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("optimizer", choices=OPTIMIZERS)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--mode", default="synchronous")
    parser.add_argument("--directory", type=Path, required=True)
    args = parser.parse_args()
    print(json.dumps(run(args.directory, args.optimizer, args.workers, args.mode, args.kills, args.seed)))


if __name__ == "__main__":
    main()
