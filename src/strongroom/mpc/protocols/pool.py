"""Functions that are a few comparisons: |x|, clamping, pooling."""

from __future__ import annotations

import numpy as np

from strongroom.errors import UsageError
from strongroom.mpc.protocols.compare import amax
from strongroom.mpc.protocols.relu import relu
from strongroom.mpc.ring import Settings
from strongroom.mpc.shared import Shared, concatenate

_MANTISSA = 52  # bits of a float64 behind its first


def absolute(x: Shared) -> Shared:
    """|x| = 2 max(x, 0) - x."""
    positive = relu(x, 0)
    return positive + positive - x


def clamp(x: Shared, low: float, high: float) -> Shared:
    """`x` where it lies between two public numbers, else the nearer of them; two comparisons."""
    if not low <= high:
        raise UsageError(f"clamp: got {low} and {high}, wanted a lower and an upper bound")
    width = x.party.settings.opening(x.frac) + 1  # of a difference
    x = relu(x - low, 0, width=width) + low
    return -(relu(-(x - high), 0, width=width) - high)


def max_pool2d(
    x: Shared,
    kernel: tuple[int, int],
    stride: tuple[int, int] | None = None,
    padding: tuple[int, int] = (0, 0),
    *,
    bits: int = 0,
    rectify: bool = False,
) -> Shared:
    """The largest of each window of images (batch, channels, height, width), over 2^bits; padding never is.

    With `rectify`, the larger of that and 0. Rounds are those of `amax`: five for a window of four of a small image.
    """
    return amax(windows2d(x, kernel, stride, padding), bits, rectify=rectify)


def lowest(settings: Settings, frac: int) -> float:
    """A border that no value with that many fractional bits is below, but for what the result's truncation drops."""
    return -(2.0**settings.bound) + 2.0 ** -min(frac, _MANTISSA - settings.bound)


def windows2d(
    x: Shared, kernel: tuple[int, int], stride: tuple[int, int] | None = None, padding: tuple[int, int] = (0, 0)
) -> Shared:
    """What `max_pool2d` compares, each window along the last axis; no message."""
    steps = stride or kernel
    if len(x.shape) != 4 or any(2 * p > k for p, k in zip(padding, kernel, strict=True)):
        raise UsageError(
            f"max pool: got shape {x.shape}, kernel {kernel} and padding {padding}, "
            "wanted (batch, channels, height, width) and at most half the kernel"
        )
    for axis, width in zip((2, 3), padding, strict=True):
        if width:
            shape = [*x.shape[:axis], width, *x.shape[axis + 1 :]]
            border = Shared.public(x.party, np.full(shape, lowest(x.party.settings, x.frac)), x.frac)
            x = concatenate([border, x, border], axis)
    sides = [(side - k) // step + 1 for side, k, step in zip(x.shape[2:], kernel, steps, strict=True)]
    if min(sides) < 1:
        raise UsageError(f"max pool: got padded images {x.shape[2:]} and kernel {kernel}, wanted none that is larger")
    # The first window's elements, and from each of them as many steps on as there are windows.
    down, right = ((n - 1) * step + 1 for n, step in zip(sides, steps, strict=True))
    windows = [
        x[:, :, i : i + down : steps[0], j : j + right : steps[1], None]
        for i in range(kernel[0])
        for j in range(kernel[1])
    ]
    return concatenate(windows)
