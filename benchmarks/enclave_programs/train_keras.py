"""Train a convolutional network in Keras on TensorFlow: for each line of standard input so many steps, then images a
second."""

import sys
import time

import keras
import tensorflow as tf

BATCH = 64


def main() -> None:
    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = keras.Sequential(
        [
            layers.Input((32, 32, 3)),
            *(layers.Conv2D(32, 3, padding="same", activation="relu"), layers.BatchNormalization()),
            *(layers.MaxPooling2D(), layers.Conv2D(64, 3, padding="same", activation="relu"), layers.MaxPooling2D()),
            *(layers.Flatten(), layers.Dense(128, activation="relu"), layers.Dense(10)),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3), loss)
    images, labels = tf.random.uniform((1024, 32, 32, 3)), tf.random.uniform((1024,), 0, 10, tf.int32)
    batches = tf.data.Dataset.from_tensor_slices((images, labels)).batch(BATCH).cache().repeat().prefetch(2)
    model.fit(batches, steps_per_epoch=2, verbose=0)
    print("ready", flush=True)
    for line in sys.stdin:
        steps = int(line)
        began = time.perf_counter()
        model.fit(batches, steps_per_epoch=steps, verbose=0)
        print(steps * BATCH / (time.perf_counter() - began), flush=True)


if __name__ == "__main__":
    main()
