"""The convolutional networks of Temper's evaluation that Keras has, with random weights, as ONNX files.

    python -m benchmarks.plan_models MobileNetV2 mobilenet.onnx

ResNet-18 and ResNet-152 of the first version are not in Keras; ResNet152 here is.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "torch")

SIZES = {"MobileNetV2": 224, "ResNet50": 224, "ResNet152": 224, "VGG19": 224, "InceptionV3": 299, "DenseNet201": 224}


def export(name: str, path: Path) -> None:
    """Write one of `SIZES`."""
    import keras
    import numpy as np

    shape = (SIZES[name], SIZES[name], 3)
    model = getattr(keras.applications, name)(weights=None, input_shape=shape)
    model(np.zeros((1, *shape), np.float32))
    model.export(str(path), format="onnx", verbose=False)


if __name__ == "__main__":
    export(sys.argv[1], Path(sys.argv[2]))
