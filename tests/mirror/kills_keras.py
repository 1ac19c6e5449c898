"""A Keras training that is killed over and over, beside one that is left alone. Run as a module, it compares them.

``KERAS_BACKEND=torch python -m tests.mirror.kills_keras OPTIMIZER... --kills N --seed S --directory D`` prints a line
of JSON for each. Children are forked from one process that has imported everything; with ``--fresh``, which JAX and
TensorFlow need, each is a new process. A kill falls at a random moment of a step that is a random number of steps away.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np

from strongroom import mirror
from strongroom.mirror.keras import MirrorCallback, OrderedData
from strongroom.sealed import FileAnchor

KEY = bytes(range(32))
EPOCHS = 3
RECORDS = 60
BATCH = 8
STEPS = EPOCHS * -(-RECORDS // BATCH)

OPTIMIZERS = {
    "sgd": lambda: keras.optimizers.SGD(0.05, momentum=0.9, nesterov=True),
    "adam": lambda: keras.optimizers.Adam(0.01, amsgrad=True),
    "adamw": lambda: keras.optimizers.AdamW(0.01, use_ema=True, ema_overwrite_frequency=7),
}


class Log(keras.callbacks.Callback):
    """A line for each step and each epoch; draws from the global generators, as a program may."""

    def __init__(self, path: Path, mirrored: MirrorCallback) -> None:
        super().__init__()
        self.lines = path.open("a", buffering=1)
        self.mirrored = mirrored

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


def train(directory: Path, log: Path, optimizer: str) -> None:
    """Train to the end, from wherever the mirror in `directory` is; each step is a line of `log`."""
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
    data = OrderedData((images, labels), BATCH, seed=3, transform=noisy)
    with mirror.open(
        directory / "mirror", key=KEY, anchor=FileAnchor(directory / "anchor"), durability="process"
    ) as opened:
        mirrored = MirrorCallback(opened, data, callbacks=[plateau])
        history = model.fit(
            data,
            epochs=EPOCHS,
            initial_epoch=mirrored.resume(),
            shuffle=False,
            validation_data=(images[:20], labels[:20]),
            callbacks=[decay, plateau, Log(log, mirrored), mirrored],
            verbose=0,
        )
    digest = hashlib.sha256()
    for variable in [*model.variables, *model.optimizer.variables]:
        digest.update(np.ascontiguousarray(keras.ops.convert_to_numpy(variable)).tobytes())
    digest.update(repr((history.epoch, sorted(history.history.items()))).encode())
    with log.open("a") as lines:
        lines.write(f"end {digest.hexdigest()}\n")


def curve(log: Path) -> dict[str, set[str]]:
    """What was said of each step; more than one thing if a step done again went otherwise."""
    said: dict[str, set[str]] = {}
    for line in log.read_text().splitlines(keepends=True):
        step, _, value = line.partition(" ")
        if value.endswith("\n"):  # a line is one write, which a kill does not cut
            said.setdefault(step, set()).add(value)
    return said


class Child:
    """A training in a process group of its own."""

    def __init__(self, directory: Path, log: Path, optimizer: str, *, fresh: bool) -> None:
        if fresh:
            command = [sys.executable, "-m", __spec__.name, optimizer, "--directory", str(directory), "--log", str(log)]
            self.number = subprocess.Popen(command, start_new_session=True).pid
            return
        self.number = os.fork()
        if not self.number:
            code = 1
            try:
                os.setsid()
                train(directory, log, optimizer)
                code = 0
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)

    def ended(self, *, wait: bool = False) -> bool:
        number, status = os.waitpid(self.number, 0 if wait else os.WNOHANG)
        if number and not wait:
            assert status == 0, f"the training ended with {status}"
        return number != 0

    def kill(self) -> None:
        os.killpg(self.number, signal.SIGKILL)
        self.ended(wait=True)


def run(directory: Path, optimizer: str, kills: int, seed: int, *, fresh: bool) -> dict[str, Any]:
    """The curve of a run left alone and of one that was killed `kills` times, and where."""
    rng = random.Random(seed)  # noqa: S311  # a failure must come back
    for name in ("alone", "killed"):
        (directory / name).mkdir()
    alone, killed = directory / "alone.log", directory / "killed.log"
    killed.touch()
    child = Child(directory / "alone", alone, optimizer, fresh=fresh)
    while not child.ended():
        time.sleep(0.001)
    done, places = 0, []
    while True:
        child = Child(directory / "killed", killed, optimizer, fresh=fresh)
        away = rng.randint(0, STEPS // 3) if done < kills else sys.maxsize
        before, began, ended = _lines(killed), time.monotonic(), False
        first = began
        while not (ended := child.ended()) and _lines(killed) - before < away:
            if _lines(killed) == before:
                first = time.monotonic()
            time.sleep(0.0005)
        if ended:
            break
        mean = (time.monotonic() - first) / max(1, away)
        time.sleep(rng.uniform(0, 2 * min(mean, 0.05)))
        child.kill()
        places.append(_lines(killed))
        done += 1
    one, other = curve(alone), curve(killed)
    return {
        "kills": done,
        "lines": len(one),
        "repeated": _lines(killed) - len(other),
        "same": one == other and all(len(said) == 1 for said in one.values()),
        "differ": sorted(step for step in one.keys() | other.keys() if one.get(step) != other.get(step))[:5],
        "places": places,
    }


def _lines(log: Path) -> int:
    return log.read_bytes().count(b"\n")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("optimizers", choices=OPTIMIZERS, nargs="+")
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--log", type=Path, help="only train, and write there")
    parser.add_argument("--directory", type=Path, required=True)
    args = parser.parse_args()
    if not args.fresh and not args.log:
        warm = args.directory / "warm"
        warm.mkdir()
        train(warm, warm / "log", "sgd")  # Keras imports much at its first step
    for optimizer in args.optimizers:
        if args.log:
            train(args.directory, args.log, optimizer)
            continue
        (args.directory / optimizer).mkdir()
        said = run(args.directory / optimizer, optimizer, args.kills, args.seed, fresh=args.fresh)
        print(json.dumps({"optimizer": optimizer, **said}), flush=True)


if __name__ == "__main__":
    main()
