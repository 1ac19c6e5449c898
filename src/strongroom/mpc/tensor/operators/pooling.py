"""Pooling of windows, and adaptive pooling, along one to three axes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product as pairs
from typing import Any

import numpy as np
import torch

from strongroom.mpc.functions.fixed import inner_frac
from strongroom.mpc.protocols.compare import amax
from strongroom.mpc.protocols.pool import lowest, max_pool2d, windows2d
from strongroom.mpc.ring import Words
from strongroom.mpc.shared import Shared, concatenate
from strongroom.mpc.tensor.operators.arrange import padded
from strongroom.mpc.tensor.operators.registry import aten, handles, locally
from strongroom.mpc.tensor.pending import Pending
from strongroom.mpc.tensor.shared_tensor import DTYPES, SharedTensor

Numbers = Sequence[int]


def _each(numbers: Numbers, count: int) -> tuple[int, ...]:
    """One number for each axis; one stands for all."""
    return tuple(numbers) if len(numbers) == count else (numbers[0],) * count


class _Windows:
    """Where the windows of a pooling lie.

    Attributes:
        sides: how many there are along each axis.
        border: to put around the image, as `padded` takes it.
    """

    def __init__(
        self, image: Numbers, kernel: Numbers, stride: Numbers, padding: Numbers, dilation: Numbers, ceil_mode: bool
    ) -> None:
        count = len(image)
        self.kernel, self.dilation = _each(kernel, count), _each(dilation, count)
        self.stride, around = _each(stride or kernel, count), _each(padding, count)
        self.sides: tuple[int, ...] = ()
        self.border: list[int] = []
        for n, k, step, p, apart in zip(image, self.kernel, self.stride, around, self.dilation, strict=True):
            reach = apart * (k - 1) + 1
            free = n + 2 * p - reach
            side = free // step + 1
            # A last window that begins in the border to the right is left out, as torch does.
            if ceil_mode and free % step and side * step < n + p:
                side += 1
            self.sides += (side,)
            after = max((side - 1) * step + reach - n - p, 0)
            self.border = [p, max(p, after), *self.border]

    def parts(self) -> list[tuple[slice, ...]]:
        """For each of a window's elements, where all windows have it in the image with its border."""
        axes = [
            [slice(i * apart, i * apart + (side - 1) * step + 1, step) for i in range(k)]
            for k, step, apart, side in zip(self.kernel, self.stride, self.dilation, self.sides, strict=True)
        ]
        return list(pairs(*axes))


def _max_pool(
    x: SharedTensor,
    kernel: Numbers,
    stride: Numbers = (),
    padding: Numbers = (0,),
    dilation: Numbers = (1,),
    ceil_mode: bool = False,
) -> tuple[Shared, None]:
    value, count = x.read(), len(kernel)
    windows = _Windows(value.shape[-count:], kernel, stride, padding, dilation, ceil_mode)
    if any(windows.border):
        value = padded(value, windows.border, lowest(value.party.settings, value.frac))
    every = [value[(..., *part, None)] for part in windows.parts()]
    return amax(concatenate(every)), None


class _Pooled(Pending):
    """A pooling, with the truncation before it and perhaps the ReLU after it.

    Args:
        windows: along the last axis, what is compared.
    """

    def __init__(self, windows: Shared) -> None:
        super().__init__(windows.shape[:-1])
        self._windows, self._bits = windows, windows.frac - windows.party.settings.frac

    def _value(self) -> Shared:
        return amax(self._windows, self._bits)

    def _rectified(self) -> Shared:
        return amax(self._windows, self._bits, rectify=True)


@handles(aten.max_pool2d_with_indices.default)
def _max_pool2d(
    x: SharedTensor,
    kernel: Numbers,
    stride: Numbers = (),
    padding: Numbers = (0,),
    dilation: Numbers = (1,),
    ceil_mode: bool = False,
) -> tuple[Shared | Pending, None]:
    if x.ndim == 4 and not ceil_mode and set(dilation) == {1}:
        how: Any = (_each(kernel, 2), _each(stride or kernel, 2), _each(padding, 2))
        if x._dtype in DTYPES:
            return _Pooled(windows2d(x.read(raw=True), *how)), None
        return max_pool2d(x.read(), *how), None
    return _max_pool(x, _each(kernel, 2), stride, padding, dilation, ceil_mode)


@handles(aten.max_pool1d.default)
def _max_pool1d(
    x: torch.Tensor,
    kernel: Numbers,
    stride: Numbers = (),
    padding: Numbers = (0,),
    dilation: Numbers = (1,),
    ceil_mode: bool = False,
) -> torch.Tensor:
    rows = (1, kernel[0]), (1, (stride or kernel)[0]), (0, padding[0]), (1, dilation[0])
    return torch.nn.functional.max_pool2d(x.unsqueeze(-2), *rows, ceil_mode).squeeze(-2)


@handles(aten.max_pool1d_with_indices.default)
def _max_pool1d_with_indices(x: torch.Tensor, *more: Any) -> tuple[torch.Tensor, None]:
    return _max_pool1d(x, *more), None


@handles(aten.max_pool3d_with_indices.default)
def _max_pool3d(x: SharedTensor, kernel: Numbers, *more: Any) -> tuple[Shared, None]:
    return _max_pool(x, _each(kernel, 3), *more)


def _avg_pool(
    x: SharedTensor,
    kernel: Numbers,
    stride: Numbers = (),
    padding: Numbers = (0,),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Shared:
    value, count = x.read(), len(kernel)
    windows = _Windows(value.shape[-count:], kernel, stride, padding, (1,), ceil_mode)
    if any(windows.border):
        value = padded(value, windows.border)
    total = _summed(value, windows)
    # What torch divides by, at each place: the sums of an image of ones over their means.
    ones = torch.ones((1, 1, *x.place.size[-count:]), dtype=torch.float64)
    pool: Any = torch.nn.functional.avg_pool2d if count == 2 else torch.nn.functional.avg_pool3d
    where: Any = (kernel, stride or kernel, _each(padding, count), ceil_mode)
    means = pool(ones, *where, count_include_pad, divisor_override)
    share = (means / pool(ones, *where, True, 1))[0, 0].numpy()
    uniform = share.flat[0] if (share == share.flat[0]).all() else share
    return total.times_public(uniform, frac=inner_frac(total.party))


def _summed(value: Shared, windows: _Windows) -> Shared:
    """The sum of each window; no message."""

    def add(words: Words) -> Words:
        keys: list[Any] = [(..., *part) for part in windows.parts()]
        out: Words = words[keys[0]].copy()
        for key in keys[1:]:
            out += words[key]
        return out

    return locally(value, add, "windows", windows.kernel, windows.stride, windows.sides)


@handles(aten.avg_pool1d.default)
def _avg_pool1d(
    x: torch.Tensor,
    kernel: Numbers,
    stride: Numbers = (),
    padding: Numbers = (0,),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> torch.Tensor:
    return torch.nn.functional.avg_pool2d(
        x.unsqueeze(-2),
        (1, kernel[0]),
        (1, (stride or kernel)[0]),
        (0, padding[0]),
        ceil_mode,
        count_include_pad,
    ).squeeze(-2)


@handles(aten.avg_pool2d.default)
def _avg_pool2d(x: SharedTensor, kernel: Numbers, *more: Any) -> Shared:
    return _avg_pool(x, _each(kernel, 2), *more)


@handles(aten.avg_pool3d.default)
def _avg_pool3d(x: SharedTensor, kernel: Numbers, *more: Any) -> Shared:
    return _avg_pool(x, _each(kernel, 3), *more)


# Adaptive pooling


def _bounds(side: int, count: int) -> list[tuple[int, int]]:
    """Where each of `count` windows begins and ends."""
    return [(i * side // count, -(-(i + 1) * side // count)) for i in range(count)]


@handles(aten._adaptive_avg_pool2d.default, aten._adaptive_avg_pool3d.default)
def _adaptive_avg_pool(x: SharedTensor, size: Numbers) -> Shared:
    value = x.read()
    share = np.ones(())
    for i, count in enumerate(reversed(size)):
        axis = len(value.shape) - 1 - i
        bounds = _bounds(value.shape[axis], count)
        starts = [start for start, _ in bounds]
        stops = np.array([stop for _, stop in bounds])

        def add(words: Words, axis: int = axis, starts: Any = starts, stops: Any = stops) -> Words:
            sums = np.cumsum(words, axis, dtype=np.uint64)
            sums = np.concatenate([np.zeros_like(sums.take([0], axis)), sums], axis)
            out: Words = sums.take(stops, axis) - sums.take(starts, axis)
            return out

        value = locally(value, add, "windows", axis, count)
        each = 1 / np.array([stop - start for start, stop in bounds])
        share = share * each.reshape(-1, *[1] * i)
    uniform = share.flat[0] if (share == share.flat[0]).all() else share
    return value.times_public(uniform, frac=inner_frac(value.party))


@handles(aten.adaptive_max_pool1d.default)
def _adaptive_max_pool1d(x: torch.Tensor, size: Numbers) -> tuple[torch.Tensor, None]:
    return torch.nn.functional.adaptive_max_pool2d(x.unsqueeze(-2), (1, size[0])).squeeze(-2), None


@handles(aten.adaptive_max_pool2d.default, aten.adaptive_max_pool3d.default)
def _adaptive_max_pool(x: SharedTensor, size: Numbers) -> tuple[Shared, None]:
    value = x.read()
    outer = len(value.shape) - len(size)
    for i, count in enumerate(size):
        axis = outer + i
        bounds = _bounds(value.shape[axis], count)
        longest = max(stop - start for start, stop in bounds)
        # Windows of one length, where an element may be there twice.
        chosen = np.array([[min(start + j, stop - 1) for j in range(longest)] for start, stop in bounds])

        def take(words: Words, axis: int = axis, chosen: Any = chosen) -> Words:
            out: Words = words.take(chosen, axis)
            return out

        value = locally(value, take, "windows", axis, public=chosen)
        axes = [j for j in range(len(value.shape)) if j != axis + 1]
        value = amax(value.transpose(*axes, axis + 1))
    return value, None
