"""What the operators of layers become: convolutions, pooling, softmax, norms, attention."""

from __future__ import annotations

import math
from collections.abc import Sequence
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray

from strongroom.errors import UsageError
from strongroom.mpc.functions.activation import softmax
from strongroom.mpc.functions.normalisation import layer_norm
from strongroom.mpc.protocols.linear import conv2d, conv_transpose2d, matmul, multiply
from strongroom.mpc.protocols.owned import conv2d_owned
from strongroom.mpc.protocols.pool import max_pool2d
from strongroom.mpc.protocols.public import convolve_public
from strongroom.mpc.protocols.truncate import truncate
from strongroom.mpc.ring import Convolution, Transposed
from strongroom.mpc.shared import Shared, concatenate
from strongroom.mpc.tensor.operators import add_bias, at_frac, aten, found, handles, mean_of, padded, plain, secret
from strongroom.mpc.tensor.shared_tensor import SharedTensor
from strongroom.mpc.tensor.storage import Place

_MASKED = -(2.0**11)  # a score that e^x makes nothing of


def _pair(numbers: Sequence[int]) -> tuple[int, int]:
    """Of an image's two axes; one number stands for both."""
    return (numbers[0], numbers[-1])


# Convolutions


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
    sequence = len(stride) == 1
    if len(stride) > 2 or x.ndim != len(stride) + 2:
        raise UsageError(f"convolution: got an input of shape {tuple(x.shape)}, wanted a batch of sequences or images")

    def both(numbers: Sequence[int], first: int) -> tuple[int, int]:
        return (first, numbers[0]) if sequence else (numbers[0], numbers[1])

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
    return add_bias(value, bias.reshape(-1, *[1] * len(stride)))


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


# Pooling


@handles(aten.max_pool2d_with_indices.default)
def _max_pool2d(
    x: SharedTensor,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    ceil_mode: bool = False,
) -> tuple[Shared, None]:
    if ceil_mode or set(dilation) != {1}:
        raise UsageError("max pool: got ceil_mode or a dilation, wanted neither")
    return max_pool2d(x.read(), _pair(kernel), _pair(stride or kernel), _pair(padding)), None


@handles(aten.avg_pool2d.default)
def _avg_pool2d(
    x: SharedTensor,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Shared:
    if ceil_mode or divisor_override is not None or (any(padding) and not count_include_pad):
        raise UsageError(
            "average pool: got ceil_mode, divisor_override or count_include_pad=False, wanted none of them"
        )
    (down, right), steps, (top, left) = _pair(kernel), _pair(stride or kernel), _pair(padding)
    value = x.read()
    if top or left:
        value = padded(value, [left, left, top, top])
    rows, columns = ((n - k) // step + 1 for n, k, step in zip(value.shape[-2:], (down, right), steps, strict=True))
    windows = [
        value[
            ...,
            i : i + (rows - 1) * steps[0] + 1 : steps[0],
            j : j + (columns - 1) * steps[1] + 1 : steps[1],
            None,
        ]
        for i in range(down)
        for j in range(right)
    ]
    return mean_of(concatenate(windows))


@handles(aten._adaptive_avg_pool2d.default)
def _adaptive_avg_pool2d(x: SharedTensor, size: Sequence[int]) -> Shared:
    sides = x.place.size[-2:]
    if any(side % n for side, n in zip(sides, size, strict=True)):
        raise UsageError(f"adaptive average pool: got {tuple(sides)} for {tuple(size)}, wanted multiples")
    kernel = [side // n for side, n in zip(sides, size, strict=True)]
    return _avg_pool2d(x, kernel)


# Softmax and norms


@handles(aten._softmax.default)
def _softmax(x: SharedTensor, dim: int, half_to_float: bool) -> Shared:
    value = x.read()
    axes = list(range(len(value.shape)))
    axes.append(axes.pop(dim))
    return softmax(value.transpose(*axes)).transpose(*np.argsort(axes).tolist())


@handles(aten.native_layer_norm.default)
def _layer_norm(
    x: torch.Tensor, shape: Sequence[int], weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float
) -> tuple[Shared, None, None]:
    value = secret(x, found(x, weight, bias))
    outer = value.shape[: len(value.shape) - len(shape)]
    y = layer_norm(value.reshape(*outer, prod(shape)), eps=eps).reshape(*value.shape)
    if isinstance(weight, SharedTensor):
        y = multiply(y, weight.read())
    elif weight is not None:
        y = y.times_public(plain(weight))
    return add_bias(y, bias), None, None


@handles(aten.native_batch_norm.default)
def _batch_norm(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    mean: torch.Tensor | None,
    variance: torch.Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Shared, None, None]:
    if training or mean is None or variance is None:
        raise UsageError("batch norm: got a batch's own statistics, wanted the running ones", hint="call model.eval()")
    parts = [each for each in (weight, bias, mean, variance) if each is not None]
    value = secret(x, found(x, *parts))
    scale, shift = _folded(parts, weight, bias, mean, variance, eps)
    channels = (-1, *[1] * (len(value.shape) - 2))
    if isinstance(scale, Shared) and isinstance(shift, Shared):
        product = multiply(value, scale.reshape(*channels))
        return product + at_frac(shift, product.frac).reshape(*channels), None, None
    assert not isinstance(scale, Shared) and not isinstance(shift, Shared)  # noqa: S101  # both or neither
    return value.times_public(scale.reshape(channels)) + shift.reshape(channels), None, None


def _folded(
    parts: list[torch.Tensor],
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    mean: torch.Tensor,
    variance: torch.Tensor,
    eps: float,
) -> tuple[Shared | NDArray[np.float64], Shared | NDArray[np.float64]]:
    """A factor and a summand for each channel."""
    if isinstance(variance, SharedTensor):
        folded = variance._storage.folded
        storages = tuple(each._storage for each in parts if isinstance(each, SharedTensor))
        if folded is None or not folded.holds(storages, eps):
            raise UsageError(
                "batch norm: the root of a secret variance is not computed",
                hint="share the module whole, unchanged: who has it folds weight, bias and statistics into one",
            )
        return folded.scale, folded.shift
    if any(isinstance(each, SharedTensor) for each in parts):
        raise UsageError("batch norm: got public and secret parts, wanted all of one kind")
    return fold(
        None if weight is None else plain(weight),
        None if bias is None else plain(bias),
        plain(mean),
        plain(variance),
        eps,
    )


def fold(
    weight: NDArray[np.float64] | None,
    bias: NDArray[np.float64] | None,
    mean: NDArray[np.float64],
    variance: NDArray[np.float64],
    eps: float,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Batch normalisation as y = x scale + shift."""
    scale = (1.0 if weight is None else weight) / np.sqrt(variance + eps)
    return scale, (0.0 if bias is None else bias) - mean * scale


# Attention


@handles(aten.scaled_dot_product_attention.default)
def _attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None = None,
    dropout: float = 0.0,
    causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Shared:
    if dropout or enable_gqa or isinstance(mask, SharedTensor):
        raise UsageError("attention: got a dropout, grouped queries or a secret mask, wanted none of them")
    like = found(q, k, v)
    queries, keys, values = (secret(each, like) for each in (q, k, v))
    factor = 1 / math.sqrt(queries.shape[-1]) if scale is None else scale
    count = len(keys.shape)
    scores = matmul(truncate(queries.times_public(factor)), keys.transpose(*range(count - 2), count - 1, count - 2))
    scores = truncate(scores)
    if causal:
        seen = np.tri(scores.shape[-2], scores.shape[-1])
        scores = scores.times_public(seen, frac=0) + (1 - seen) * _MASKED
    elif mask is not None:
        allowed = mask.dtype == torch.bool
        scores = scores + ((1 - plain(mask)) * _MASKED if allowed else np.maximum(plain(mask), _MASKED))
    return matmul(softmax(scores), values)
