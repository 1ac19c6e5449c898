"""Resizing: a public linear map along each axis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from strongroom.mpc.functions.fixed import drop, inner_frac
from strongroom.mpc.ring import encode
from strongroom.mpc.ring import matmul as ring_matmul
from strongroom.mpc.shared import Shared
from strongroom.mpc.tensor.operators.registry import aten, handles, locally
from strongroom.mpc.tensor.shared_tensor import SharedTensor

_FEW = 8  # fractional bits that exact weights may have: halves and quarters, mostly


def _resizes(operator: Any) -> None:
    def resize(x: SharedTensor, size: Sequence[int], *more: Any) -> Shared:
        value = x.read()
        count = len(size)
        # After the size: align_corners, which some have, then a scale for each axis or nothing.
        given = [each for each in more if isinstance(each, bool)]
        scales = [each for each in more if not isinstance(each, bool)] + [None] * count
        for i, n in enumerate(size):
            axis = len(value.shape) - count + i
            side = value.shape[axis]
            # What the operator makes of unit vectors is its matrix.
            units = torch.eye(side, dtype=torch.float64).reshape(1, side, side, *[1] * (count - 1))
            matrix = operator.default(units, [n] + [1] * (count - 1), *given, *([scales[i]] + [None] * (count - 1)))
            value = _mapped(value, axis, matrix.reshape(side, n).numpy())
        return value

    def resize_by(x: SharedTensor, size: Sequence[int] | None, *more: Any) -> Shared:
        """With factors instead of a size, last."""
        factors = more[-1] or [None] * (x.ndim - 2)
        if size is None:
            size = [int(side * by) for side, by in zip(x.shape[2:], factors, strict=True)]
        return resize(x, size, *more[:-1], *factors)

    handles(operator.default)(resize)
    handles(operator.vec)(resize_by)


def _mapped(value: Shared, axis: int, matrix: NDArray[np.float64]) -> Shared:
    """The product with a public matrix along an axis."""
    settings, inner = value.party.settings, inner_frac(value.party)
    exact = [bits for bits in range(_FEW + 1) if (np.rint(matrix * 2**bits) == matrix * 2**bits).all()]
    frac = exact[0] if exact else inner
    if value.frac + frac > 2 * inner:
        value = drop(value, settings.frac, bits=settings.bound)
    words = encode(matrix, frac, settings.bound)
    axes = list(range(len(value.shape)))
    axes.append(axes.pop(axis))
    back = np.argsort(axes).tolist()
    turned = value.transpose(*axes)
    product = locally(turned, lambda each: ring_matmul(each, words), "resize", frac, public=words.view(np.int64))
    return Shared(product.party, product.words, value.frac + frac).transpose(*back)


_NAMES = (
    "upsample_nearest1d upsample_nearest2d _upsample_nearest_exact1d _upsample_nearest_exact2d upsample_linear1d "
    "upsample_bilinear2d upsample_bicubic2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa"
)
for _name in _NAMES.split():
    _resizes(getattr(aten, _name))
