"""Train a small convolutional network in Keras 3 on several processes, each with a part of every batch.

An ordinary script for Keras's JAX backend: every process runs it, with ``JAX_COORDINATOR_ADDRESS`` (process 0's host
and port), ``WORLD_SIZE`` and ``RANK`` in its environment. It reads ``DATA/train.csv`` and ``DATA/test.csv``, which
``digits_files.py`` writes; process 0 writes ``OUT/weights.npz``.
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")  # read when Keras is imported

import jax
import keras
import numpy as np


def digits(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images, N x 8 x 8 x 1 in [0, 1], and labels."""
    rows = np.loadtxt(path, delimiter=",", dtype=np.float32)
    return rows[:, 1:].reshape(-1, 8, 8, 1) / 16, rows[:, 0].astype(np.int32)


def network() -> keras.Model:
    layers = keras.layers
    return keras.Sequential(
        [
            *(layers.Input((8, 8, 1)), layers.Conv2D(16, 3, padding="same", activation="relu"), layers.MaxPooling2D()),
            *(layers.Conv2D(32, 3, padding="same", activation="relu"), layers.Flatten()),
            *(layers.Dense(64, activation="relu"), layers.Dense(10)),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch", type=int, default=50, help="of all processes together")
    args = parser.parse_args()

    address, processes = os.environ["JAX_COORDINATOR_ADDRESS"], int(os.environ["WORLD_SIZE"])
    keras.distribution.initialize(address, processes, int(os.environ["RANK"]))
    process = jax.process_index()
    print(f"process {process} of {processes}", flush=True)
    keras.utils.set_random_seed(0)
    # Each process gives its own part of every batch.
    keras.distribution.set_distribution(keras.distribution.DataParallel(auto_shard_dataset=False))
    model = network()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), loss, metrics=["accuracy"])

    batch = args.batch // processes

    def mine(name: str) -> tuple[np.ndarray, np.ndarray]:
        images, labels = digits(args.data / name)
        alike = len(labels) // args.batch * args.batch  # every process has as many whole batches as the others
        return images[process:alike:processes], labels[process:alike:processes]

    history = model.fit(*mine("train.csv"), batch, args.epochs, verbose=0, shuffle=False)
    tested = model.evaluate(*mine("test.csv"), batch, verbose=0, return_dict=True)
    if process == 0:
        for epoch, value in enumerate(history.history["loss"], 1):
            print(f"epoch {epoch} loss {value:.4f}", flush=True)
        print(f"right: {tested['accuracy']:.1%}", flush=True)
        np.savez(args.out / "weights.npz", *[np.asarray(weight) for weight in model.get_weights()])
    jax.distributed.shutdown()


if __name__ == "__main__":
    main()
