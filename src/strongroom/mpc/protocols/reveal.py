"""How values become shares, and how they stop being secret."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from math import prod

import numpy as np
from numpy.typing import ArrayLike, NDArray

from strongroom.errors import UsageError
from strongroom.mpc.party import DEALER, P0, P1, SERVERS, Party
from strongroom.mpc.peer import NAMES
from strongroom.mpc.ring import Words, decode
from strongroom.mpc.shared import Shared
from strongroom.mpc.transcript import shapes

EVERYBODY = (P0, P1, DEALER)
Permit = Callable[[], None]


def share(party: Party, values: Callable[[], ArrayLike], *, source: int, shape: Sequence[int]) -> Shared:
    """Share what one server has; no message. `values` is called at the source alone.

    The other server's share is drawn from the stream of the two, which the dealer does not know.

    Raises:
        UsageError: the values are of another shape, not finite, or beyond the settings' bound.
    """
    if source not in SERVERS:
        raise UsageError(f"source: got {source}, wanted 0 or 1", hint="a client sends its shares to the servers")
    frac = party.settings.frac
    with party.operation("share", shapes(shape), f"of {NAMES[source]}"):
        if party.is_dealer:
            return Shared.of_shape(party, shape, frac)
        if party.rank != source:
            return Shared(party, party.stream(source).words(tuple(shape)), frac)
        words = party.given(values, shape)
        return Shared(party, words - party.stream(P1 if source == P0 else P0).words(tuple(shape)), frac)


def reveal(
    x: Shared, *, to: Collection[int], facts: Sequence[object] = (), permit: Permit | None = None
) -> NDArray[np.float64] | None:
    """Open a value to the parties named, and to nobody else.

    No share leaves before this server's `permit` has returned, and the other server's transcript digest for this very
    reveal has come, which says that its own has.

    Args:
        to: one server or both; or all three parties, of which the dealer waits for it.
        facts: what else all parties must say of it.
        permit: raises if it may not be; called at the servers.

    Returns:
        the values at the parties named; nothing at another.
    """
    party, receivers = x.party, sorted(set(to))
    if not receivers or not (set(receivers) <= set(SERVERS) or receivers == list(EVERYBODY)):
        raise UsageError(f"to: got {receivers}, wanted some of 0 and 1, or all three")
    names = (NAMES[rank] for rank in receivers)
    with party.operation("reveal", shapes(x.shape), x.frac, "to", *names, *facts):
        nothing, everybody = np.empty(0, np.uint64), DEALER in receivers
        if party.is_dealer:
            return _told(x) if everybody else None
        _agree(party, permit)
        own = np.ascontiguousarray(x.words).reshape(-1)
        gives, gets = 1 - party.rank in receivers, party.rank in receivers
        theirs = np.empty(prod(x.shape) if gets else 0, np.uint64)
        party.exchange([own if gives else nothing], [theirs])
        if everybody:
            party.peers[DEALER].exchange([own], [nothing])
        return decode(theirs + own, x.frac).reshape(x.shape) if gets else None


def reveal_outside(x: Shared, *, facts: Sequence[object] = (), permit: Permit | None = None) -> Words | None:
    """Open a value to somebody who is no party: a server's share for it, flat, to be sent with the transcript's digest.

    The shares are fresh ones: a zero that the servers share is added. Permitted and agreed on as `reveal` is.
    """
    party = x.party
    with party.operation("reveal", shapes(x.shape), x.frac, "outside", *facts):
        if party.is_dealer:
            return None
        _agree(party, permit)
        own, zero = x.words.reshape(-1), party.stream(1 - party.rank).words(x.size)
        return own + zero if party.first else own - zero


def _agree(party: Party, permit: Permit | None) -> None:
    """Return when both servers permit the reveal under way."""
    if permit is not None:
        permit()
    party.exchange([np.empty(0, np.uint64)], [np.empty(0, np.uint64)])


def _told(x: Shared) -> NDArray[np.float64]:
    """At the dealer, what both servers say that a value is."""
    total = np.zeros(x.size, np.uint64)
    for server in (P1, P0):
        part = np.empty(x.size, np.uint64)
        x.party.peers[server].exchange([np.empty(0, np.uint64)], [part])
        total += part
    return decode(total, x.frac).reshape(x.shape)
