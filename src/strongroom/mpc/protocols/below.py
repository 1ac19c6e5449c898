"""Is a public number below one that only the dealer knows? Leaves that are tables, under a wide tree.

Both numbers are cut into digits of 4 bits, the most significant first. For each digit the servers get shares of g, "the
public digit is smaller", and p, "the digits are equal"; (g, p) o (g', p') = (g xor p g', p p') joins them.

- Leaf, no round: D shares the table lt[v] = 1{v < digit of r}; 1{v = digit} is lt[v-1] xor lt[v]. Each server looks its
  shares up at the public digit, with logic on planes: a table of 16 folds to 1 in 4 steps.
- Node of radix t, one round: open d_v = v xor a_v for its inputs v, and evaluate from D's shares of the products of the
  masks a. With T[S] a share of prod_{v in S} a_v, T_hi xor (d_v & T_lo) folds the half with v onto the half without.
- The least significant digit and node need no p.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from strongroom.mpc.bits import Planes, plane_words, to_planes
from strongroom.mpc.party import P0, P1, Party
from strongroom.mpc.protocols.opening import CHUNK, chunks
from strongroom.mpc.ring import Words

_ONES = np.uint64((1 << 64) - 1)
_DIGIT = 4
_ROWS = 1 << _DIGIT
RADIX = 4


def below(party: Party, words: Words, low: int, count: int) -> Planes | None:
    """XOR shares of [c' < r'] for the `count` bits of c and r from bit `low` on.

    Args:
        words: c at the servers, r at the dealer, flat.

    Returns:
        one plane in the arena; nothing at the dealer.
    """
    both = below_twice(party, words, low, count, 0)
    return None if both is None else both[0]


def below_twice(party: Party, words: Words, low: int, count: int, part: int) -> Planes | None:
    """As `below`, for `count` bits and then, unless `part` is 0, for the lowest `part` of them, in the same rounds.

    Both take the same leaves, and masks of their own in the tree.

    Returns:
        two planes in the arena, or one.
    """
    cut = -(-part // _DIGIT)
    digits = cut + -(-(count - part) // _DIGIT)
    planes, trees = plane_words(len(words)), 2 if part else 1
    if party.meter is not None:
        party.meter.compared(trees * len(words))
    if party.is_dealer:
        for piece in chunks(len(words)):
            _deal_leaves(party, words[piece], low, count, part)
        inputs = digits
        while inputs > 1:
            level = _level(inputs)
            _deal_nodes(party, level, trees * planes)
            inputs = level.nodes
        return None
    g: Planes = party.arena.take((digits, trees, planes))
    p: Planes = party.arena.take((digits, trees, planes))
    for piece in chunks(len(words)):
        here = slice(piece.start // 64, plane_words(piece.stop))
        _leaves(party, words[piece], low, count, part, g[:, 0, here], p[:, 0, here])
    if part:
        # In the second tree the digits above the part are equal.
        above = digits - cut
        g[:above, 1], p[:above, 1] = 0, _ONES if party.first else 0
        g[above:, 1], p[above:, 1] = g[above:, 0], p[above:, 0]
    g, p = g.reshape(digits, -1), p.reshape(digits, -1)
    while len(g) > 1:
        g, p = _nodes(party, _level(len(g)), g, p)
    result: Planes = g[0].reshape(trees, planes)
    return result


def _digits(party: Party, words: Words, low: int, count: int, part: int) -> Planes:
    """The bits from `low` on as (digits, 4, planes), the most significant digit first, in each the lowest bit first.

    The lowest `part` bits have digits of their own.
    """
    cut = -(-part // _DIGIT) * _DIGIT
    digits = (cut + count - part + _DIGIT - 1) // _DIGIT
    out: Planes = party.arena.take((digits * _DIGIT, plane_words(len(words))))
    out[part:cut], out[cut + count - part :] = 0, 0
    with party.arena.scope():
        shifted = party.arena.take(len(words))
        if part:
            np.right_shift(words, np.uint64(low), out=shifted)
            to_planes(shifted, part, party.arena, out[:part])
        np.right_shift(words, np.uint64(low + part), out=shifted)
        to_planes(shifted, count - part, party.arena, out[cut : cut + count - part])
    return out.reshape(digits, _DIGIT, -1)[::-1]


def _leaves(party: Party, c: Words, low: int, count: int, part: int, g: Planes, p: Planes) -> None:
    with party.arena.scope() as arena:
        digits = len(g)
        bits = _digits(party, c, low, count, part)
        tables = arena.take((2, _ROWS, digits, bits.shape[-1]))
        less, same = tables
        party.fill_dealt(less[:-1])
        less[-1] = 0
        np.bitwise_xor(less[:-1], less[1:], out=same[1:])
        np.bitwise_xor(less[0], _ONES if party.first else np.uint64(0), out=same[0])
        for bit in reversed(range(_DIGIT)):
            half = 1 << bit
            down, up = tables[:, :half], tables[:, half : 2 * half]
            up ^= down
            up &= bits[:, bit]
            down ^= up
        g[:], p[:] = less[0], same[0]


def _deal_leaves(party: Party, r: Words, low: int, count: int, part: int) -> None:
    with party.arena.scope() as arena:
        bits = _digits(party, r, low, count, part)
        digits, size = len(bits), bits.shape[-1]
        less = arena.take((_ROWS - 1, digits, size))
        b0, b1, b2, b3 = (bits[:, i] for i in range(_DIGIT))
        # Of each half of the digit: 1{v < half} for v = 0, 1, 2, and of the upper half 1{v = half} for v = 0 to 3.
        lower = (b1 | b0, b1, b1 & b0)
        upper = (b3 | b2, b3, b3 & b2)
        equal = (~upper[0], upper[0] ^ upper[1], upper[1] ^ upper[2], upper[2])
        for u in range(4):
            for v in range(4):
                if v < 3:
                    np.bitwise_and(equal[u], lower[v], out=less[4 * u + v])
                    if u < 3:
                        less[4 * u + v] ^= upper[u]
                elif u < 3:
                    less[4 * u + v] = upper[u]
        less ^= party.stream(P0).fill(arena.take(less.shape))
        party.deal(less)


@dataclass(frozen=True, eq=False)
class _Level:
    """Where the shares of a level's mask products lie: planes of `nodes` nodes of one radix, flat.

    Rows of planes, one plane for each node: the products of sets of p_1 .. p_(t-1), where bit v-1 of the row's number
    says whether p_v is in the set, so that row 0 is the constant 1; then for j = 2 .. t the products of sets of
    p_1 .. p_(j-1) and g_j; then those of the first rows and p_t, for all nodes but the last.

    Attributes:
        pad: inputs to add before the most significant one.
        singles: planes that hold a mask itself, in the order of what is opened: p_1 .. p_(t-1), g_2 .. g_t, p_t.
        others: planes that hold products of several masks.
    """

    nodes: int
    radix: int
    pad: int
    planes: int
    singles: NDArray[np.intp]
    others: NDArray[np.intp]

    def views(self, flat: Planes) -> tuple[Planes, list[Planes], Planes]:
        """Products of p's; of p's times g_j, by j; of p's times p_t."""
        half, nodes, size = 1 << (self.radix - 1), self.nodes, flat.shape[-1]
        parts, at = [], half * nodes
        for j in range(2, self.radix + 1):
            rows = 1 << (j - 1)
            parts.append(flat[at : at + rows * nodes].reshape(rows, nodes, size))
            at += rows * nodes
        return flat[: half * nodes].reshape(half, nodes, size), parts, flat[at:].reshape(half, nodes - 1, size)

    def split(self, opened: Planes) -> tuple[Planes, Planes, Planes]:
        """What is opened, as p_1 .. p_(t-1) and g_2 .. g_t, each (t-1, nodes, planes), and p_t (nodes-1, planes)."""
        some = (self.radix - 1) * self.nodes
        shape = (self.radix - 1, self.nodes, opened.shape[-1])
        return opened[:some].reshape(shape), opened[some : 2 * some].reshape(shape), opened[2 * some :]


@lru_cache
def _level(inputs: int) -> _Level:
    nodes = -(-inputs // RADIX)
    radix = -(-inputs // nodes)
    half = 1 << (radix - 1)
    planes = half * nodes + (2 * half - 2) * nodes + half * (nodes - 1)
    one_each = np.arange(nodes)
    singles = [(1 << v) * nodes + one_each for v in range(radix - 1)]
    at = half * nodes
    for j in range(2, radix + 1):
        singles.append(at + one_each)
        at += (1 << (j - 1)) * nodes
    singles.append(at + one_each[:-1])
    found = np.concatenate(singles)
    others = np.setdiff1d(np.arange(nodes, planes), found)
    return _Level(nodes, radix, nodes * radix - inputs, planes, found, others)


def _deal_nodes(party: Party, level: _Level, size: int) -> None:
    with party.arena.scope() as arena:
        shares, true = arena.take((level.planes, size)), arena.take((level.planes, size))
        party.stream(P0).fill(shares[level.nodes :])
        masks = party.stream(P1).fill(arena.take((len(level.singles), size)))
        masks ^= shares[level.singles]
        p, g, last = level.split(masks)
        products, times_g, times_last = level.views(true)
        products[0] = _ONES
        for v in range(level.radix - 1):
            rows = 1 << v
            np.bitwise_and(products[:rows], p[v], out=products[rows : 2 * rows])
        for j, block in enumerate(times_g):
            np.bitwise_and(products[: len(block)], g[j], out=block)
        np.bitwise_and(products[:, :-1], last, out=times_last)
        out = true[level.others]
        out ^= shares[level.others]
        party.deal(out)


def _take_nodes(party: Party, level: _Level, size: int) -> Planes:
    """A server's shares of the products, into the arena."""
    flat: Planes = party.arena.take((level.planes, size))
    flat[: level.nodes] = _ONES if party.first else 0
    if party.first:
        party.dealt.fill(flat[level.nodes :])
    else:
        with party.arena.scope() as arena:
            flat[level.singles] = party.dealt.fill(arena.take((len(level.singles), size)))
            others = arena.take((len(level.others), size))
            party.take(others)
            flat[level.others] = others
    return flat


def _nodes(party: Party, level: _Level, g: Planes, p: Planes) -> tuple[Planes, Planes]:
    size, nodes, radix = g.shape[-1], level.nodes, level.radix
    if level.pad:
        # In front of the most significant digit stands one in which both numbers are equal.
        shape = (level.pad, size)
        g = np.concatenate([np.zeros(shape, np.uint64), g])
        p = np.concatenate([np.full(shape, _ONES if party.first else 0, np.uint64), p])
    g, p = (each.reshape(nodes, radix, size).swapaxes(0, 1) for each in (g, p))
    above, both = party.arena.take((nodes, size)), party.arena.take((nodes, size))
    with party.arena.scope() as arena:
        flat = _take_nodes(party, level, size)
        opened, theirs = arena.take((len(level.singles), size)), arena.take((len(level.singles), size))
        d_p, d_g, d_last = level.split(opened)
        d_p[:], d_g[:], d_last[:] = p[:-1], g[1:], p[-1, :-1]
        opened ^= flat[level.singles]
        party.exchange([opened], [theirs])
        opened ^= theirs
        products, times_g, times_last = level.views(flat)
        # p_1 ... p_t of all nodes but the last; before g's evaluation, which overwrites nothing of it.
        if nodes > 1:
            times_last ^= d_last & products[:, :-1]
            fold(times_last, d_p[:, :-1], radix - 1)
            both[:-1] = times_last[0]
        both[-1] = 0
        # g_1 xor p_1 (g_2 xor p_2 (g_3 xor ...)), from the inside.
        for j, block in enumerate(times_g):
            block ^= d_g[j] & products[: len(block)]
        inner = times_g[-1]
        for j in reversed(range(radix - 1)):
            half = 1 << j
            inner = fold(inner, d_p[j : j + 1], 1)
            if j:
                inner[:half] ^= times_g[j - 1]
        np.bitwise_xor(g[0], inner[0], out=above)
    return above, both


def fold(table: Planes, opened: Planes, variables: int) -> Planes:
    """Fold a table over its last variables, in place: T_hi xor (d & T_lo), the last variable first."""
    for v in reversed(range(variables)):
        half = len(table) // 2
        upper, lower = table[half:], table[:half]
        np.bitwise_and(lower, opened[v], out=lower)
        lower ^= upper
        table = lower
    return table


assert CHUNK % 64 == 0  # noqa: S101  # a chunk's planes are whole words
