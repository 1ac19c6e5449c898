"""Networks A, B, C and D of the tf-encrypted paper (arXiv:1810.08130), as anybody writes them, trained on MNIST.

A is SecureML's, B MiniONN's, C LeNet as MiniONN has it, D the one of Chameleon. Each is trained in the clear, on one
thread and from a fixed seed, once: what was trained is kept under `.cache/models`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks.mpc_models_data import CACHE, mnist


def network_a() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)
    )


def network_b() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 5), nn.MaxPool2d(2), nn.ReLU()),
        *(nn.Conv2d(16, 16, 5), nn.MaxPool2d(2), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(256, 100), nn.ReLU(), nn.Linear(100, 10)),
    )


def network_c() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 20, 5), nn.MaxPool2d(2), nn.ReLU()),
        *(nn.Conv2d(20, 50, 5), nn.MaxPool2d(2), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10)),
    )


def network_d() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 5, 5, stride=2, padding=2), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(980, 100), nn.ReLU(), nn.Linear(100, 10)),
    )


NETWORKS: dict[str, Callable[[], nn.Module]] = {"A": network_a, "B": network_b, "C": network_c, "D": network_d}


@dataclass(frozen=True)
class Recipe:
    """How a network is trained; Adam, its rate falling to nothing along half a cosine."""

    epochs: int = 6
    images: int = 60_000
    batch: int = 128
    rate: float = 2e-3
    seed: int = 1


WHOLE = Recipe()
SHORT = Recipe(epochs=2, images=6_000)
"""For a quick run that finds nothing trained yet."""


def trained(name: str, recipe: Recipe, *, make: Callable[[], nn.Module] | None = None) -> Path:
    """The file with a network's trained weights; trains it if it is not there.

    Args:
        make: builds it; by default, one of `NETWORKS`.
    """
    path = _file(name, recipe)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        state = {key: value.numpy() for key, value in train(make or NETWORKS[name], recipe).state_dict().items()}
        part = path.with_suffix(".part")
        with part.open("wb") as file:
            np.savez(file, **state)
        part.rename(path)
    return path


def is_trained(name: str, recipe: Recipe) -> bool:
    return _file(name, recipe).exists()


def _file(name: str, recipe: Recipe) -> Path:
    digest = hashlib.sha256(json.dumps([torch.__version__, asdict(recipe)]).encode()).hexdigest()[:12]
    return CACHE / f"{name}-{digest}.npz"


def state(path: Path) -> dict[str, torch.Tensor]:
    """Weights that `trained` kept."""
    with np.load(path, allow_pickle=False) as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def train(make: Callable[[], nn.Module], recipe: Recipe) -> nn.Module:
    """A network trained in the clear."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums in one order
    try:
        with torch.random.fork_rng():
            torch.manual_seed(recipe.seed)
            return _train(make().train(), recipe).eval()
    finally:
        torch.set_num_threads(threads)


def _train(model: nn.Module, recipe: Recipe) -> nn.Module:
    digits = mnist()
    images = torch.from_numpy(digits.train_images[: recipe.images].astype(np.float32) / 255)[:, None]
    labels = torch.from_numpy(digits.train_labels[: recipe.images].astype(np.int64))
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.rate)
    steps = recipe.epochs * (len(images) // recipe.batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(recipe.epochs):
        order = torch.randperm(len(images))
        for at in range(0, len(order) - recipe.batch + 1, recipe.batch):
            chosen = order[at : at + recipe.batch]
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images[chosen]), labels[chosen])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return model


def in_float64(model: nn.Module, images: NDArray[np.float32], batch: int = 500) -> NDArray[np.float64]:
    """What a model says in the clear."""
    exact = model.eval().double()
    with torch.inference_mode():
        parts = [
            exact(torch.from_numpy(images[at : at + batch]).double()).numpy() for at in range(0, len(images), batch)
        ]
    return np.concatenate(parts)
