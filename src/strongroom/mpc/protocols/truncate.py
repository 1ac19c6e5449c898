"""Division by a power of two: what a product of fixed-point numbers needs.

For -2^(k-2) <= x < 2^(k-2) the servers open c = x + B + r mod 2^k with B = 2^(k-2). As x + B has no top bit, c wrapped
exactly where r has the top bit and c has not, and then

    (x >> f) = (c >> f) - (B >> f) - R + (1 - c_(k-1)) W - [c mod 2^f < r mod 2^f]

with R = r >> f and W = r_(k-1) 2^(k-f) from the dealer: there is no event of probability |x| / 2^k that ruins a value,
as there is where each server shifts its own share.

- Stochastic: leave out the last term. The result is floor((x + 2^f - 1 - (c mod 2^f)) / 2^f): unbiased rounding up or
  down, by a coin c mod 2^f that both servers see and the dealer does not.
- Exact: the floor, for two more rounds; results do not depend on masks.
"""

from __future__ import annotations

import numpy as np

from strongroom.errors import UsageError
from strongroom.mpc.arena import Arena
from strongroom.mpc.party import P0, Party
from strongroom.mpc.protocols.below import below
from strongroom.mpc.protocols.convert import plane_to_ring
from strongroom.mpc.protocols.opening import chunks, open_sum
from strongroom.mpc.ring import WIDTH, Words
from strongroom.mpc.shared import Shared
from strongroom.mpc.transcript import shapes


def truncate(x: Shared, bits: int | None = None, *, width: int | None = None, exact: bool | None = None) -> Shared:
    """Divide by 2^bits: one round, or three where it is exact.

    Args:
        x: within -2^(width-2) and 2^(width-2).
        bits: of the fraction to drop; by default what lies beyond the settings'.
        width: of the opening; by default what the settings' bound allows.
        exact: round to the floor; by default as the settings say.
    """
    party, settings = x.party, x.party.settings
    bits = x.frac - settings.frac if bits is None else bits
    width = settings.opening(x.frac) if width is None else width
    exact = settings.exact if exact is None else exact
    check_width(width, bits)
    with party.operation("truncate", shapes(x.shape), x.frac, bits, width, int(exact)):
        c = open_sum(party, x.words, width, offset=1 << (width - 2))
        out = np.empty(x.size if not party.is_dealer else 0, np.uint64)
        for part in chunks(x.size):
            if party.is_dealer:
                _deal(party, c[part], bits, width)
            else:
                _shift(party, c[part], bits, width, out[part])
        if exact and bits:
            borrow = plane_to_ring(party, below(party, c, 0, bits), x.size)
            if not party.is_dealer:
                out -= borrow
        if party.is_dealer:
            return Shared.of_shape(party, x.shape, x.frac - bits)
        return Shared(party, out.reshape(x.shape), x.frac - bits)


def check_width(width: int, bits: int) -> None:
    """UsageError unless an opening of `width` bits can drop `bits`."""
    if not 3 <= width <= WIDTH or not 0 <= bits <= width - 3:
        raise UsageError(
            f"truncation: got {bits} bits of a {width}-bit opening, wanted 3 bits to stay, of at most {WIDTH}",
            hint="fewer fractional bits or a smaller bound make the opening smaller",
        )


def public_part(c: Words, bits: int, width: int, out: Words) -> Words:
    """(c >> f) - (B >> f)."""
    np.right_shift(c, np.uint64(bits), out=out)
    out -= np.uint64(1 << (width - 2 - bits))
    return out


class Wraps:
    """Shares of W = m 2^(k-f) for a bit m of each element; only those of its 64 - k + f bits that may be 1 are sent."""

    def __init__(self, arena: Arena, count: int, bits: int, width: int) -> None:
        self._shift = np.uint64(width - bits)
        self.shares = arena.take(count, np.uint32 if width - bits >= 32 else np.uint64)

    def share_out(self, bit: Words, other: Words) -> None:
        """At the dealer: P1's shares of `bit`, where `other` are P0's."""
        np.subtract(bit.astype(self.shares.dtype), other, out=self.shares)

    def add_to(self, out: Words, where: Words) -> None:
        """Add W to `out` for the elements where `where` is 1, not 0."""
        self.shares *= where.astype(self.shares.dtype)
        out += self.shares.astype(np.uint64) << self._shift


def _deal(party: Party, r: Words, bits: int, width: int) -> None:
    with party.arena.scope() as arena:
        count, first = len(r), party.stream(P0)
        quotient = arena.take(count)
        np.right_shift(r, np.uint64(bits), out=quotient)
        quotient -= first.fill(arena.take(count))
        parts = [quotient]
        if width - bits < WIDTH:
            wraps, theirs = Wraps(arena, count, bits, width), Wraps(arena, count, bits, width)
            wraps.share_out(r >> np.uint64(width - 1), first.fill(theirs.shares))
            parts.append(wraps.shares)
        party.deal(*parts)


def _shift(party: Party, c: Words, bits: int, width: int, out: Words) -> None:
    with party.arena.scope() as arena:
        quotient = arena.take(len(c))
        if party.first:
            public_part(c, bits, width, out)
        else:
            out[:] = 0
        if width - bits < WIDTH:
            wraps = Wraps(arena, len(c), bits, width)
            party.fill_dealt(quotient, wraps.shares)
            wraps.add_to(out, (c >> np.uint64(width - 1)) ^ np.uint64(1))
        else:
            party.fill_dealt(quotient)
        out -= quotient
