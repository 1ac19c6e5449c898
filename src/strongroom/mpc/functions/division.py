"""1 / x and x^(-1/2): scale x to [1/2, 1) by its leading bit, then a quadratic iteration, then scale back."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import ceil, log2

import numpy as np

from strongroom.errors import UsageError
from strongroom.mpc.functions.fixed import drop, inner_frac, polynomial, product, raised, require
from strongroom.mpc.party import Party
from strongroom.mpc.protocols.compare import is_negative
from strongroom.mpc.protocols.linear import multiply
from strongroom.mpc.ring import WIDTH
from strongroom.mpc.shared import Shared, concatenate

# Of ((t + 3) / 4)^(-1/2) on [-1, 1], for the least relative error: 4.8e-04, of which Newton's step leaves 3e-07.
_ROOT = (1.15415256, -0.192059556, 0.0523760083, -0.01494802)
_STEPS = 3  # a first guess that is off by 1/16 ends at 16^-8


def reciprocal(x: Shared, *, low: int = -8, high: int | None = None, frac: int | None = None) -> Shared:
    """1 / x for 2^low <= x < 2^high, with an error of at most 2^-frac + 1e-6 / x; 16 rounds.

    Args:
        low, high: of x; by default -8 and the settings' bound. Each power between them costs a comparison.
        frac: of the result; by default the settings'.
    """
    result, inner = x.party.settings.frac if frac is None else frac, inner_frac(x.party)
    powers, reached = _leading(x, low, high)
    scale = _chosen([2.0 ** -(j + 1) for j in powers], reached, x, inner)
    z = drop(multiply(x, scale), inner)
    return drop(multiply(_inverse(z), scale), result, bits=1 - low)


def rsqrt(x: Shared, *, low: int = -8, high: int | None = None, frac: int | None = None) -> Shared:
    """x^(-1/2) for 2^low <= x < 2^high, with an error of at most 2^-frac + 2e-6 x^(-1/2); 19 rounds.

    Args:
        low, high, frac: as of `reciprocal`.
    """
    result, inner = x.party.settings.frac if frac is None else frac, inner_frac(x.party)
    powers, reached = _leading(x, low, high, least=root_room(x.party))
    z = drop(multiply(x, _chosen([2.0 ** -(j + 1) for j in powers], reached, x, inner)), inner)
    y = polynomial(z.shifted(2, inner) - 3.0, _ROOT)
    half = product(z, product(y, y, inner, bits=2), inner, bits=2).shifted(0, inner + 1)
    y = drop(multiply(y, -half + 1.5), inner, bits=2)  # Newton's step, y (3 - z y^2) / 2
    scale = _chosen([2.0 ** (-(j + 1) / 2) for j in powers], reached, x, inner)
    return drop(multiply(y, scale), result, bits=1 - low // 2)


def root_room(party: Party) -> int:
    """The least `low` of `rsqrt` by the settings: its result, at twice the inner fractional bits, has to fit."""
    return min(-party.settings.bound, -2 * (WIDTH - 3 - 2 * inner_frac(party)))


def _leading(x: Shared, low: int, high: int | None, *, least: int = 0) -> tuple[range, Shared | None]:
    """The powers j that 2^j <= x < 2^(j+1) may hold for, and for all but the first whether x >= 2^j, along a new axis.

    The bits have no fractional bits; there are none if there is one power. Four rounds.

    Args:
        least: what `low` may be as far as x has fractional bits; by default as the bound has it for 1 / x.
    """
    require(x.party, "a quotient, a root or a logarithm", 2)
    settings = x.party.settings
    top = settings.bound if high is None else high
    least, most = max(-x.frac, least or -settings.bound), min(settings.bound, inner_frac(x.party))
    if not least <= low < top <= most:
        raise UsageError(
            f"range: got 2^{low} to 2^{top}, wanted one within 2^{least} and 2^{most}, "
            f"by a bound of 2^{settings.bound} and {x.frac} fractional bits",
            hint="of the two settings the range of quotients, roots and logarithms depends; or give another range",
        )
    powers = range(low, top)
    if len(powers) == 1:
        return powers, None
    distances = concatenate([(x - 2.0**j).reshape(1, *x.shape) for j in powers[1:]], 0)
    ones = Shared.public(x.party, np.ones(distances.shape), 0)
    return powers, ones - is_negative(distances)


def _chosen(values: Sequence[float], reached: Shared | None, x: Shared, frac: int) -> Shared:
    """Of public values, one for each power, that of x's leading power; no round.

    One may leave the settings' bound if what it is multiplied by brings it back.
    """
    beyond = max(0, ceil(log2(max(map(abs, values)))) + 1 - x.party.settings.bound)
    smaller, more = [value * 2.0**-beyond for value in values], frac + beyond
    result = Shared.public(x.party, np.full(x.shape, smaller[0]), more)
    for i, (before, value) in enumerate(pairwise(smaller)):
        assert reached is not None  # noqa: S101  # there are several
        result = result + reached[i].times_public(value - before, frac=more)
    return result.shifted(0, frac) if beyond else result


def _inverse(z: Shared) -> Shared:
    """1 / z for 1/2 <= z <= 1, at z's fractional bits; 8 rounds.

    R. E. Goldschmidt, "Applications of division by convergence", MIT (1964): with e = 1 - z y, which is at most 1/16
    where y is a good straight line, 1 / z = y (1 + e) (1 + e^2) (1 + e^4) to e^8. Unlike in Newton's iteration, the
    powers of e and the products with y are independent, so that both take the same rounds.
    """
    frac, more = z.frac, 4  # fractional bits of the line's numbers
    y = -z.times_public(1.875, frac=more) + 2.8125
    e = drop(multiply(z, z).times_public(1.875, frac=more) - z.times_public(2.8125, frac=frac + more) + 1.0, frac)
    for left in reversed(range(_STEPS)):
        product_frac = y.frac + frac
        terms = [raised(y, product_frac) + multiply(y, e)]
        if left:
            terms.append(raised(multiply(e, e), product_frac))
        dropped = drop(concatenate([term.reshape(1, *term.shape) for term in terms], 0), frac, bits=2)
        y, e = dropped[0], dropped[-1]
    return y
