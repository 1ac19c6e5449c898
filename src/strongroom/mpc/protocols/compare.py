"""Signs, comparisons, choices and maxima."""

from __future__ import annotations

import numpy as np

from strongroom.errors import UsageError
from strongroom.mpc.protocols.below import below
from strongroom.mpc.protocols.convert import bit_plane, plane_to_ring, share_plane
from strongroom.mpc.protocols.largest import MOST, largest
from strongroom.mpc.protocols.linear import multiply
from strongroom.mpc.protocols.opening import open_sum
from strongroom.mpc.protocols.relu import relu
from strongroom.mpc.protocols.truncate import truncate
from strongroom.mpc.shared import Shared, concatenate
from strongroom.mpc.transcript import shapes

_INDEX = 30  # bits of an index
_FEW = 1 << 16  # values: beyond that, fewer comparisons save more than fewer rounds


def is_negative(x: Shared, *, width: int | None = None) -> Shared:
    """1 where x < 0, else 0, without fractional bits; four rounds.

    With c = x + r mod 2^k open, the sign is c_(k-1) xor r_(k-1) xor [c mod 2^(k-1) < r mod 2^(k-1)].

    Args:
        x: within -2^(width-1) and 2^(width-1).
        width: of the opening; by default what the difference of two values within the settings' bound takes.
    """
    party = x.party
    width = party.settings.opening(x.frac) if width is None else width
    if not 3 <= width <= 64:
        raise UsageError(f"comparison: got a width of {width} bits, wanted 3 to 64")
    with party.operation("is negative", shapes(x.shape), x.frac, width):
        c = open_sum(party, x.words, width)
        top = bit_plane(party, c, width - 1)
        if party.is_dealer:
            share_plane(party, top)
            below(party, c, 0, width - 1)
            plane_to_ring(party, None, x.size)
            return Shared.of_shape(party, x.shape, 0)
        sign = party.fill_dealt(party.arena.take(len(top)))
        less = below(party, c, 0, width - 1)
        assert less is not None  # noqa: S101  # at a server
        sign ^= less
        if party.first:
            sign ^= top
        return Shared(party, plane_to_ring(party, sign, x.size).reshape(x.shape), 0)


def less(x: Shared, y: Shared) -> Shared:
    """1 where x < y, else 0, without fractional bits."""
    return is_negative(x - y)


def maximum(x: Shared, y: Shared) -> Shared:
    """The larger of each pair: y + max(x - y, 0)."""
    return y + relu(x - y, 0, width=x.party.settings.opening(x.frac) + 1)


def amax(x: Shared, bits: int = 0, *, rectify: bool = False) -> Shared:
    """The largest along the last axis, over 2^bits; with `rectify`, the larger of that and 0.

    Up to four at once are compared pair by pair, in five rounds, where there are few values; many are left to a
    tournament, four rounds for each halving, which compares less.
    """
    if not x.shape or not x.shape[-1]:
        raise UsageError(f"max: got shape {x.shape}, wanted a last axis of at least one element")
    order = len(x.shape) - 1, *range(len(x.shape) - 1)
    x = x.transpose(*order)  # what is compared lies together in memory
    while len(x.words) > 1:
        count, few = len(x.words), x.size <= _FEW
        if few and count <= MOST and (count > 2 or bits or rectify):
            return largest(x, bits, rectify=rectify)
        if bits:
            x, bits = truncate(x, bits), 0
        size = MOST if few and count > 2 else 2
        part = count // size
        groups = x[: size * part].reshape(size, part, *x.shape[1:])
        best = largest(groups) if size > 2 else maximum(groups[0], groups[1])
        x = concatenate([best, x[size * part :]], axis=0) if count % size else best
    return relu(x[0], bits) if rectify else truncate(x[0], bits) if bits else x[0]


def argmax(x: Shared) -> Shared:
    """Where the last axis is largest: an index without fractional bits, of several equal ones the first."""
    if not x.shape or not x.shape[-1]:
        raise UsageError(f"argmax: got shape {x.shape}, wanted a last axis of at least one element")
    # Integers are no values: the bound does not hold for them.
    counted = Shared.public(x.party, np.ldexp(np.arange(x.shape[-1]), -_INDEX), _INDEX)
    place = counted.shifted(0, 0).broadcast(x.shape)
    while x.shape[-1] > 1:
        pairs = x.shape[-1] // 2
        later = less(x[..., 0 : 2 * pairs : 2], x[..., 1 : 2 * pairs : 2])
        x, place = (_winners(each, later, pairs) for each in (x, place))
    return place[..., 0]


def _winners(values: Shared, later: Shared, pairs: int) -> Shared:
    """Of each pair of neighbours the later one where `later` is 1; what has no neighbour stays."""
    first, second = values[..., 0 : 2 * pairs : 2], values[..., 1 : 2 * pairs : 2]
    best = first + multiply(later, second - first)
    return concatenate([best, values[..., 2 * pairs :]]) if values.shape[-1] % 2 else best
