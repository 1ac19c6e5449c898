"""Products of shared values: Beaver's, with openings that are kept.

D. Beaver, "Efficient Multiparty Protocols Using Circuit Randomization", CRYPTO '91.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from strongroom.errors import UsageError
from strongroom.mpc.party import P0, P1, Party
from strongroom.mpc.ring import Convolution, Transposed, Words
from strongroom.mpc.ring import matmul as ring_matmul
from strongroom.mpc.shared import Masked, Shared
from strongroom.mpc.transcript import broadcast, shapes

Product = Callable[[Words, Words], Words]


def open_masked(party: Party, *values: Shared) -> list[Masked]:
    """Open each value minus its mask, once in its life: those that are not open yet, in one round. In an operation."""
    todo: list[Shared] = []
    for value in values:
        whole = value.to_open()
        if value.masked is None and not any(whole is other for other in todo):
            todo.append(whole)
    if party.is_dealer:
        for value in todo:
            mask = party.stream(P0).words(value.shape)
            mask += party.stream(P1).words(value.shape)
            value.set_masked(Masked(value.words, mask))
    elif todo:
        masks = [party.dealt.words(value.shape) for value in todo]
        ours = [np.asarray(value.words - mask) for value, mask in zip(todo, masks, strict=True)]
        theirs = [party.arena.take(each.shape) for each in ours]
        party.exchange(ours, theirs)
        for value, mask, own, other in zip(todo, masks, ours, theirs, strict=True):
            own += other
            value.set_masked(Masked(own, mask))
    opened = [value.masked for value in values]
    return [each for each in opened if each is not None]


def matmul(x: Shared, w: Shared) -> Shared:
    """The matrix product, of stacks too as in `numpy.matmul`; with the fractional bits of both."""
    return _product("matmul", x, w, ring_matmul, check_matmul(x.shape, w.shape))


def check_matmul(x: tuple[int, ...], w: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a matrix product; UsageError unless both shapes fit."""
    if len(x) < 2 or len(w) < 2 or x[-1] != w[-2]:
        raise UsageError(f"matmul: got shapes {x} and {w}, wanted (..., n, k) and (..., k, m)")
    return (*broadcast("matmul", x[:-2], w[:-2]), x[-2], w[-1])


def multiply(x: Shared, y: Shared) -> Shared:
    """The product element by element, with the fractional bits of both."""
    return _product("multiply", x, y, np.multiply, broadcast("multiply", x.shape, y.shape))


def conv2d(x: Shared, w: Shared, convolution: Convolution | None = None) -> Shared:
    """The convolution of images (batch, channels, height, width), with the fractional bits of both."""
    how = convolution or Convolution()
    return _product("conv2d", x, w, how, how.shape(x.shape, w.shape), how)


def conv1d(x: Shared, w: Shared, *, stride: int = 1, padding: int = 0, dilation: int = 1, groups: int = 1) -> Shared:
    """The convolution of sequences (batch, channels, length), with the fractional bits of both."""
    if len(x.shape) != 3 or len(w.shape) != 3:
        raise UsageError(f"conv1d: got shapes {x.shape} and {w.shape}, wanted three dimensions each")
    how = Convolution((1, stride), (0, padding), (1, dilation), groups)
    image, kernel = (each.reshape(*each.shape[:2], 1, each.shape[2]) for each in (x, w))
    result = conv2d(image, kernel, how)
    return result.reshape(*result.shape[:2], result.shape[3])


def conv_transpose2d(x: Shared, w: Shared, transposed: Transposed | None = None) -> Shared:
    """The transposed convolution of images, with the fractional bits of both."""
    how = transposed or Transposed()
    return _product("conv transpose2d", x, w, how, how.shape(x.shape, w.shape), how)


def _product(name: str, x: Shared, w: Shared, product: Product, shape: tuple[int, ...], *facts: object) -> Shared:
    """[X . W] out of E = X - A and F = W - B, where . is bilinear:

    1. D: C = A . B; P1's share C_1 = C - C_0
    2. Z_i = C_i + A_i . F + E . W_i, where W_i is the server's share
    """
    party, frac = x.party, x.frac + w.frac
    with party.operation(name, shapes(x.shape, w.shape), frac, *facts):
        x_masked, w_masked = open_masked(party, x, w)
        if party.is_dealer:
            c = np.asarray(party.multiply(product, x_masked.mask, w_masked.mask))  # 1
            c -= party.stream(P0).words(shape)
            party.deal(c)
            return Shared.of_shape(party, shape, frac)
        z = np.asarray(party.multiply(product, x_masked.mask, w_masked.opening))  # 2
        z += party.multiply(product, x_masked.opening, w.words)
        z += party.fill_dealt(party.arena.take(shape))
        return Shared(party, z, frac)
