"""The rows of `benchmarks.mpc`: inputs and layers, the same for everybody. Needs NumPy alone: the peers import it too.

Networks A to D are those of the tf-encrypted paper (arXiv:1810.08130), the residual ones those of He et al.
(arXiv:1512.03385) with their batch normalisations folded into the convolutions. Weights are random: at the scale that
keeps activations at about the size of the input.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

SIDE = 1024
ELEMENTS = 1_000_000


@dataclass(frozen=True, eq=False)
class Convolution:
    """Attributes:
    weight: output channels, input channels, rows, columns.
    bias: one for each output channel.
    """

    weight: Floats
    bias: Floats
    stride: int = 1
    padding: int = 0


@dataclass(frozen=True, eq=False)
class Dense:
    """x @ weight + bias."""

    weight: Floats
    bias: Floats


@dataclass(frozen=True)
class Relu:
    pass


@dataclass(frozen=True)
class MaxPool:
    size: int
    stride: int
    padding: int = 0


@dataclass(frozen=True)
class Average:
    """The mean of each channel; no axes of the image are left."""


@dataclass(frozen=True)
class Flatten:
    pass


@dataclass(frozen=True)
class Residual:
    """body(x) + shortcut(x)."""

    body: Sequence[Layer]
    shortcut: Sequence[Layer]


Layer = Convolution | Dense | Relu | MaxPool | Average | Flatten | Residual


class _Maker:
    """Layers with random weights."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def convolution(
        self, inputs: int, outputs: int, size: int, stride: int = 1, padding: int = 0, gain: float = 1.0
    ) -> Convolution:
        scale = gain * np.sqrt(2 / (inputs * size * size))
        weight = self._rng.normal(0, scale, (outputs, inputs, size, size))
        return Convolution(weight, self._rng.normal(0, 0.05, outputs), stride, padding)

    def dense(self, inputs: int, outputs: int) -> Dense:
        weight = self._rng.normal(0, np.sqrt(2 / inputs), (inputs, outputs))
        return Dense(weight, self._rng.normal(0, 0.05, outputs))

    def block(self, inputs: int, outputs: int, stride: int, *, inner: int | None) -> list[Layer]:
        """A residual block; a bottleneck of `inner` channels, if there are to be any."""
        # Every block adds to the activations; this much of each keeps fifty layers within a factor of two.
        gain = 0.3
        body: list[Layer]
        if inner is None:
            first = self.convolution(inputs, outputs, 3, stride, 1)
            body = [first, Relu(), self.convolution(outputs, outputs, 3, 1, 1, gain)]
        else:
            body = [
                self.convolution(inputs, inner, 1),
                Relu(),
                self.convolution(inner, inner, 3, stride, 1),
                Relu(),
                self.convolution(inner, outputs, 1, gain=gain),
            ]
        same = stride == 1 and inputs == outputs
        shortcut = [] if same else [self.convolution(inputs, outputs, 1, stride, gain=np.sqrt(0.5))]
        return [Residual(body, shortcut), Relu()]


def _a() -> list[Layer]:
    make = _Maker(1)
    return [make.dense(784, 128), Relu(), make.dense(128, 128), Relu(), make.dense(128, 10)]


def _two_convolutions(channels: tuple[int, int], flat: int, hidden: int) -> list[Layer]:
    make = _Maker(2)
    first, second = channels
    return [
        *(make.convolution(1, first, 5), MaxPool(2, 2), Relu()),
        *(make.convolution(first, second, 5), MaxPool(2, 2), Relu()),
        *(Flatten(), make.dense(flat, hidden), Relu(), make.dense(hidden, 10)),
    ]


def _d() -> list[Layer]:
    make = _Maker(4)
    convolution = make.convolution(1, 5, 5, 2, 2)
    return [convolution, Relu(), Flatten(), make.dense(980, 100), Relu(), make.dense(100, 10)]


def _resnet20() -> list[Layer]:
    make = _Maker(20)
    layers: list[Layer] = [make.convolution(3, 16, 3, 1, 1), Relu()]
    inputs = 16
    for outputs, stride in ((16, 1), (32, 2), (64, 2)):
        for i in range(3):
            layers += make.block(inputs, outputs, stride if i == 0 else 1, inner=None)
            inputs = outputs
    return [*layers, Average(), make.dense(64, 10)]


def _resnet(blocks: Sequence[int], *, wider: int | None) -> list[Layer]:
    """For 224 x 224 and 1,000 classes; with bottlenecks, if blocks are `wider` than these."""
    make = _Maker(sum(blocks))
    layers: list[Layer] = [make.convolution(3, 64, 7, 2, 3), Relu(), MaxPool(3, 2, 1)]
    inputs = 64
    for count, channels, stride in zip(blocks, (64, 128, 256, 512), (1, 2, 2, 2), strict=True):
        outputs = channels * (wider or 1)
        for i in range(count):
            layers += make.block(inputs, outputs, stride if i == 0 else 1, inner=channels if wider else None)
            inputs = outputs
    return [*layers, Average(), make.dense(inputs, 1000)]


NETWORKS: dict[str, tuple[tuple[int, ...], Callable[[], list[Layer]]]] = {
    "A": ((784,), _a),
    "B": ((1, 28, 28), lambda: _two_convolutions((16, 16), 256, 100)),
    "C": ((1, 28, 28), lambda: _two_convolutions((20, 50), 800, 500)),
    "D": ((1, 28, 28), _d),
    "ResNet-20": ((3, 32, 32), _resnet20),
    "ResNet-18": ((3, 224, 224), lambda: _resnet((2, 2, 2, 2), wider=None)),
    "ResNet-50": ((3, 224, 224), lambda: _resnet((3, 4, 6, 3), wider=4)),
}


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        error: the largest from float64, at most; of a network, relative to its largest output.
        network: which, where it is one; `what` is a function's name otherwise.
        large: takes gigabytes: nobody else's processes are kept meanwhile.
    """

    name: str
    what: str
    error: float = 2e-3
    network: str | None = None
    batch: int = 1
    large: bool = False

    def layers(self) -> list[Layer]:
        return NETWORKS[self.network][1]() if self.network else []

    def inputs(self) -> list[Floats]:
        """The same at every call."""
        rng = np.random.default_rng(7)
        if self.network:
            return [rng.uniform(0, 1, (self.batch, *NETWORKS[self.network][0]))]
        draw: dict[str, Callable[[], list[Floats]]] = {
            "W1": lambda: [rng.uniform(-1, 1, (SIDE, SIDE)) for _ in range(2)],
            "W2": lambda: [rng.uniform(-10, 10, ELEMENTS)],
            "softmax": lambda: [2 * rng.normal(0, 1, (1000, 100))],
            "exp": lambda: [rng.uniform(-5, 2, 100_000)],
            "GELU": lambda: [rng.uniform(-5, 5, 100_000)],
        }
        return draw[self.name]()


def _networks() -> list[Row]:
    small = [
        Row(f"{name} batch {batch}", f"network {name}, {batch} at once", network=name, batch=batch)
        for name in "ABC"
        for batch in (1, 10, 100)
    ]
    large = [
        Row("ResNet-20", "ResNet-20, one image of 32 x 32", network="ResNet-20"),
        Row("ResNet-18", "ResNet-18, one image of 224 x 224", network="ResNet-18", large=True),
        Row("ResNet-50", "ResNet-50, one image of 224 x 224", network="ResNet-50", large=True),
    ]
    return [*small, *large]


ROWS: dict[str, Row] = {
    row.name: row
    for row in (
        Row("W1", f"product of two secrets, {SIDE} x {SIDE} x {SIDE}, truncated"),
        Row("W2", f"ReLU of {ELEMENTS:,} elements"),
        Row("softmax", "softmax of 1,000 rows of 100"),
        Row("exp", "e^x of 100,000 elements", error=2e-4),
        Row("GELU", "GELU of 100,000 elements"),
        *_networks(),
    )
}


@dataclass
class Turn:
    """What one party saw of one run.

    Attributes:
        began, ended: of the machine's monotonic clock, in seconds.
        processor: seconds of it.
        sent: bytes of payload, where the party counts them.
        rounds: of messages between the servers, where the party counts them.
    """

    began: float
    ended: float
    processor: float
    sent: int | None = None
    rounds: int | None = None
    more: dict[str, Any] = field(default_factory=dict)
