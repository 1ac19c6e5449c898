"""Convolutions of sequences and images, transposed ones too."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from strongroom.errors import UsageError
from strongroom.mpc.protocols.linear import conv2d, conv_transpose2d
from strongroom.mpc.protocols.owned import conv2d_owned
from strongroom.mpc.protocols.public import convolve_public
from strongroom.mpc.ring import Convolution, Transposed
from strongroom.mpc.shared import Shared
from strongroom.mpc.tensor.operators.arithmetic import add_bias
from strongroom.mpc.tensor.operators.registry import aten, handles, plain
from strongroom.mpc.tensor.shared_tensor import SharedTensor
from strongroom.mpc.tensor.storage import Place


@handles(aten.convolution.default)
def _convolution(
    x: torch.Tensor,
    w: torch.Tensor,
    bias: torch.Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Shared:
    sequence = w.ndim == 3
    if w.ndim not in (3, 4) or x.ndim != w.ndim:
        raise UsageError(
            f"convolution: got an input of shape {tuple(x.shape)} and weights of {tuple(w.shape)}, "
            "wanted a batch of sequences or of images",
            hint="convolutions in three dimensions have no protocol" if w.ndim == 5 else None,
        )

    def both(numbers: Sequence[int], first: int) -> tuple[int, int]:
        return (first, numbers[0]) if sequence else (numbers[0], numbers[-1])

    sizes = both(stride, 1), both(padding, 0)
    if transposed:
        how: Convolution | Transposed = Transposed(*sizes, both(output_padding, 0), both(dilation, 1), groups)
    else:
        how = Convolution(*sizes, both(dilation, 1), groups)
    value = _convolve(x, w, how, lift=sequence)
    if sequence:
        value = value.reshape(*value.shape[:2], value.shape[3])
    if bias is None:
        return value
    return add_bias(value, bias.reshape(-1, *[1] * (w.ndim - 2)))


def _convolve(x: torch.Tensor, w: torch.Tensor, how: Convolution | Transposed, *, lift: bool) -> Shared:
    def place(tensor: SharedTensor) -> Place:
        return tensor.place.lifted() if lift else tensor.place

    def operand(tensor: torch.Tensor) -> Shared | NDArray[np.float64]:
        if isinstance(tensor, SharedTensor):
            return tensor._storage.read(place(tensor))
        values = plain(tensor)
        return np.expand_dims(values, -2) if lift else values

    image = operand(x)
    if (
        isinstance(image, Shared)
        and isinstance(w, SharedTensor)
        and w._storage.holder is not None
        and isinstance(how, Convolution)
    ):
        return conv2d_owned(image, w._storage.read_owned(place(w)), how)
    kernel = operand(w)
    if isinstance(image, Shared) and isinstance(kernel, Shared):
        return conv2d(image, kernel, how) if isinstance(how, Convolution) else conv_transpose2d(image, kernel, how)
    return convolve_public(image, kernel, how)
