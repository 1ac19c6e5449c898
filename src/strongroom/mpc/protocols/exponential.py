"""e^x out of x + r, open to the servers, where only the dealer knows r: a table of what the dealer knows, times what
the servers know.

The exponent x - lowest, k = l + t bits, is opened as c = x - lowest + r mod 2^k. With c = c_high 2^l + c_low
and likewise r, and the borrow u = [c_low < r_low],

    x - lowest = c_low - r_low + 2^l H,    H = u + ((c_high - r_high - u) mod 2^t),

so that, with S for the value of 2^l,

    e^x = e^(c_low - S) A,    A = e^(lowest + S - r_low + S H).

1. The servers open c, and compare c_low with r_low: XOR shares of u.
2. They open e = u xor rho for a random bit rho of the dealer's.
3. H is a function of c_high and e, which are public now, and of r and rho. D shares A for each of the 2^(t+1) cases,
   and each server takes its share of the one that holds.
4. Each multiplies it by round(e^(c_low - S) 2^G), which is public. A has F fractional bits, the product F + G.

With `clip`, what is below `lowest` gives 0: c has all the bits that x may have, one more comparison of the same leaves
gives the sign of x - lowest, opened as u is, and D shares A for twice as many cases, or 0.

The public factor lies between e^-S and 1. So rounding A, which is the result over that factor, puts the result off by
2^-(F+1) at most, and rounding the factor by e^S 2^-(G+1) of the result.

How A is rounded depends on r: results depend on masks in their last bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal, localcontext
from functools import lru_cache
from math import e, log2

import numpy as np

from strongroom.mpc.bits import plane_words
from strongroom.mpc.party import P0, Party
from strongroom.mpc.protocols.below import below_twice
from strongroom.mpc.protocols.convert import bit_plane, bits_of, hide, share_plane
from strongroom.mpc.protocols.opening import chunks, open_sum
from strongroom.mpc.ring import WIDTH, Words
from strongroom.mpc.shared import Shared
from strongroom.mpc.transcript import shapes

_FINE = 10  # bits of c_low that the second of two tables is for, at most
_FINE_FRAC = 20  # fractional bits of that table
_LOOKED_AT = 24  # bits of c_low that the tables are for, at most; the middle of what has them alike is 2^-21 off


@dataclass(frozen=True)
class Exponent:
    """How an exponent is cut, and how precise the factors are.

    Attributes:
        frac: fractional bits of x.
        lowest: of x, in units of its last bit.
        low, high: bits of c_low and c_high: l and t.
        left, right: fractional bits of A and of the public factor: F and G.
        width: of the opening where what is below `lowest` is to give 0; else 0.
    """

    frac: int
    lowest: int
    low: int
    high: int
    left: int
    right: int
    width: int = 0

    @classmethod
    def fit(cls, frac: int, lowest: int, *, span: int, high: int, bits: int, width: int = 0) -> Exponent:
        """With all the precision that e^x < 2^bits leaves room for, equally shared by both roundings.

        Args:
            span: S is 2^span.
        """
        total = WIDTH - 2 - bits
        right = round((total + 2**span * log2(e)) / 2)
        return cls(frac, lowest, frac + span, high, total - right, right, width)

    @property
    def cases(self) -> int:
        """How many values of A are shared."""
        return (4 if self.width else 2) << self.high

    @property
    def opening(self) -> int:
        return self.width or self.low + self.high

    def describe(self) -> tuple[int, ...]:
        return self.lowest, self.low, self.high, self.left, self.right, self.width


def exponential(x: Shared, how: Exponent) -> Shared:
    """e^x with F + G fractional bits; four rounds. `x` has `how.frac` of them and keeps its range."""
    party, count = x.party, x.size
    with party.operation("exp", shapes(x.shape), x.frac, *how.describe()):
        c = open_sum(party, x.words, how.opening, offset=-how.lowest % (1 << how.opening))
        top = bit_plane(party, c, how.opening - 1) if how.width else None
        clipped, planes = top is not None, plane_words(count)
        compare = (how.width - 1, how.low) if how.width else (how.low, 0)
        if party.is_dealer:
            if top is not None:
                share_plane(party, top)
            below_twice(party, c, 0, *compare)
            _deal(party, c, hide(party, None, 64 * planes * (1 + clipped)).reshape(-1, planes), how)
            return Shared.of_shape(party, x.shape, how.left + how.right)
        sign = None if top is None else party.fill_dealt(party.arena.take(planes))
        less = below_twice(party, c, 0, *compare)
        assert less is not None  # noqa: S101  # at a server
        if sign is not None:
            less[0] ^= sign
            if top is not None and party.first:
                less[0] ^= top
        opened = hide(party, less.reshape(-1), 64 * planes * (1 + clipped)).reshape(-1, planes)
        return Shared(party, _take(party, c, opened, how).reshape(x.shape), how.left + how.right)


def _deal(party: Party, r: Words, rho: Words, how: Exponent) -> None:
    """Share A for each of the opened sign, borrow and c_high, in this order; `rho` has the planes of the first two."""
    first, turns = party.stream(P0), 1 << how.high
    span = 2.0 ** (how.low - how.frac)
    start = float(np.ldexp(how.lowest, -how.frac)) + span
    steps = np.exp(span * np.arange(turns + 1)) * 2.0**how.left
    for part in chunks(len(r)):
        with party.arena.scope() as arena:
            count = part.stop - part.start
            low, high = arena.take(count), arena.take(count)
            np.bitwise_and(r[part], np.uint64((1 << how.low) - 1), out=low)
            np.right_shift(r[part], np.uint64(how.low), out=high)
            base = np.multiply(low, -(2.0**-how.frac), out=arena.take(count, np.float64))
            base += start
            np.exp(base, out=base)
            powers = arena.take((turns + 1, count))
            scaled = arena.take(count, np.float64)
            for power, step in zip(powers, steps, strict=True):
                np.rint(np.multiply(base, step, out=scaled), out=scaled)
                power.view(np.int64)[:] = scaled
            out = arena.take((how.cases, count))
            values = out[: 2 * turns].reshape(2, turns, count)
            for borrow in range(2):
                for j in range(turns):
                    if how.high:
                        row = np.uint64(j - borrow + turns) - high
                        row &= np.uint64(turns - 1)
                        row += np.uint64(borrow)
                        _pick(powers, row, values[borrow, j])
                    else:
                        values[borrow, j] = powers[borrow]
            # What is opened is the borrow xor rho: where rho is 1, the cases change places.
            change = values[0] ^ values[1]
            change &= np.negative(bits_of(rho[-1], part))
            values ^= change
            if how.width:
                hidden = np.negative(bits_of(rho[0], part))  # where opened 0 means below
                half = how.cases // 2
                np.bitwise_and(out[:half], hidden, out=out[half:])
                out[:half] &= ~hidden
            out -= first.fill(arena.take(out.shape))
            party.deal(out)


def _take(party: Party, c: Words, opened: Words, how: Exponent) -> Words:
    """A server's share: that of the case that holds, times the public factor."""
    out = np.empty(len(c), np.uint64)
    coarse, fine = _factors(how.frac, how.low)
    ignored = np.uint64(max(0, how.low - _LOOKED_AT))
    split, drop = np.uint64(min(_FINE, how.low)), np.uint64(WIDTH - 1 - how.right)
    for part in chunks(len(c)):
        with party.arena.scope() as arena:
            count = part.stop - part.start
            cases = party.fill_dealt(arena.take((how.cases, count)))
            at = bits_of(opened[0], part)
            for plane in opened[1:]:
                at <<= np.uint64(1)
                at |= bits_of(plane, part)
            low = c[part]
            if how.high:
                at <<= np.uint64(how.high)
                at |= (low >> np.uint64(how.low)) & np.uint64((1 << how.high) - 1)
            share = _pick(cases, at, out[part])
            low = (low & np.uint64((1 << how.low) - 1)) >> ignored
            factor = coarse.take((low >> split).view(np.int64))
            factor *= fine.take((low & np.uint64(len(fine) - 1)).view(np.int64))
            factor += np.uint64(1) << (drop - np.uint64(1))
            factor >>= drop
            share *= factor
    return out


def _pick(rows: Words, at: Words, out: Words) -> Words:
    """Of each column the element in row `at`, which is overwritten; ten times faster than `np.choose`."""
    at *= np.uint64(rows.shape[1])
    at += np.arange(rows.shape[1], dtype=np.uint64)
    return rows.reshape(-1).take(at.view(np.int64), out=out, mode="clip")


@lru_cache
def _factors(frac: int, low: int) -> tuple[Words, Words]:
    """e^(c_low - S) for the upper bits of c_low, and e^c_low for its lowest; the product of both fills a word.

    In decimal arithmetic, which rounds the same everywhere: one unit of difference between the servers would make the
    result a random number.
    """
    with localcontext() as context:
        context.prec = 40
        unit = Decimal(2) ** -frac

        def table(count: int, start: int, step: int, bits: int) -> Words:
            ratio, value, values = (unit * step).exp(), (unit * start).exp() * 2**bits, []
            for _ in range(count):
                values.append(int(value.to_integral_value()))
                value *= ratio
            return np.array(values, np.uint64)

        split, ignored = min(_FINE, low), max(0, low - _LOOKED_AT)
        step = 1 << (split + ignored)
        coarse = table((1 << low) // step, -(1 << low), step, WIDTH - 1 - _FINE_FRAC)
        return coarse, table(1 << split, (1 << ignored) // 2, 1 << ignored, _FINE_FRAC)
