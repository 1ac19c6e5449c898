"""Convolutions of sequences and images, transposed ones too.

Where the weights come with a batch normalisation, as `share` says, a convolution waits for who reads it. If that is the
normalisation of its result, the weights are multiplied by its factor, once, and serve all later calls: it costs no
product of its own, and no truncation.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from strongroom.errors import UsageError
from strongroom.mpc.protocols.linear import conv2d, conv_transpose2d, multiply
from strongroom.mpc.protocols.owned import Owned, conv2d_owned, own
from strongroom.mpc.protocols.public import convolve_public
from strongroom.mpc.protocols.truncate import truncate
from strongroom.mpc.ring import Convolution, Transposed, decode
from strongroom.mpc.shared import Shared
from strongroom.mpc.tensor.operators.arithmetic import add_bias, plus
from strongroom.mpc.tensor.operators.registry import at_frac, aten, handles, plain
from strongroom.mpc.tensor.pending import Pending
from strongroom.mpc.tensor.shared_tensor import DTYPES, SharedTensor
from strongroom.mpc.tensor.storage import Folded, Place


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
) -> Shared | Pending:
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
    if (
        isinstance(how, Convolution)
        and isinstance(x, SharedTensor)
        and x._dtype in DTYPES
        and isinstance(w, SharedTensor)
        and w.rows() in w._storage.world.normalised_after
    ):
        return _Convolved(x, w, bias, how)
    value = _convolve(x, w, how, lift=sequence)
    if sequence:
        value = value.reshape(*value.shape[:2], value.shape[3])
    if bias is None:
        return value
    return add_bias(value, bias.reshape(-1, *[1] * (w.ndim - 2)))


class _Convolved(Pending):
    """A convolution with secret weights, and the batch normalisation after it if there is one."""

    def __init__(self, x: SharedTensor, w: SharedTensor, bias: torch.Tensor | None, how: Convolution) -> None:
        lift = w.ndim == 3
        self._image = x._storage.read(x.place.lifted() if lift else x.place)
        self._seen = w.place.lifted() if lift else w.place
        self._kernel, self._weights = w._storage.read(self._seen), w._storage
        self._writes, self._how, self._lift = w._storage.writes, how, lift
        self._bias = bias.read() if isinstance(bias, SharedTensor) else bias if bias is None else plain(bias)
        shape = how.shape(self._image.shape, self._kernel.shape)
        super().__init__((*shape[:2], shape[3]) if lift else shape)

    def _value(self) -> Shared:
        owned = self._weights.holder is not None and self._weights.writes == self._writes
        kernel = self._weights.read_owned(self._seen) if owned else self._kernel
        return self._convolved(kernel, self._bias)

    def _normalised(self, folded: Folded) -> Shared | None:
        holder = self._weights.holder
        if self._weights.writes != self._writes or holder not in (None, folded.holder):
            return None
        if folded.scale.shape != self._kernel.shape[:1]:
            return None
        kernel = folded.kernels.get(self._kernel)
        if kernel is None:
            kernel = folded.kernels[self._kernel] = self._scaled(folded.scale, holder)
        summand = at_frac(folded.shift, self._image.frac + self._kernel.frac)
        if isinstance(self._bias, Shared):
            summand = summand + multiply(self._bias, folded.scale)
        elif self._bias is not None:
            summand = summand + folded.scale.times_public(self._bias)
        return self._convolved(kernel, summand)

    def _scaled(self, scale: Shared, holder: int | None) -> Shared | Owned:
        kernel, party = self._kernel, self._kernel.party
        each = (-1, *[1] * (len(kernel.shape) - 1))
        if holder is not None:
            return own(
                party,
                lambda: decode(kernel.words, kernel.frac) * decode(scale.words, scale.frac).reshape(each),
                owner=holder,
                shape=kernel.shape,
            )
        # A copy, so that the opening is gone with it: it serves this product alone.
        return truncate(multiply(Shared(party, kernel.words, kernel.frac), scale.reshape(*each)))

    def _convolved(self, kernel: Shared | Owned, bias: Shared | NDArray[np.float64] | None) -> Shared:
        if isinstance(kernel, Owned):
            value = conv2d_owned(self._image, kernel, self._how)
        else:
            value = conv2d(self._image, kernel, self._how)
        if self._lift:
            value = value.reshape(*value.shape[:2], value.shape[3])
        if bias is None:
            return value
        return plus(value, bias.reshape(-1, *[1] * (len(value.shape) - 2)))


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
