"""Products with public operands: each server multiplies its own share, and nothing is sent."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from strongroom.mpc.protocols.linear import Product, check_matmul
from strongroom.mpc.ring import Convolution, Transposed, encode
from strongroom.mpc.ring import matmul as ring_matmul
from strongroom.mpc.shared import Shared
from strongroom.mpc.transcript import shapes

Operand = Shared | ArrayLike


def matmul_public(x: Operand, w: Operand) -> Shared:
    """As `matmul`, where exactly one operand is shared and the other is public, at the settings' fractional bits."""
    return _product("matmul public", x, w, ring_matmul, check_matmul(np.shape(_sized(x)), np.shape(_sized(w))))


def convolve_public(x: Operand, w: Operand, how: Convolution | Transposed) -> Shared:
    """As `conv2d` or `conv_transpose2d`, where exactly one operand is shared and the other is public."""
    shape = how.shape(np.shape(_sized(x)), np.shape(_sized(w)))
    return _product("convolution public", x, w, how, shape, how)


def _sized(operand: Operand) -> ArrayLike:
    return operand.words if isinstance(operand, Shared) else operand


def _product(name: str, x: Operand, w: Operand, product: Product, shape: tuple[int, ...], *facts: object) -> Shared:
    shared = x if isinstance(x, Shared) else w
    assert isinstance(shared, Shared)  # noqa: S101  # one of them is
    party, settings = shared.party, shared.party.settings
    first, second = (
        each.words if isinstance(each, Shared) else encode(each, settings.frac, settings.bound) for each in (x, w)
    )
    public, frac = second if shared is x else first, shared.frac + settings.frac
    with party.operation(name, shapes(first.shape, second.shape), frac, *facts, public=public):
        if party.is_dealer:
            return Shared.of_shape(party, shape, frac)
        return Shared(party, party.multiply(product, first, second), frac)
