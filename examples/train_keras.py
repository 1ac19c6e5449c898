"""Train a small convolutional network in Keras on TensorFlow, and export it in four forms.

An ordinary script: it reads ``DATA/train/<label>/*.png`` and ``DATA/test/<label>/*.png`` through ``tf.data`` and writes

- ``OUT/best.keras``, the best epoch so far, by a callback, and ``OUT/history.csv``, by another;
- ``OUT/model.keras``, ``OUT/saved_model`` and ``OUT/digits.tflite``, the best epoch's;
- ``OUT/predictions.npy``, its answers to the test images.
"""

import argparse
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf


def images(directory: Path, batch: int, *, shuffle: bool = False) -> tf.data.Dataset:
    """Batches of N x 8 x 8 x 1 in [0, 1], with their labels."""
    paths = sorted(directory.glob("*/*.png"))
    labels = [int(path.parent.name) for path in paths]
    files = tf.data.Dataset.from_tensor_slices(([str(path) for path in paths], labels))
    if shuffle:
        files = files.shuffle(len(paths), seed=1)

    def read(path: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        pixels = tf.io.decode_png(tf.io.read_file(path), channels=1)
        return tf.cast(pixels, tf.float32) / 255, label

    return files.map(read, num_parallel_calls=tf.data.AUTOTUNE).batch(batch).prefetch(tf.data.AUTOTUNE)


def network() -> keras.Model:
    layers = keras.layers
    return keras.Sequential(
        [
            *(layers.Input((8, 8, 1)), layers.Conv2D(16, 3, padding="same", activation="relu"), layers.MaxPooling2D()),
            *(layers.Conv2D(32, 3, padding="same", activation="relu"), layers.BatchNormalization(), layers.Flatten()),
            *(layers.Dropout(0.2), layers.Dense(64, activation="relu"), layers.Dense(10)),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch", type=int, default=50)
    args = parser.parse_args()

    keras.utils.set_random_seed(0)
    tf.config.experimental.enable_op_determinism()
    train = images(args.data / "train", args.batch, shuffle=True)
    test = images(args.data / "test", args.batch)
    model = network()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(2e-3), loss, metrics=["accuracy"])
    best = keras.callbacks.ModelCheckpoint(args.out / "best.keras", monitor="val_loss", save_best_only=True)
    history = keras.callbacks.CSVLogger(str(args.out / "history.csv"))
    model.fit(train, validation_data=test, epochs=args.epochs, callbacks=[best, history], shuffle=False, verbose=2)

    model = keras.models.load_model(args.out / "best.keras")
    model.save(args.out / "model.keras")
    model.export(args.out / "saved_model", verbose=False)
    lite = tf.lite.TFLiteConverter.from_saved_model(str(args.out / "saved_model")).convert()
    (args.out / "digits.tflite").write_bytes(lite)
    np.save(args.out / "predictions.npy", model.predict(test, verbose=0))
    accuracy = model.evaluate(test, verbose=0, return_dict=True)["accuracy"]
    print(f"right: {accuracy:.1%} of {len(list(test.unbatch()))}")


if __name__ == "__main__":
    main()
