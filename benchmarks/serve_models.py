"""The seven networks of Temper's evaluation (Li et al.), with random weights, as ONNX files; and what it says of them.

    python -m benchmarks.serve_models ResNet18 resnet18.onnx

All but ResNet-18 are Keras's own. They are exported once and kept under `.cache/models`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import peers

os.environ.setdefault("KERAS_BACKEND", "torch")


@dataclass(frozen=True)
class Network:
    """One of the seven.

    Attributes:
        size: height and width of its input.
        rate: images a second of Temper on one server, at the batch that suits it best.
    """

    name: str
    size: int
    rate: float


NETWORKS = {
    each.name: each
    for each in (
        Network("MobileNet", 224, 41.57),
        Network("ResNet18", 224, 23.96),
        Network("ResNet50", 224, 9.41),
        Network("ResNet152", 224, 1.89),
        Network("VGG19", 224, 0.60),
        Network("InceptionV3", 299, 4.39),
        Network("DenseNet201", 224, 4.62),
    )
}


def exported(name: str, *, make: bool = True) -> Path:
    """The ONNX file of a network. Raises UnavailableError if it cannot be made here, or is not there and may not be."""
    path = peers.CACHE.parent / "models" / f"{name}.onnx"
    if path.exists():
        return path
    if not make:
        raise peers.UnavailableError(f"{name}: not exported yet, wanted from a full run")
    path.parent.mkdir(parents=True, exist_ok=True)
    making = path.with_suffix(".making")
    command = [sys.executable, "-m", "benchmarks.serve_models", name, str(making)]
    # In a process of its own: PyTorch would keep its threads and its memory here.
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        raise peers.UnavailableError(f"{name}: {done.stderr.decode(errors='replace').strip()[-300:]}")
    making.rename(path)
    return path


def export(name: str, path: Path) -> None:
    """Write one of `NETWORKS`."""
    import keras
    import numpy as np

    shape = (NETWORKS[name].size, NETWORKS[name].size, 3)
    keras.utils.set_random_seed(0)
    if name == "ResNet18":
        model = _resnet18(keras, shape)
    else:
        model = getattr(keras.applications, name)(weights=None, input_shape=shape)
    model(np.zeros((1, *shape), np.float32))
    model.export(str(path), format="onnx", verbose=False)


def _resnet18(keras: Any, shape: tuple[int, int, int]) -> Any:
    """He et al., "Deep Residual Learning for Image Recognition", table 1, the first column."""
    layers = keras.layers

    def convolution(x: Any, channels: int, size: int, stride: int = 1, *, relu: bool = True) -> Any:
        x = layers.Conv2D(channels, size, strides=stride, padding="same", use_bias=False)(x)
        x = layers.BatchNormalization()(x)
        return layers.Activation("relu")(x) if relu else x

    takes = layers.Input(shape)
    x = layers.MaxPooling2D(3, strides=2, padding="same")(convolution(takes, 64, 7, 2))
    for group, channels in enumerate((64, 128, 256, 512)):
        for block in range(2):
            stride = 2 if group and not block else 1
            around = convolution(x, channels, 1, stride, relu=False) if stride == 2 else x
            through = convolution(convolution(x, channels, 3, stride), channels, 3, relu=False)
            x = layers.Activation("relu")(layers.Add()([through, around]))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(takes, layers.Dense(1000, activation="softmax")(x))


if __name__ == "__main__":
    export(sys.argv[1], Path(sys.argv[2]))
