"""Train a small network on handwritten digits under a mirror: kill it at any instant, start it again, and it goes on.

The digits are those that scikit-learn ships. Each step prints ``step N loss X``, the loss with all its digits, so that
two runs can be compared: one that was killed, however often, prints the losses of one that was left alone. The mirror,
its key and its anchor (which version is the newest) lie beside each other: RUN.mirror, RUN.mirror.key and
RUN.mirror.anchor.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from strongroom import FileAnchor, mirror
from strongroom.errors import StrongroomError
from strongroom.mirror.torch import Training
from strongroom.sealed import create_key, load_key


def digits() -> TensorDataset:
    """Images, float32 in [0, 1], N x 1 x 8 x 8, and labels."""
    images, labels = load_digits(return_X_y=True)
    return TensorDataset(
        torch.from_numpy((images / 16).astype(np.float32)).reshape(-1, 1, 8, 8), torch.from_numpy(labels)
    )


def train(opened: mirror.Mirror, epochs: int, batch: int, every: int) -> None:
    """Train from wherever the mirror is to the last step."""
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(576, 64), nn.ReLU(), nn.Linear(64, 10)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loader = DataLoader(digits(), batch_size=batch, shuffle=True)
    training = Training(opened, model=model, optimizer=optimizer, loader=loader, every=every)
    if training.restore():
        print(f"goes on after step {training.step}", flush=True)
    for _, batches in training.epochs(epochs):
        for images, labels in batches:
            loss = nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call,unused-ignore]
            optimizer.step()
            print(f"step {training.step + 1} loss {loss.item()!r}", flush=True)
            training.commit(force=training.step + 1 == epochs * len(loader))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--mirror", type=Path, default=Path("run.mirror"), help="where the training is mirrored")
    parser.add_argument("--epochs", type=int, default=8, help="29 steps each, unless --batch says otherwise")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--every", type=int, default=1, help="steps between commits")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.set_num_threads(1)  # for images of 8 x 8 a second one waits more than it works
    torch.manual_seed(args.seed)
    key_file = args.mirror.with_name(args.mirror.name + ".key")
    anchor = FileAnchor(args.mirror.with_name(args.mirror.name + ".anchor"))
    try:
        key = load_key(key_file) if key_file.exists() else create_key(key_file)
        with mirror.open(args.mirror, key=key, anchor=anchor) as opened:
            train(opened, args.epochs, args.batch, args.every)
    except (OSError, StrongroomError) as error:
        parser.exit(1, f"{parser.prog}: {error}\n")


if __name__ == "__main__":
    main()
