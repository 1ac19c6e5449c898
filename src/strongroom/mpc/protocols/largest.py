"""The largest of a few values in five rounds, together with the truncation before it and a ReLU after it.

A tournament takes four rounds for each halving, and one for the truncation. Here all pairs are compared at once:

1. The servers open c_i = x_i + B + r_i mod 2^k for each of the m values, as `relu` does. With C = c >> f, R = r >> f
   and y as `truncate` rounds x, C_i - C_j and R_i - R_j mod 2^(k-f) are an opening and a mask of y_i - y_j; so are
   C_i - (B >> f) and R_i of y_i - 0. No pair is opened by itself.
2. Each pair is compared: XOR shares of [y_i < y_j]. Two rounds.
3. y_i is the largest if y_i >= y_j for all j after it, y_i > y_j for all j before it and, with `rectify`, y_i >= 0.
   That is the product of at most 4 bits: a node as in `below`, one round. Of several equal ones the first is chosen.
4. At most one of the products is 1. Each chooses its y_i as the bit of a ReLU does, in one round; these are summed up.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np

from strongroom.mpc.bits import Planes, plane_words
from strongroom.mpc.party import P0, P1, Party
from strongroom.mpc.protocols.below import below, fold
from strongroom.mpc.protocols.convert import bit_plane, hide, share_plane
from strongroom.mpc.protocols.opening import keep, open_sum
from strongroom.mpc.protocols.relu import deal_choice, take_choice
from strongroom.mpc.protocols.truncate import check_width, truncate
from strongroom.mpc.ring import Words
from strongroom.mpc.shared import Shared
from strongroom.mpc.transcript import shapes

MOST = 4  # values at once: of m values m (m - 1) / 2 pairs are compared, where a tournament compares m - 1
_ONES = np.uint64((1 << 64) - 1)


def largest(x: Shared, bits: int = 0, *, rectify: bool = False, width: int | None = None) -> Shared:
    """max(x[0], x[1], ...) / 2^bits along the first axis, or the larger of that and 0; five rounds, or six if exact.

    Args:
        x: at most four values, each at least -2^(width-2), at most 2^(width-2) - 2^bits.
        bits: of the fraction to drop. Rounded as `truncate` does.
        rectify: the result is at least 0.
        width: of the opening; by default what the settings' bound allows.
    """
    party, settings = x.party, x.party.settings
    width = settings.opening(x.frac) if width is None else width
    check_width(width, bits)
    if bits and settings.exact:
        return largest(truncate(x, bits, width=width), rectify=rectify, width=width - bits)
    m, shape = len(x.words), x.shape[1:]
    count, left = x.size // m, width - bits
    planes = plane_words(count)
    pairs: list[tuple[int, int | None]] = [*combinations(range(m), 2)]
    if rectify:
        pairs += [(i, None) for i in range(m)]
    with party.operation("largest", shapes(x.shape), x.frac, bits, width, int(rectify)):
        # Padded, so that the bits of every value and pair are whole planes.
        words = party.arena.take((m, 64 * planes))
        if not party.is_dealer:
            words[:, :count], words[:, count:] = x.words.reshape(m, count), 0
        c = open_sum(party, words, width, offset=1 << (width - 2)).reshape(words.shape)
        apart = _differences(party, c, pairs, bits, left)
        top = bit_plane(party, apart, left - 1)
        if party.is_dealer:
            share_plane(party, top)
            below(party, apart, 0, left - 1)
            _deal_product(party, m - 1 + rectify, m * planes)
            deal_choice(party, c.reshape(-1), hide(party, None, c.size), bits, width)
            return Shared.of_shape(party, shape, x.frac - bits)
        smaller = party.fill_dealt(party.arena.take(len(top)))
        less = below(party, apart, 0, left - 1)
        assert less is not None  # noqa: S101  # at a server
        smaller ^= less
        if party.first:
            smaller ^= top
        first = _product(party, _reasons(party, smaller.reshape(len(pairs), planes), pairs, m))
        chosen = take_choice(party, c.reshape(-1), hide(party, first.reshape(-1), c.size), bits, width)
        return Shared(party, chosen.reshape(words.shape).sum(0)[:count].reshape(shape), x.frac - bits)


def _differences(party: Party, c: Words, pairs: list[tuple[int, int | None]], bits: int, left: int) -> Words:
    """Of each pair, C_i - C_j at the servers and R_i - R_j at the dealer, flat."""
    out = party.arena.take((len(pairs), c.shape[1]))
    with party.arena.scope() as arena:
        quotients = np.right_shift(c, np.uint64(bits), out=arena.take(c.shape))
        zero = np.uint64(0 if party.is_dealer else 1 << (left - 2))  # 0 needs no mask
        for (i, j), difference in zip(pairs, out, strict=True):
            np.subtract(quotients[i], zero if j is None else quotients[j], out=difference)
    keep(out, left)
    return out.reshape(-1)


def _reasons(party: Party, smaller: Planes, pairs: list[tuple[int, int | None]], m: int) -> Planes:
    """Shares of the bits whose product says that a value is the largest: (reasons, values, planes)."""
    at_least = smaller ^ (_ONES if party.first else np.uint64(0))
    reasons: list[list[Planes]] = [[] for _ in range(m)]
    for (i, j), less, not_less in zip(pairs, smaller, at_least, strict=True):
        reasons[i].append(not_less)
        if j is not None:
            reasons[j].append(less)
    return np.stack([np.stack(each) for each in reasons], 1)


def _deal_product(party: Party, count: int, size: int) -> None:
    """Share the products of the masks of `count` bits: row i for the set of those whose bit is 1 in i."""
    with party.arena.scope() as arena:
        shares, true = arena.take((1 << count, size)), arena.take((1 << count, size))
        party.stream(P0).fill(shares[1:])
        masks = party.stream(P1).fill(arena.take((count, size)))
        singles, others = _rows(count)
        masks ^= shares[singles]
        true[0] = _ONES
        for v in range(count):
            np.bitwise_and(true[: 1 << v], masks[v], out=true[1 << v : 2 << v])
        true ^= shares
        party.deal(true[others])


def _product(party: Party, factors: Planes) -> Planes:
    """Shares of the product of all factors; one round."""
    count, shape = len(factors), factors.shape[1:]
    size = int(np.prod(shape))
    singles, others = _rows(count)
    opened: Planes = party.arena.take((count, size))
    table: Planes = party.arena.take((1 << count, size))
    opened[:] = factors.reshape(count, size)
    table[0] = _ONES if party.first else 0
    if party.first:
        party.dealt.fill(table[1:])
    else:
        table[singles] = party.dealt.fill(party.arena.take((count, size)))
        rest = party.arena.take((len(others), size))
        party.take(rest)
        table[others] = rest
    opened ^= table[singles]
    theirs = party.arena.take((count, size))
    party.exchange([opened], [theirs])
    opened ^= theirs
    result: Planes = fold(table, opened, count)[0].reshape(shape)
    return result


def _rows(count: int) -> tuple[list[int], list[int]]:
    """The rows of single masks, and those of products of several."""
    singles = [1 << v for v in range(count)]
    return singles, [row for row in range(1, 1 << count) if row not in singles]
