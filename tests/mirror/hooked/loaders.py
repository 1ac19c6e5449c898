"""A training with workers, functions, accumulated gradients, averaged weights, the best weights and early stopping.

``loaders.py WORKERS LOG``
"""

import hashlib
import random
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset


class Noisy(Dataset):
    """Records with augmentations that draw from all three generators."""

    def __init__(self):
        rng = np.random.default_rng(7)
        self.rows = rng.normal(size=(60, 12)).astype(np.float32)
        self.labels = rng.integers(0, 4, 60)

    def __len__(self):
        return 60

    def __getitem__(self, index):
        row = torch.from_numpy(self.rows[index]) + 0.1 * torch.randn(12)
        if random.random() < 0.5:  # noqa: S311
            row = -row
        return row + float(np.random.normal()), int(self.labels[index])


def say(text):
    with Path(sys.argv[2]).open("a") as log:
        log.write(text + "\n")


class Meter:
    def __init__(self):
        self.total = 0.0
        self.seen = []

    def add(self, value):
        self.total += value
        self.seen.append(value)


def train(model, loader, optimizer, scheduler, meter):
    model.train()
    total = 0.0
    for i, (rows, labels) in enumerate(loader):
        loss = nn.functional.cross_entropy(model(rows), labels)
        loss.backward()
        if (i + 1) % 2 == 0:
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
        total += loss.item()
        meter.add(loss.item())
        say(f"s{len(meter.seen)} done")
    return total / len(loader)


def evaluate(model, loader):
    model.eval()
    total = 0.0
    with torch.no_grad():
        for rows, labels in loader:
            total += nn.functional.cross_entropy(model(rows), labels).item()
    return total


def main():
    torch.set_num_threads(1)
    torch.manual_seed(1)
    random.seed(2)
    np.random.seed(3)
    model = nn.Sequential(nn.Linear(12, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 4))
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=40)
    drawn = torch.Generator()
    drawn.manual_seed(4)
    loader = DataLoader(Noisy(), batch_size=8, shuffle=True, num_workers=int(sys.argv[1]), generator=drawn)
    held_out = DataLoader(Noisy(), batch_size=30)
    meter = Meter()
    best, best_weights, without = float("inf"), None, 0
    for epoch in range(7):
        mean = train(model, loader, optimizer, scheduler, meter)
        averaged.update_parameters(model)
        loss = evaluate(model, held_out)
        if loss < best:
            best, without = loss, 0
            best_weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        else:
            without += 1
        if without > 3:
            break
        say(f"e{epoch} {mean.hex()} {loss.hex()} {best.hex()} {without}")
    digest = hashlib.sha256(repr((meter.total, meter.seen, best, without)).encode())
    for state in (model.state_dict(), averaged.state_dict(), best_weights):
        for tensor in state.values():
            digest.update(tensor.numpy().tobytes())
    say(f"end {digest.hexdigest()}")


main()
