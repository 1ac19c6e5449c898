"""Train a small convolutional network on several workers, with TensorFlow's MultiWorkerMirroredStrategy.

An ordinary script: every worker runs it, with ``TF_CONFIG`` in its environment. It reads ``DATA/train.csv`` and
``DATA/test.csv``, which ``digits_files.py`` writes; worker 0 writes ``OUT/weights.npz``. The network is Keras's and the
loop its own, since Keras 3's ``fit`` knows no more than one worker's strategies.
"""

import argparse
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf


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
    parser.add_argument("--batch", type=int, default=50, help="of all workers together")
    args = parser.parse_args()

    keras.utils.set_random_seed(0)
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    worker = strategy.cluster_resolver.task_id
    print(f"worker {worker} of {strategy.num_replicas_in_sync}", flush=True)
    with strategy.scope():
        model = network()
        optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
        optimizer.build(model.trainable_variables)

    images, labels = digits(args.data / "train.csv")
    train = tf.data.Dataset.from_tensor_slices((images, labels)).shuffle(len(labels), seed=1)
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    train = train.batch(args.batch, drop_remainder=True).with_options(options)

    def step(images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, model(images, training=True))
            loss = tf.nn.compute_average_loss(losses, global_batch_size=args.batch)
        optimizer.apply_gradients(
            zip(tape.gradient(loss, model.trainable_variables), model.trainable_variables, strict=True)
        )
        return loss

    @tf.function
    def everywhere(batch: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
        return strategy.reduce(tf.distribute.ReduceOp.SUM, strategy.run(step, batch), axis=None)

    for epoch in range(1, args.epochs + 1):
        losses = [float(everywhere(batch)) for batch in strategy.experimental_distribute_dataset(train)]
        if worker == 0:
            print(f"epoch {epoch} loss {np.mean(losses):.4f}", flush=True)

    if worker == 0:
        found = [np.asarray(weight) for weight in model.get_weights()]
        np.savez(args.out / "weights.npz", *found)
        alone = network()
        alone.set_weights(found)
        images, labels = digits(args.data / "test.csv")
        right = (np.asarray(alone(images)).argmax(1) == labels).mean()
        print(f"right: {right:.1%} of {len(labels)}", flush=True)


if __name__ == "__main__":
    main()
