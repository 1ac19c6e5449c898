"""Train a small network with Ray Train on a directory of images, on as many workers as asked for.

An ordinary script: it reads ``DATA/train/<label>/*.png`` and ``DATA/test/<label>/*.png``, trains on the Ray cluster
that it finds (or on one that it starts, if there is none), and keeps ``OUT/weights.pt``. The workers average their
gradients after each step (PyTorch's DistributedDataParallel over Gloo).
"""

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
import ray.train.torch
import torch
from PIL import Image
from ray.train import RunConfig, ScalingConfig
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def images(directory: Path) -> TensorDataset:
    """Grey images below a directory for each class."""
    paths = sorted(directory.glob("*/*.png"))
    pixels = np.stack([np.array(Image.open(path), np.float32) for path in paths]) / 255
    return TensorDataset(torch.from_numpy(pixels)[:, None], torch.tensor([int(path.parent.name) for path in paths]))


def network() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(16 * 4 * 4, 64), nn.ReLU(), nn.Linear(64, 10)),
    )


def train(config: dict[str, Any]) -> dict[str, np.ndarray]:
    """What each worker does; Ray keeps what the first one returns."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = ray.train.torch.prepare_model(network())
    data = images(Path(config["data"]) / "train")
    loader = ray.train.torch.prepare_data_loader(DataLoader(data, config["batch"], shuffle=True))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for epoch in range(config["epochs"]):
        loader.sampler.set_epoch(epoch)
        total = torch.zeros(())
        for pixels, labels in loader:
            loss = nn.functional.cross_entropy(model(pixels), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach()
        ray.train.report({"epoch": epoch + 1, "loss": total.item() / len(loader)})
    return {name: weight.numpy() for name, weight in model.module.state_dict().items()}  # Ray returns no tensors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch", type=int, default=25, help="images a worker and step")
    args = parser.parse_args()

    if "RAY_ADDRESS" not in os.environ:
        ray.init(num_cpus=args.workers, include_dashboard=False)
    trainer = ray.train.torch.TorchTrainer(
        train,
        train_loop_config={"data": str(args.data.resolve()), "epochs": args.epochs, "batch": args.batch},
        torch_config=ray.train.torch.TorchConfig(backend="gloo", timeout_s=120),
        scaling_config=ScalingConfig(
            num_workers=args.workers, resources_per_worker={"CPU": 1}, placement_strategy="SPREAD"
        ),
        run_config=RunConfig(storage_path=tempfile.mkdtemp()),
    )
    weights = {name: torch.from_numpy(each.copy()) for name, each in trainer.fit().return_value.items()}
    torch.save(weights, args.out / "weights.pt")

    model, test = network(), images(args.data / "test")
    model.load_state_dict(weights)
    with torch.inference_mode():
        right = int((model(test.tensors[0]).argmax(1) == test.tensors[1]).sum())
    nodes = len([node for node in ray.nodes() if node["Alive"]])
    print(f"right: {right / len(test):.1%} of {len(test)}, on {nodes} node{'s' * (nodes != 1)}")


if __name__ == "__main__":
    main()
