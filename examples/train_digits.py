"""Train a small convolutional network on handwritten digits and export it to ONNX.

An ordinary PyTorch script: it knows nothing of enclaves. It reads ``/data/train.npz`` (``images``: uint8 or float,
N x H x W; ``labels``: N) and writes ``/out/model.onnx``, whose input ``image`` is float32, N x 1 x H x W, in [0, 1].
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import nn


def network(side: int) -> nn.Sequential:
    after = (side - 4) // 2  # two 3x3 convolutions without padding, one 2x2 pooling
    return nn.Sequential(
        nn.Conv2d(1, 16, 3),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * after * after, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("/data"))
    parser.add_argument("--out", type=Path, default=Path("/out"))
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch", type=int, default=64)
    args = parser.parse_args()

    torch.manual_seed(0)
    archive = np.load(args.data / "train.npz")
    images = torch.from_numpy(archive["images"]).float().unsqueeze(1)
    images /= images.max()
    labels = torch.from_numpy(archive["labels"]).long()

    model = network(images.shape[-1])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for epoch in range(args.epochs):
        total = 0.0
        for batch in torch.randperm(len(images)).split(args.batch):
            loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(batch)
        print(f"epoch {epoch + 1}/{args.epochs} loss {total / len(images):.4f}", flush=True)

    model.eval()
    torch.onnx.export(
        model,
        (images[:2],),
        args.out / "model.onnx",
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes=({0: "batch"},),
        external_data=False,
    )


if __name__ == "__main__":
    main()
