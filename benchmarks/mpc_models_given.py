"""Trained models in files, the test images they are asked, and what they say in the clear.

- The ONNX models of ``$STRONGROOM_DATA/onnx``, whose `SOURCE.md` says what each expects, on as much of a test set as is
  there.
- A Keras model and a scikit-learn MLP, the second through ONNX, which the benchmark trains on MNIST. scikit-learn's
  converter is in an environment of its own (`peers`). Both are kept under `.cache/models`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import peers
from benchmarks.mpc_models_data import CACHE, cifar_test, data, mnist, mnist_test

Images = NDArray[np.float32]
Labels = NDArray[np.int64]

REQUIREMENTS = ["scikit-learn==1.7.2", "skl2onnx==1.19.1", "onnx==1.19.1", "packaging==25.0"]
_FEW = 500  # images for a model that takes one at a time


@dataclass(frozen=True)
class Given:
    """A model and what it is asked.

    Attributes:
        file: where it is; makes it, if it is the benchmark's and not there yet.
        images: the test set as the model takes it, and its labels.
        batch: how many at a time on shares; some files know only one.
        most: how many are asked in a full run, if not all.
        scores: whether the output is logits; else it is probabilities.
        output: which of its outputs that is.
    """

    name: str
    file: Callable[[], Path]
    images: Callable[[], tuple[Images, Labels]]
    batch: int
    most: int | None = None
    scores: bool = True
    output: int = 0

    def is_there(self) -> bool:
        """Whether its file is, or need not be made."""
        return not isinstance(self.file, Made) or self.file.path.exists()

    def asked(self, count: int | None) -> tuple[Images, Labels]:
        """The first images of the test set: all that a full run asks, or so many of them."""
        images, labels = self.images()
        most = min(len(images), self.most or len(images), count or len(images))
        return images[:most], labels[:most]


# Images, as the models take them


def _mnist(*shape: int, scale: float = 1.0) -> Callable[[], tuple[Images, Labels]]:
    def images() -> tuple[Images, Labels]:
        pixels, labels = mnist_test()
        return (pixels * np.float32(scale)).reshape(-1, *shape), labels

    return images


def _cifar(
    mean: tuple[float, ...] = (0, 0, 0), std: tuple[float, ...] = (1, 1, 1), *, channels_last: bool = False
) -> Callable[[], tuple[Images, Labels]]:
    def images() -> tuple[Images, Labels]:
        pixels, labels = cifar_test()
        scaled = pixels.astype(np.float32) / np.float32(255)
        scaled = (scaled - np.array(mean, np.float32)[:, None, None]) / np.array(std, np.float32)[:, None, None]
        return np.ascontiguousarray(scaled.transpose(0, 2, 3, 1)) if channels_last else scaled, labels

    return images


# Files


def _onnx(name: str) -> Callable[[], Path]:
    return lambda: data(f"onnx/{name}/model.onnx") / "onnx" / name / "model.onnx"


_TRAIN_KERAS = """
import sys
import keras, numpy as np
images, labels = (np.load(path, allow_pickle=False)[:20_000] for path in sys.argv[1:3])
keras.utils.set_random_seed(1)
model = keras.Sequential([
    keras.layers.Input((28, 28, 1)),
    keras.layers.Conv2D(16, 3, activation="relu"), keras.layers.MaxPooling2D(),
    keras.layers.Conv2D(32, 3, activation="relu"), keras.layers.MaxPooling2D(),
    keras.layers.Flatten(), keras.layers.Dropout(0.25), keras.layers.Dense(10),
])
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
model.compile(keras.optimizers.Adam(2e-3), loss)
model.fit(images[..., None].astype("float32") / 255, labels, batch_size=128, epochs=3, verbose=0)
model.save(sys.argv[3])
"""

_TRAIN_SKLEARN = """
import sys, warnings
import numpy as np
from skl2onnx import to_onnx
from sklearn.neural_network import MLPClassifier
images, labels = (np.load(path, allow_pickle=False)[:20_000] for path in sys.argv[1:3])
images = images.reshape(len(images), -1).astype("float32") / 255
warnings.filterwarnings("ignore")  # it has not converged
model = MLPClassifier((128, 64), batch_size=128, max_iter=8, random_state=1).fit(images, labels)
graph = to_onnx(model, images[:1], options={"zipmap": False}, target_opset=15)
open(sys.argv[3], "wb").write(graph.SerializeToString())
"""


@dataclass(frozen=True)
class Made:
    """The file that a script writes, once, given the training images, their labels and a path."""

    name: str
    script: str
    python: Callable[[], Path]

    @property
    def path(self) -> Path:
        return CACHE / self.name

    def __call__(self) -> Path:
        if not self.path.exists():
            CACHE.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=CACHE) as name:
                images, labels, part = (Path(name) / each for each in ("images.npy", "labels.npy", self.name))
                np.save(images, mnist().train_images)
                np.save(labels, mnist().train_labels)
                command = [str(self.python()), "-c", self.script, str(images), str(labels), str(part)]
                subprocess.run(
                    command, check=True, env={**os.environ, "KERAS_BACKEND": "torch", "OMP_NUM_THREADS": "1"}
                )
                part.rename(self.path)
        return self.path


MODELS = {
    each.name: each
    for each in (
        Given("mnist-8", _onnx("mnist-8"), _mnist(1, 28, 28, scale=255), 1, _FEW),
        Given("mnist-net_256x2", _onnx("mnist-net_256x2"), _mnist(784, 1), 500),
        Given("Convnet_maxpool", _onnx("Convnet_maxpool"), _mnist(1, 28, 28), 250),
        Given("resnet20_cifar10", _onnx("resnet20_cifar10"), _cifar((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), 32),
        Given("resnet_2b", _onnx("resnet_2b"), _cifar((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)), 32),
        Given("cifar10_medium", _onnx("cifar10_medium"), _cifar(channels_last=True), 32),
        Given("squeezenet_cifar10", _onnx("squeezenet_cifar10"), _cifar(channels_last=True), 32, scores=False),
        Given("Keras CNN", Made("keras-cnn.keras", _TRAIN_KERAS, lambda: Path(sys.executable)), _mnist(28, 28, 1), 250),
        Given(
            "scikit-learn MLP",
            Made("sklearn-mlp.onnx", _TRAIN_SKLEARN, lambda: peers.environment("skl2onnx", REQUIREMENTS)),
            _mnist(784),
            500,
            scores=False,
            output=1,
        ),
    )
}


def in_the_clear(given: Given, images: Images) -> NDArray[Any]:
    """What ONNX Runtime, or Keras, says of images."""
    path = given.file()
    if path.suffix == ".keras":
        os.environ.setdefault("KERAS_BACKEND", "torch")
        import keras

        said: NDArray[Any] = np.concatenate(
            [keras.ops.convert_to_numpy(keras.saving.load_model(path)(part)) for part in np.array_split(images, 20)]
        )
        return said
    return run_onnx(path, images)[given.output]


def run_onnx(path: Path, inputs: NDArray[Any]) -> list[NDArray[Any]]:
    """What ONNX Runtime computes, as many inputs at a time as the file knows of."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    taken = session.get_inputs()[0]
    size = taken.shape[0] if isinstance(taken.shape[0], int) else 100
    said = [session.run(None, {taken.name: inputs[at : at + size]}) for at in range(0, len(inputs), size)]
    return [np.concatenate(parts) for parts in zip(*said, strict=True)]
