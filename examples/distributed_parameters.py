"""Train a small network with parameter servers in TensorFlow: a chief hands steps to workers, whose weights ``ps`` has.

An ordinary script: every task runs it, with ``TF_CONFIG`` in its environment. It reads ``DATA/train.csv`` and
``DATA/test.csv``, which ``digits_files.py`` writes; the chief writes ``OUT/weights.npz``. Workers do not wait for each
other, so two runs end with weights that differ a little.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("GRPC_FAIL_FAST", "use_caller")  # calls wait for tasks that have not started yet

import numpy as np
import tensorflow as tf


def digits(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images, N x 64 in [0, 1], and labels."""
    rows = np.loadtxt(path, delimiter=",", dtype=np.float32)
    return rows[:, 1:] / 16, rows[:, 0].astype(np.int32)


class Network(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        draw = tf.random.Generator.from_seed(0)
        self.hidden = tf.Variable(draw.normal((64, 128), stddev=(2 / 64) ** 0.5))
        self.hidden_bias = tf.Variable(tf.zeros(128))
        self.out = tf.Variable(draw.normal((128, 10), stddev=(2 / 128) ** 0.5))
        self.out_bias = tf.Variable(tf.zeros(10))

    def __call__(self, images: tf.Tensor) -> tf.Tensor:
        hidden = tf.nn.relu(images @ self.hidden + self.hidden_bias)
        return hidden @ self.out + self.out_bias


def ended(job: str, index: int) -> Path:
    """What the chief leaves at a task when all is done: a task has no other way to know."""
    return Path(tempfile.gettempdir(), f"ended-{job}-{index}")


def serve(resolver: tf.distribute.cluster_resolver.ClusterResolver) -> None:
    """Do what the chief says, until it says that it is done."""
    job, index = resolver.task_type, resolver.task_id
    ended(job, index).unlink(missing_ok=True)
    server = tf.distribute.Server(resolver.cluster_spec(), job, index, protocol="grpc")
    print(f"{job} {index} serves", flush=True)
    while not ended(job, index).exists():
        time.sleep(0.1)
    del server


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch", type=int, default=50, help="of each worker")
    args = parser.parse_args()

    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    if resolver.task_type in ("worker", "ps"):
        serve(resolver)
        return

    strategy = tf.distribute.ParameterServerStrategy(resolver)
    coordinator = tf.distribute.coordinator.ClusterCoordinator(strategy)
    with strategy.scope():
        model = Network()

    images, labels = digits(args.data / "train.csv")

    def batches() -> tf.data.Dataset:
        whole = tf.data.Dataset.from_tensor_slices((images, labels))
        return whole.shuffle(len(labels)).batch(args.batch, drop_remainder=True).repeat()

    @tf.function
    def step(iterator: tf.data.Iterator) -> tf.Tensor:
        x, y = next(iterator)
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y, model(x)))
        weights = model.trainable_variables
        for weight, gradient in zip(weights, tape.gradient(loss, weights), strict=True):
            weight.assign_sub(0.2 * gradient)
        return loss

    iterator = iter(coordinator.create_per_worker_dataset(batches))
    for epoch in range(1, args.epochs + 1):
        losses = [coordinator.schedule(step, args=(iterator,)) for _ in range(len(labels) // args.batch)]
        coordinator.join()
        print(f"epoch {epoch} loss {np.mean([float(loss.fetch()) for loss in losses]):.4f}", flush=True)

    found = {name: getattr(model, name).numpy() for name in ("hidden", "hidden_bias", "out", "out_bias")}
    np.savez(args.out / "weights.npz", **found)
    images, labels = digits(args.data / "test.csv")
    right = (model(images).numpy().argmax(1) == labels).mean()
    print(f"right: {right:.1%} of {len(labels)}", flush=True)
    for job in ("worker", "ps"):
        for index in range(resolver.cluster_spec().num_tasks(job)):
            with tf.device(f"/job:{job}/task:{index}"):
                tf.io.write_file(str(ended(job, index)), "")


if __name__ == "__main__":
    main()
