"""ResNet-18 and ResNet-50 (arXiv:1512.03385, with the stride in the 3 x 3 convolution) at 224 x 224, random weights.

The running statistics of the batch normalisations are those of random images, so that activations have the size that
they have in a trained network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

SIDE = 224
CLASSES = 1000


class Residual(nn.Module):
    """A path of convolutions, added to a shortcut."""

    def __init__(self, path: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.path, self.shortcut = path, shortcut

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.relu(self.path(x) + self.shortcut(x))


def _convolve(inputs: int, outputs: int, side: int, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, side, stride, side // 2, bias=False), nn.BatchNorm2d(outputs)]


def _block(inputs: int, width: int, outputs: int, stride: int, *, bottleneck: bool) -> Residual:
    if bottleneck:
        path = [
            *(*_convolve(inputs, width, 1), nn.ReLU()),
            *(*_convolve(width, width, 3, stride), nn.ReLU()),
            *_convolve(width, outputs, 1),
        ]
    else:
        path = [*_convolve(inputs, width, 3, stride), nn.ReLU(), *_convolve(width, outputs, 3)]
    same = inputs == outputs and stride == 1
    return Residual(
        nn.Sequential(*path), nn.Identity() if same else nn.Sequential(*_convolve(inputs, outputs, 1, stride))
    )


def _resnet(depths: Sequence[int], *, bottleneck: bool) -> nn.Module:
    layers = [*_convolve(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for stage, depth in enumerate(depths):
        width = 64 << stage
        outputs = 4 * width if bottleneck else width
        for i in range(depth):
            stride = 2 if stage and not i else 1
            layers.append(_block(channels, width, outputs, stride, bottleneck=bottleneck))
            channels = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES))


def resnet18() -> nn.Module:
    return _resnet([2, 2, 2, 2], bottleneck=False)


def resnet50() -> nn.Module:
    return _resnet([3, 4, 6, 3], bottleneck=True)


RESNETS: dict[str, Callable[[], nn.Module]] = {"ResNet-18": resnet18, "ResNet-50": resnet50}


def random_image(seed: int = 1) -> NDArray[np.float32]:
    """One image, normalised as such networks take it."""
    return np.random.default_rng(seed).normal(0, 1, (1, 3, SIDE, SIDE)).astype(np.float32)


def with_random_weights(make: Callable[[], nn.Module], seed: int = 1) -> nn.Module:
    """A network whose normalisations have seen random images; the same each time."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        model = make()
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.BatchNorm2d):
                module.momentum = None  # the mean over all batches seen
        model.train()(torch.from_numpy(np.concatenate([random_image(seed + 1 + i) for i in range(4)])))
    return model.eval()
