"""A Keras training that is killed over and over, beside one that is left alone. Run as a module, it compares them.

``KERAS_BACKEND=torch python -m tests.mirror.kills_keras OPTIMIZER... --kills N --seed S --directory D`` prints a line
of JSON for each (see `lives`). Children are forked from one process that has imported everything; with ``--fresh``,
which JAX and TensorFlow need, each is a new process.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import random
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np

from strongroom import mirror
from strongroom.mirror.keras import MirrorCallback, OrderedData
from strongroom.sealed import FileAnchor
from tests.mirror.lives import Lives, Trace

KEY = bytes(range(32))
RECORDS = 60
BATCH = 8

OPTIMIZERS = {
    "sgd": lambda: keras.optimizers.SGD(0.05, momentum=0.9, nesterov=True),
    "adam": lambda: keras.optimizers.Adam(0.01, amsgrad=True),
    "adamw": lambda: keras.optimizers.AdamW(0.01, use_ema=True, ema_overwrite_frequency=7),
}


class Log(keras.callbacks.Callback):
    """A line for each step and each epoch; draws from the global generators, as a program may."""

    def __init__(self, path: Path, mirrored: MirrorCallback, trace: Trace) -> None:
        super().__init__()
        self.trace = trace
        self.lines = path.open("a", buffering=1)
        self.mirrored = mirrored

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self.trace.enter("step")

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        drawn = (random.random(), np.random.random(), float(keras.random.uniform(())))  # noqa: S311
        self.lines.write(f"{self.mirrored.step + 1} {_exact(logs)} {_exact(dict(enumerate(drawn)))}\n")

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.lines.write(f"epoch{epoch} {_exact(logs)}\n")


def _exact(logs: dict[Any, Any]) -> str:
    return ",".join(f"{name}={float(value).hex()}" for name, value in logs.items())


def noisy(batch: Any, rng: np.random.Generator) -> Any:
    images, labels = batch
    return images + rng.normal(0, 0.1, images.shape).astype(np.float32), labels


def train(directory: Path, log: Path, trace: Path, *, optimizer: str, mode: str, epochs: int) -> None:
    """Train to the end, from wherever the mirror in `directory` is; each step is a line of `log`."""
    tracer = Trace(trace)
    if keras.backend.backend() == "torch":
        import torch

        torch.set_num_threads(1)
    keras.utils.set_random_seed(1)
    rng = np.random.default_rng(7)
    images = rng.normal(size=(RECORDS, 12, 12, 1)).astype(np.float32)
    labels = rng.integers(0, 4, RECORDS)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((12, 12, 1)), layers.Conv2D(6, 3), layers.BatchNormalization(), layers.ReLU(),
            layers.Dropout(0.3), layers.Flatten(), layers.Dense(4),
        ]
    )  # fmt: skip
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(OPTIMIZERS[optimizer](), loss, metrics=["accuracy"])
    plateau = keras.callbacks.ReduceLROnPlateau(monitor="val_loss", factor=0.7, patience=1, min_delta=0.5)
    decay = keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate * 0.9)
    data = OrderedData((images, labels), BATCH, seed=3, transform=noisy, workers=2)
    with mirror.open(
        directory / "mirror",
        key=KEY,
        anchor=FileAnchor(directory / "anchor"),
        mode=mode,  # type: ignore[arg-type]
        delta=mode == "overlapped",
        durability="process",
    ) as opened:
        tracer.watch(opened)
        tracer.enter("restore")
        mirrored = MirrorCallback(opened, data, callbacks=[plateau])
        history = model.fit(
            data,
            epochs=epochs,
            initial_epoch=mirrored.resume(),
            shuffle=False,
            validation_data=(images[:20], labels[:20]),
            callbacks=[decay, plateau, Log(log, mirrored, tracer), mirrored],
            verbose=0,
        )
    digest = hashlib.sha256()
    for variable in [*model.variables, *model.optimizer.variables]:
        digest.update(np.ascontiguousarray(keras.ops.convert_to_numpy(variable)).tobytes())
    digest.update(repr((history.epoch, sorted(history.history.items()))).encode())
    with log.open("a") as lines:
        lines.write(f"end {digest.hexdigest()}\n")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("optimizers", choices=OPTIMIZERS, nargs="+")
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=3, help="of 8 steps")
    parser.add_argument("--mode", default="synchronous")
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--log", type=Path, help="only train, and write there")
    parser.add_argument("--trace", type=Path)
    parser.add_argument("--directory", type=Path, required=True)
    args = parser.parse_args()
    options = {"mode": args.mode, "epochs": args.epochs}
    if args.log:
        train(args.directory, args.log, args.trace, optimizer=args.optimizers[0], **options)
        return
    if not args.fresh:
        warm = args.directory / "warm"
        warm.mkdir()
        # Keras imports much at its first step; no thread must be left when it is forked.
        train(warm, warm / "log", warm / "trace", optimizer="sgd", mode="synchronous", epochs=1)
    for optimizer in args.optimizers:
        here = args.directory / optimizer
        here.mkdir()
        said = [f"--{name}={value}" for name, value in options.items()]
        fresh = [sys.executable, "-m", __spec__.name, optimizer, *said]
        forked = functools.partial(train, optimizer=optimizer, **options)
        result = Lives(here, fresh if args.fresh else forked).run(args.kills, args.seed)
        print(json.dumps({"optimizer": optimizer, **result}), flush=True)


if __name__ == "__main__":
    main()
