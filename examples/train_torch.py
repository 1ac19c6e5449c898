"""Train a small convolutional network in PyTorch on a directory of images, and go on where the last run ended.

An ordinary script: it reads ``DATA/train/<label>/*.png`` and ``DATA/test/<label>/*.png`` with two worker processes, and
keeps ``OUT/checkpoint.pt``, from which the next run goes on, and ``OUT/predictions.csv``.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset


class Images(Dataset[tuple[torch.Tensor, int]]):
    """Grey images below a directory for each class."""

    def __init__(self, directory: Path) -> None:
        self.paths = sorted(directory.glob("*/*.png"))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        path = self.paths[index]
        with Image.open(path) as image:
            pixels = np.array(image, np.float32) / 255
        return torch.from_numpy(pixels)[None], int(path.parent.name)


def network() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Dropout(0.2), nn.LazyLinear(64), nn.ReLU(), nn.Linear(64, 10)),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--epochs", type=int, default=5, help="how many more")
    parser.add_argument("--batch", type=int, default=50)
    args = parser.parse_args()

    train, test = Images(args.data / "train"), Images(args.data / "test")
    torch.manual_seed(0)
    model = network()
    model(train[0][0][None])  # the lazy layer learns its size
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    checkpoint, first = args.out / "checkpoint.pt", 1
    if checkpoint.exists():
        saved = torch.load(checkpoint)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        first = saved["epoch"] + 1
        print(f"goes on after epoch {saved['epoch']}", flush=True)

    for epoch in range(first, first + args.epochs):
        torch.manual_seed(epoch)
        model.train()
        total = 0.0
        for images, labels in DataLoader(train, args.batch, shuffle=True, num_workers=2):
            loss = nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(images)
        print(f"epoch {epoch} loss {total / len(train):.4f}", flush=True)
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}
        torch.save(state, args.out / "checkpoint.new")
        (args.out / "checkpoint.new").replace(checkpoint)

    model.load_state_dict(torch.load(checkpoint)["model"])
    model.eval()
    right = 0
    with (args.out / "predictions.csv").open("w") as file, torch.inference_mode():
        for images, labels in DataLoader(test, args.batch, num_workers=2):
            logits = model(images)
            right += int((logits.argmax(1) == labels).sum())
            np.savetxt(file, logits.numpy(), fmt="%.9g", delimiter=",")
    print(f"right: {right / len(test):.1%} of {len(test)}")


if __name__ == "__main__":
    main()
