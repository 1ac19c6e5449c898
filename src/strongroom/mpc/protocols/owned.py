"""Products with weights that one server knows: one ring product while the other waits, and half the bytes.

For weights W of P0 (or of P1, with the servers exchanged):

1. Once: B is drawn by P0, and P0 opens W - B to P1.
2. Each product: A is drawn by P1; D, which knows both, shares C = A . B.
3. P1 sends E = x_1 - A.
4. Z_0 = (x_0 + E) . W + C_0, Z_1 = A . (W - B) + C_1; the second does not depend on the input.

The owner sees E, hidden by A; the other sees W - B, hidden by B. The owner of the weights sees nothing of the input.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from strongroom.errors import UsageError
from strongroom.mpc.party import P0, SERVERS, Party
from strongroom.mpc.peer import NAMES
from strongroom.mpc.protocols.linear import Product, check_matmul
from strongroom.mpc.ring import Convolution, Words
from strongroom.mpc.ring import matmul as ring_matmul
from strongroom.mpc.shared import Shared
from strongroom.mpc.transcript import shapes


class Owned:
    """Weights that one server knows. Made by `own`; it never changes.

    Attributes:
        owner: the server's rank.
        shape, frac: of the weights.
        words: W at the owner, W - B at the other server, B at the dealer.
    """

    def __init__(self, party: Party, owner: int, words: Words, frac: int) -> None:
        self.party, self.owner, self.words, self.frac = party, owner, words, frac

    @property
    def shape(self) -> tuple[int, ...]:
        return self.words.shape

    def __repr__(self) -> str:
        return f"Owned({shapes(self.shape)}, of {NAMES[self.owner]})"

    def __reduce__(self) -> str | tuple[object, ...]:
        raise UsageError("weights cannot be pickled or copied", hint="keep the file that they came from")


def own(party: Party, values: Callable[[], ArrayLike], *, owner: int, shape: Sequence[int]) -> Owned:
    """Mask weights for the other server; one message. `values` is called at the owner alone.

    Raises:
        UsageError: as `share` does.
    """
    if owner not in SERVERS:
        raise UsageError(f"owner: got {owner}, wanted 0 or 1")
    settings, size = party.settings, tuple(shape)
    with party.operation("own", shapes(shape), f"of {NAMES[owner]}"):
        if party.is_dealer:
            return Owned(party, owner, party.stream(owner).words(size), settings.frac)
        if party.rank == owner:
            words = party.given(values, size)
            party.exchange([words - party.dealt.words(size)], [])
        else:
            words = np.empty(size, np.uint64)
            party.exchange([], [words])
        return Owned(party, owner, words, settings.frac)


def matmul_owned(x: Shared, w: Owned) -> Shared:
    """As `matmul`, with weights that one server knows."""
    return _product("matmul owned", x, w, ring_matmul, check_matmul(x.shape, w.shape))


def conv2d_owned(x: Shared, w: Owned, convolution: Convolution | None = None) -> Shared:
    """As `conv2d`, with weights that one server knows."""
    how = convolution or Convolution()
    return _product("conv2d owned", x, w, how, how.shape(x.shape, w.shape), how)


def _product(name: str, x: Shared, w: Owned, product: Product, shape: tuple[int, ...], *facts: object) -> Shared:
    party, frac = x.party, x.frac + w.frac
    with party.operation(name, shapes(x.shape, w.shape), f"of {NAMES[w.owner]}", frac, *facts):
        if party.is_dealer:
            c = party.multiply(product, party.stream(1 - w.owner).words(x.shape), w.words)  # 2
            c -= party.stream(P0).words(shape)
            party.deal(c)
            return Shared.of_shape(party, shape, frac)
        if party.rank == w.owner:
            hidden = np.empty(x.shape, np.uint64)
            party.exchange([], [hidden])  # 3
            hidden += x.words
            z = party.multiply(product, hidden, w.words)  # 4
        else:
            a = party.dealt.words(x.shape)
            party.exchange([x.words - a], [])  # 3
            z = party.multiply(product, a, w.words)  # 4
        z += party.fill_dealt(party.arena.take(shape))
        return Shared(party, z, frac)
