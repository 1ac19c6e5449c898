"""How values become shares, and how they stop being secret."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from math import prod

import numpy as np
from numpy.typing import ArrayLike, NDArray

from strongroom.errors import UsageError
from strongroom.mpc.party import P0, P1, SERVERS, Party
from strongroom.mpc.peer import NAMES
from strongroom.mpc.ring import decode, encode
from strongroom.mpc.shared import Shared
from strongroom.mpc.transcript import shapes


def share(party: Party, values: Callable[[], ArrayLike], *, source: int, shape: Sequence[int]) -> Shared:
    """Share what one server has; no message. `values` is called at the source alone.

    The other server's share is drawn from the stream of the two, which the dealer does not know.

    Raises:
        UsageError: the values are of another shape, not finite, or beyond the settings' bound.
    """
    if source not in SERVERS:
        raise UsageError(f"source: got {source}, wanted 0 or 1", hint="a client sends its shares to the servers")
    frac, bound = party.settings.frac, party.settings.bound
    with party.operation("share", shapes(shape), f"of {NAMES[source]}"):
        if party.is_dealer:
            return Shared.of_shape(party, shape, frac)
        if party.rank != source:
            return Shared(party, party.stream(source).words(tuple(shape)), frac)
        words = encode(values(), frac, bound)
        if words.shape != tuple(shape):
            raise UsageError(f"values: got shape {words.shape}, wanted {tuple(shape)}")
        return Shared(party, words - party.stream(P1 if source == P0 else P0).words(tuple(shape)), frac)


def reveal(x: Shared, *, to: Collection[int]) -> NDArray[np.float64] | None:
    """Open a value to the named servers, and to nobody else; the only opening of a secret.

    No share leaves before the other server's transcript digest for this very reveal has come.

    Returns:
        the values at the servers named; nothing at another party.
    """
    party, receivers = x.party, sorted(set(to))
    if not receivers or not set(receivers) <= set(SERVERS):
        raise UsageError(f"to: got {receivers}, wanted some of 0 and 1")
    with party.operation("reveal", shapes(x.shape), x.frac, "to", *(NAMES[rank] for rank in receivers)):
        if party.is_dealer:
            return None
        nothing = np.empty(0, np.uint64)
        party.exchange([nothing], [np.empty(0, np.uint64)])
        gives, gets = 1 - party.rank in receivers, party.rank in receivers
        theirs = np.empty(prod(x.shape) if gets else 0, np.uint64)
        party.exchange([np.ascontiguousarray(x.words) if gives else nothing], [theirs])
        return decode(theirs.reshape(x.shape) + x.words, x.frac) if gets else None
