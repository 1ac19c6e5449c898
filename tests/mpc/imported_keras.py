"""Keras models on secrets, in a process of its own: Keras takes its backend from the environment when it is imported.

``KERAS_BACKEND=torch python -m tests.mpc.imported_keras FOLDER`` writes a line of JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import torch
from keras import layers

from strongroom import mpc
from strongroom.errors import StrongroomError
from tests.mpc.imported import on_secrets

Input = keras.Input


def _attention() -> Any:
    x = Input((5, 8))
    y = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 4)(x, x))
    return keras.Model(x, layers.Dense(3)(layers.GlobalAveragePooling1D()(y)))


def _residual() -> Any:
    x = Input((6, 6, 3))
    y = layers.BatchNormalization()(layers.Conv2D(3, 3, padding="same")(x))
    return keras.Model(x, layers.Dense(2)(layers.Flatten()(layers.Add()([layers.ReLU()(y), x]))))


def _models() -> dict[str, Any]:
    separable = [
        layers.DepthwiseConv2D(3, padding="same"),
        layers.SeparableConv2D(4, 3, strides=2, padding="same", activation="relu6"),
        layers.BatchNormalization(scale=True),
        layers.AveragePooling2D(2),
        layers.Dropout(0.5),
        layers.GlobalMaxPooling2D(),
        layers.Dense(2, activation="softmax"),
    ]
    sequence = [
        layers.Conv1D(4, 3, padding="same", activation="gelu"),
        layers.MaxPooling1D(2),
        layers.LSTM(3, return_sequences=True),
        layers.GRU(3),
        layers.Dense(2, activation="tanh"),
    ]
    return {
        "residual": _residual(),
        "attention": _attention(),
        "separable": keras.Sequential([Input((8, 8, 3)), *separable]),
        "sequence": keras.Sequential([Input((6, 3)), *sequence]),
        "indices": keras.Sequential(
            [Input((4,), dtype="int32"), layers.Embedding(11, 6), layers.Flatten(), layers.Dense(3)]
        ),
    }


def _moved(model: Any) -> None:
    """Give batch normalisations statistics of their own."""
    for variable in model.variables:
        if "moving_mean" in variable.path:
            variable.assign(np.random.standard_normal(variable.shape))
        if "moving_variance" in variable.path:
            variable.assign(np.random.uniform(0.5, 1.5, variable.shape))


def _errors(folder: Path) -> dict[str, list[float]]:
    """By model: how far its module is from it, in the clear and on secrets."""
    found: dict[str, list[float]] = {}
    for name, model in _models().items():
        _moved(model)
        path = folder / f"{name}.{'h5' if name == 'separable' else 'keras'}"
        model.save(path)
        shape, classes = (2, *model.input_shape[1:]), 11 if name == "indices" else None
        x = torch.randint(0, 11, shape) if classes else torch.randn(shape)
        wanted, module = model(x, training=False).detach(), mpc.load_model(path)
        revealed = on_secrets(module, lambda path=path: mpc.load_architecture(path), x, classes=classes)
        found[name] = [float((each - wanted).abs().max()) for each in (module(x).detach(), revealed)]
    return found


def _in_memory() -> float:
    """A model that no file was made of, given as it is."""
    model, x = _residual(), torch.randn(1, 6, 6, 3)
    wanted = model(x, training=False).detach()
    return float((on_secrets(model, _residual, x, owned=False) - wanted).abs().max())


def _refused(folder: Path) -> list[str]:
    said = []
    keras.Sequential([Input((2,)), layers.Lambda(lambda x: x * 2)]).save(folder / "code.keras")
    (folder / "none.keras").write_bytes(b"PK")
    bare = folder / "strange.json"
    bare.write_text(json.dumps({"module": "os", "class_name": "System", "config": {}}))
    deep, large = folder / "deep.json", folder / "large.json"
    deep.write_text("[" * 100_000 + "]" * 100_000)
    config = json.loads(keras.Sequential([Input((2,)), layers.Dense(3)]).to_json())
    config["config"]["layers"][1]["config"]["units"] = 10**13
    large.write_text(json.dumps(config))
    for load, path in (
        (mpc.load_model, folder / "code.keras"),
        (mpc.load_model, folder / "none.keras"),
        (mpc.load_architecture, bare),
        (mpc.load_architecture, deep),
        (mpc.load_architecture, large),
    ):
        try:
            load(path)
        except StrongroomError as error:
            said.append(error.message)
    return said


if __name__ == "__main__":
    where = Path(sys.argv[1])
    keras.utils.set_random_seed(5)
    print(json.dumps({"errors": _errors(where), "memory": _in_memory(), "refused": _refused(where)}))
