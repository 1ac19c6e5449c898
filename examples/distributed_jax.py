"""Train a small network in JAX on several processes: its distributed service, and gradients summed over all of them.

An ordinary script: every process runs it, with ``JAX_COORDINATOR_ADDRESS`` (process 0's host and port), ``WORLD_SIZE``
and ``RANK`` in its environment. It reads ``DATA/train.csv`` and ``DATA/test.csv``, which ``digits_files.py`` writes;
process 0 writes ``OUT/weights.npz``.
"""

import argparse
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

Weights = dict[str, jax.Array]


def digits(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images, N x 64 in [0, 1], and labels."""
    rows = np.loadtxt(path, delimiter=",", dtype=np.float32)
    return rows[:, 1:] / 16, rows[:, 0].astype(np.int32)


def initial() -> Weights:
    first, second = jax.random.split(jax.random.key(0))
    return {
        "hidden": jax.random.normal(first, (64, 128)) * (2 / 64) ** 0.5,
        "hidden_bias": jnp.zeros(128),
        "out": jax.random.normal(second, (128, 10)) * (2 / 128) ** 0.5,
        "out_bias": jnp.zeros(10),
    }


def logits(weights: Weights, images: jax.Array) -> jax.Array:
    hidden = jax.nn.relu(images @ weights["hidden"] + weights["hidden_bias"])
    return hidden @ weights["out"] + weights["out_bias"]


def loss(weights: Weights, images: jax.Array, labels: jax.Array) -> jax.Array:
    scores = jax.nn.log_softmax(logits(weights, images))
    return -jnp.take_along_axis(scores, labels[:, None], axis=1).mean()


@jax.jit
def step(weights: Weights, images: jax.Array, labels: jax.Array) -> tuple[Weights, jax.Array]:
    """Of a batch that lies in parts on all processes; the weights stay the same on each."""
    value, gradients = jax.value_and_grad(loss)(weights, images, labels)
    return jax.tree.map(lambda weight, gradient: weight - 0.2 * gradient, weights, gradients), value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch", type=int, default=48, help="of all processes together")
    args = parser.parse_args()

    jax.distributed.initialize(num_processes=int(os.environ["WORLD_SIZE"]), process_id=int(os.environ["RANK"]))
    process, processes = jax.process_index(), jax.process_count()
    print(f"process {process} of {processes}, {jax.device_count()} devices", flush=True)
    mesh = Mesh(np.array(jax.devices()), ("batch",))
    parts, everywhere = NamedSharding(mesh, PartitionSpec("batch")), NamedSharding(mesh, PartitionSpec())
    weights = jax.jit(initial, out_shardings=everywhere)()

    images, labels = digits(args.data / "train.csv")
    for epoch in range(1, args.epochs + 1):
        order = np.random.default_rng(epoch).permutation(len(labels))
        total, steps = 0.0, len(labels) // args.batch
        for batch in order[: steps * args.batch].reshape(steps, args.batch):
            mine = np.split(batch, processes)[process]
            x = jax.make_array_from_process_local_data(parts, images[mine])
            y = jax.make_array_from_process_local_data(parts, labels[mine])
            weights, value = step(weights, x, y)
            total += float(value)
        if process == 0:
            print(f"epoch {epoch} loss {total / steps:.4f}", flush=True)

    if process == 0:
        found = {name: np.asarray(weight) for name, weight in weights.items()}
        np.savez(args.out / "weights.npz", **found)
        images, labels = digits(args.data / "test.csv")
        right = (np.asarray(logits(found, images)).argmax(1) == labels).mean()
        print(f"right: {right:.1%} of {len(labels)}", flush=True)
    jax.distributed.shutdown()


if __name__ == "__main__":
    main()
