"""Models and images that the benchmarks of enclaves work on: made here, with random content."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

# Channels for about so many megabytes of weights.
_WIDTHS = {42: 356, 91: 536, 163: 724}


def write_images(directory: Path, count: int) -> None:
    """JPEG images of 500 x 375, of about 100 kB each, in ten folders."""
    from PIL import Image

    random = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(random.integers(0, 255, (47, 63, 3), np.uint8))
        smooth = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC), np.int16)
        noisy = np.clip(smooth + random.normal(0, 14, smooth.shape), 0, 255).astype(np.uint8)
        path = directory / str(number % 10) / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noisy).save(path, quality=90)


def write_model(path: Path, megabytes: int) -> None:
    """A LiteRT model of that size: convolutions of several shapes beside one another, as Inception has them."""
    # In a process of its own: TensorFlow would keep its threads and its memory here.
    subprocess.run([sys.executable, "-m", "benchmarks.enclave_models", str(path), str(megabytes)], check=True)


def _convert(path: Path, megabytes: int) -> None:
    import keras
    import tensorflow as tf

    layers, width = keras.layers, _WIDTHS[megabytes]
    keras.utils.set_random_seed(0)

    def convolution(x: object, channels: int, size: tuple[int, int] | int, strides: int = 1) -> object:
        return layers.Conv2D(channels, size, strides=strides, padding="same", activation="relu")(x)

    takes = layers.Input((224, 224, 3), batch_size=1)
    x = convolution(takes, 32, 3, 2)
    x = convolution(x, 64, 3, 2)
    for channels, blocks in ((width // 4, 2), (width // 2, 3), (width, 3)):
        x = convolution(x, channels, 3, 2)
        for _ in range(blocks):
            one = convolution(x, channels, 1)
            three = convolution(convolution(x, channels // 2, 1), channels, 3)
            seven = convolution(convolution(convolution(x, channels // 2, 1), channels // 2, (1, 7)), channels, (7, 1))
            x = layers.Concatenate()([one, three, seven])
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(takes, layers.Dense(1000, activation="softmax")(x))
    with tempfile.TemporaryDirectory() as saved:
        model.export(saved, verbose=False)
        path.write_bytes(tf.lite.TFLiteConverter.from_saved_model(saved).convert())
    print(f"{path.stat().st_size / 1e6:.1f} MB, {model.count_params() / 1e6:.1f} million parameters")


if __name__ == "__main__":
    _convert(Path(sys.argv[1]), int(sys.argv[2]))
