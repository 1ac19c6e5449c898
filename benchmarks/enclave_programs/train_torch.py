"""Train a convolutional network in PyTorch: for each line of standard input so many steps, then images a second."""

import sys
import time

import torch
from torch import nn

BATCH = 64


def network() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(64 * 8 * 8, 128), nn.ReLU(), nn.Linear(128, 10)),
    )


def main() -> None:
    torch.manual_seed(0)
    images, labels = torch.rand(1024, 3, 32, 32), torch.randint(0, 10, (1024,))
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    print("ready", flush=True)
    for line in sys.stdin:
        steps = int(line)
        began = time.perf_counter()
        for step in range(steps):
            batch = slice(step * BATCH % 1024, step * BATCH % 1024 + BATCH)
            loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        print(steps * BATCH / (time.perf_counter() - began), flush=True)


if __name__ == "__main__":
    main()
