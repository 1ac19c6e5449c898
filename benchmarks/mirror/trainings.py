"""What a whole training pays: for a mirror, and for batches that are sealed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from benchmarks.harness import Bench, Goal
from benchmarks.mirror.ways import KEY
from strongroom.sealed import FileAnchor

if TYPE_CHECKING:
    from torch import nn

BATCHES: Final = (16, 64, 256, 1024)
TWELVE: Final = "12 convolutions"
SMALL: Final = "small perceptron"
WIDE: Final = "wide perceptron"


def iteration(size: int) -> str:
    """The goal of batches of that size."""
    return f"iteration on sealed batches of {size}"


GOALS: Sequence[Goal] = (
    Goal(f"training, {TWELVE}, commit each step", 1.05, "x", "at most", full_only=True),
    Goal(f"training, {TWELVE}, auto", 1.035, "x", "at most", full_only=True),
    Goal(f"training, {SMALL}, auto", 1.035, "x", "at most"),
    Goal(f"training, {WIDE}, auto", 1.035, "x", "at most", full_only=True),
    *(Goal(iteration(size), 1.05, "x", "at most", size > 16) for size in BATCHES),
)


def twelve_convolutions() -> nn.Module:
    """The largest network that Plinius trains on MNIST: 391,594 parameters, normalisation included."""
    from torch import nn

    def block(before: int, after: int) -> list[nn.Module]:
        return [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.LeakyReLU(0.1)]

    middle = [module for at in range(9) for module in block(64 if at else 32, 64)]
    end = [nn.Dropout(), nn.Conv2d(128, 10, 1), nn.LeakyReLU(0.1), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*block(1, 32), nn.MaxPool2d(2), *middle, nn.MaxPool2d(2), *block(64, 128), *end)


def _perceptron(*widths: int) -> nn.Module:
    from torch import nn

    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class _Trainer:
    """A training, with a mirror if there is a directory for it."""

    def __init__(self, model: nn.Module, batch: int, folder: Path | None = None, every: int | Literal["auto"] = 1):
        import torch

        from strongroom import mirror
        from strongroom.mirror.pace import Pace
        from strongroom.mirror.torch import Training

        self.model = model
        self.optimizer = torch.optim.AdamW(model.parameters())
        self.images, self.labels = torch.rand(batch, 1, 28, 28), torch.randint(0, 10, (batch,))
        self.mirror = self.training = None
        self._away = 0.0  # seconds in which the other training had its turn: no step took them
        self._left = time.perf_counter()
        if folder:
            anchor = FileAnchor(folder / "anchor")
            self.mirror = mirror.open(folder / "mirror", key=KEY, anchor=anchor, mode="overlapped")
            self.training = Training(self.mirror, every=every, model=model, optimizer=self.optimizer)
            self.training.pace = Pace(every, clock=lambda: time.perf_counter() - self._away)

    def run(self, steps: int) -> None:
        self._away += time.perf_counter() - self._left
        last = None
        for _ in range(steps):
            self.step(self.images, self.labels)
            if self.training:
                last = self.training.commit() or last
        if last is not None:
            last.durable()  # in this turn, not behind the other training's
        self._left = time.perf_counter()

    def step(self, images: Any, labels: Any) -> None:
        from torch import nn

        loss = nn.functional.cross_entropy(self.model(images), labels)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()

    def close(self) -> None:
        if self.mirror:
            self.mirror.close()


def overheads(bench: Bench, folder: Path) -> None:
    trainings: tuple[tuple[str, int | Literal["auto"], Callable[[], nn.Module], int, int, int], ...] = (
        (f"training, {TWELVE}, commit each step", 1, twelve_convolutions, 128, 6, 7),
        (f"training, {TWELVE}, auto", "auto", twelve_convolutions, 128, 6, 7),
        (f"training, {SMALL}, auto", "auto", lambda: _perceptron(784, 128, 10), 64, 300 if bench.quick else 1000, 7),
        (f"training, {WIDE}, auto", "auto", lambda: _perceptron(784, 2048, 2048, 10), 64, 60, 7),
    )
    for number, (name, every, make, batch, steps, rounds) in enumerate(trainings):
        if not bench.wants(name):
            continue
        place = folder / f"training{number}"
        place.mkdir()
        ours, plain = _Trainer(make(), batch, place, every), _Trainer(make(), batch)
        try:
            bench.compare(
                name,
                bench.timed(lambda ours=ours, steps=steps: ours.run(steps), per=steps),  # type: ignore[misc]
                bench.timed(lambda plain=plain, steps=steps: plain.run(steps), per=steps),  # type: ignore[misc]
                peer_name="without a mirror",
                unit="ms",
                rounds=rounds,
                warmup=2,
            )
        finally:
            ours.close()


def iterations(bench: Bench, folder: Path) -> None:
    if not bench.wants(*(iteration(size) for size in BATCHES)):
        return
    from strongroom.data import SealedDataset, seal_arrays
    from strongroom.sealed import NO_FRESHNESS

    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (60_000, 1, 28, 28), np.uint8)
    labels = rng.integers(0, 10, 60_000)
    seal_arrays(folder / "images", {"images": images, "labels": labels}, key=KEY, anchor=NO_FRESHNESS)

    def plain(size: int) -> Iterator[Any]:
        for epoch in count():
            order = np.random.default_rng(epoch).permutation(len(images))
            for at in range(0, len(order) - size + 1, size):
                yield images[order[at : at + size]], labels[order[at : at + size]]

    def steps(trainer: _Trainer, batches: Iterable[Any], number: int) -> None:
        import torch

        for _, (some, wanted) in zip(range(number), batches, strict=False):
            trainer.step(torch.from_numpy(some).float() / 255, torch.from_numpy(wanted))

    with SealedDataset(folder / "images", key=KEY, anchor=NO_FRESHNESS, mapped=True, cache=1 << 20) as dataset:

        def sealed(size: int) -> Iterator[Any]:
            for epoch in count():
                yield from dataset.batches(size, epoch=epoch, drop_last=True)

        trainer = _Trainer(twelve_convolutions(), 1)
        for size in BATCHES:
            name = iteration(size)
            if not bench.wants(name):
                continue
            number = max(1, 256 // size)
            sources = sealed(size), plain(size)
            ours, theirs = (
                bench.timed(lambda source=source, number=number: steps(trainer, source, number), per=number)  # type: ignore[misc]
                for source in sources
            )
            rounds = 5 if size > 500 else 7
            bench.compare(name, ours, theirs, peer_name="arrays in memory", unit="ms", rounds=rounds)
