"""max(x, 0), together with the truncation before it: one opening of full width, and 3 rounds for the comparison.

With c = x + B + r mod 2^k open as in `truncate`, k' = k - f, C = c >> f and Q = r >> f, for x <= 2^(k-2) - 2^f,

    b = C_(k'-2) xor Q_(k'-2) xor [C mod 2^(k'-2) < Q mod 2^(k'-2)]

is 1 exactly where y, x / 2^f as `truncate` rounds it, is not negative: B shifts the sign to bit k-2. So ReLU is exact
on what truncation gave.

D shares a random bit rho, T = R - (1 - c_(k-1)) W for both values of c's top bit, and rho T. The servers open
e = b xor rho, and with pub = (c >> f) - (B >> f)

    y b = e (pub - T) + (1 - 2e) (pub rho - rho T).
"""

from __future__ import annotations

import numpy as np

from strongroom.mpc.bits import Planes
from strongroom.mpc.party import P0, Party
from strongroom.mpc.protocols.below import below
from strongroom.mpc.protocols.convert import bit_plane, bits_of, hide, share_plane
from strongroom.mpc.protocols.opening import chunks, open_sum
from strongroom.mpc.protocols.truncate import Wraps, check_width, public_part, truncate
from strongroom.mpc.ring import WIDTH, Words
from strongroom.mpc.shared import Shared
from strongroom.mpc.transcript import shapes


def relu(x: Shared, bits: int | None = None, *, width: int | None = None) -> Shared:
    """max(x / 2^bits, 0), in four rounds for compare widths (width - bits) of 12 to 66.

    Args:
        x: at least -2^(width-2), at most 2^(width-2) - 2^bits.
        bits: of the fraction to drop; by default what lies beyond the settings'. Rounded as `truncate` does.
        width: of the opening; by default what the settings' bound allows.
    """
    party, settings = x.party, x.party.settings
    bits = x.frac - settings.frac if bits is None else bits
    width = settings.opening(x.frac) if width is None else width
    check_width(width, bits)
    if bits and settings.exact:
        return relu(truncate(x, bits, width=width), 0, width=width - bits)
    with party.operation("relu", shapes(x.shape), x.frac, bits, width):
        c = open_sum(party, x.words, width, offset=1 << (width - 2))
        top = bit_plane(party, c, width - 2)
        if party.is_dealer:
            share_plane(party, top)
            below(party, c, bits, width - bits - 2)
            deal_choice(party, c, hide(party, None, x.size), bits, width)
            return Shared.of_shape(party, x.shape, x.frac - bits)
        b = party.fill_dealt(party.arena.take(len(top)))
        less = below(party, c, bits, width - bits - 2)
        assert less is not None  # noqa: S101  # at a server
        b ^= less
        if party.first:
            b ^= top
        out = take_choice(party, c, hide(party, b, x.size), bits, width)
        return Shared(party, out.reshape(x.shape), x.frac - bits)


def deal_choice(party: Party, r: Words, rho: Planes, bits: int, width: int) -> None:
    """Share rho, R, rho R and, where there are wraps, m and rho m."""
    first = party.stream(P0)
    for part in chunks(len(r)):
        with party.arena.scope() as arena:
            count = part.stop - part.start
            chosen = bits_of(rho, part)
            out, other = arena.take((3, count)), arena.take((3, count))
            out[0] = chosen
            np.right_shift(r[part], np.uint64(bits), out=out[1])
            np.multiply(out[1], chosen, out=out[2])
            out -= first.fill(other)
            parts = [out]
            if width - bits < WIDTH:
                wrap = r[part] >> np.uint64(width - 1)
                for bit in (wrap, wrap & chosen):
                    wraps, theirs = Wraps(arena, count, bits, width), Wraps(arena, count, bits, width)
                    wraps.share_out(bit, first.fill(theirs.shares))
                    parts.append(wraps.shares)
            party.deal(*parts)


def take_choice(party: Party, c: Words, e: Planes, bits: int, width: int) -> Words:
    """y b out of what `deal_choice` shares, where e = b xor rho."""
    out = np.empty(len(c), np.uint64)
    for part in chunks(len(c)):
        with party.arena.scope() as arena:
            count = part.stop - part.start
            words = arena.take((3, count))
            wraps = [Wraps(arena, count, bits, width) for _ in range(2 if width - bits < WIDTH else 0)]
            party.fill_dealt(words, *(each.shares for each in wraps))
            rho, minus_t, rho_t = words
            np.negative(minus_t, out=minus_t)
            np.negative(rho_t, out=rho_t)
            if wraps:
                not_top = (c[part] >> np.uint64(width - 1)) ^ np.uint64(1)
                for target, each in zip((minus_t, rho_t), wraps, strict=True):
                    each.add_to(target, not_top)
            public = public_part(c[part], bits, width, arena.take(count))
            rho *= public
            rho += rho_t  # pub rho - rho T: what is added where e is 0, and taken away where it is 1
            if party.first:
                minus_t += public
            minus_t -= rho
            minus_t -= rho
            minus_t &= np.negative(bits_of(e, part))
            np.add(rho, minus_t, out=out[part])
    return out
