"""Networks A and B of the tf-encrypted paper (arXiv:1810.08130), on shares and in float64, with random weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from strongroom.mpc import Shared, conv2d, matmul, max_pool2d, relu, truncate

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Layer:
    """A layer; a product is followed by a ReLU, by pooling and a ReLU, or by nothing.

    Attributes:
        weights: its shape, as `conv2d` and `matmul` want it.
    """

    kind: Literal["convolution", "matrix"]
    weights: tuple[int, ...]
    then: Literal["relu", "pool and relu", "nothing"] = "relu"


NETWORKS: dict[str, tuple[tuple[int, ...], Sequence[Layer]]] = {
    "A": ((784,), (Layer("matrix", (784, 128)), Layer("matrix", (128, 128)), Layer("matrix", (128, 10), "nothing"))),
    "B": (
        (1, 28, 28),
        (
            Layer("convolution", (16, 1, 5, 5), "pool and relu"),
            Layer("convolution", (16, 16, 5, 5), "pool and relu"),
            Layer("matrix", (256, 100)),
            Layer("matrix", (100, 10), "nothing"),
        ),
    ),
}


def random_weights(layers: Sequence[Layer], rng: np.random.Generator) -> list[Floats]:
    """Weights that keep activations at about the size of the input."""
    weights = []
    for layer in layers:
        inputs = int(np.prod(layer.weights[1:])) if layer.kind == "convolution" else layer.weights[0]
        weights.append(rng.normal(0, np.sqrt(2 / inputs), layer.weights))
    return weights


def on_shares(layers: Sequence[Layer], weights: Sequence[Shared], x: Shared) -> Shared:
    for layer, w in zip(layers, weights, strict=True):
        x = conv2d(x, w) if layer.kind == "convolution" else matmul(x.reshape(x.shape[0], w.shape[0]), w)
        if layer.then == "relu":
            x = relu(x)
        elif layer.then == "pool and relu":
            x = relu(max_pool2d(truncate(x), (2, 2)), 0)  # a quarter of the ReLUs
        else:
            x = truncate(x)
    return x


def in_float(layers: Sequence[Layer], weights: Sequence[Floats], x: Floats) -> Floats:
    y = torch.from_numpy(x)
    for layer, w in zip(layers, map(torch.from_numpy, weights), strict=True):
        y = torch.nn.functional.conv2d(y, w) if layer.kind == "convolution" else y.reshape(len(y), -1) @ w
        if layer.then == "pool and relu":
            y = torch.nn.functional.max_pool2d(y, 2)
        if layer.then != "nothing":
            y = y.relu()
    result: Floats = y.numpy()
    return result
