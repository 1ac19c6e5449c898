"""1 / x and x^(-1/2): scale x to [1/2, 1) by its leading bit, then Newton's iteration, then scale back."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from strongroom.errors import UsageError
from strongroom.mpc.functions.fixed import drop, inner_frac, product
from strongroom.mpc.protocols.compare import is_negative
from strongroom.mpc.protocols.linear import multiply
from strongroom.mpc.shared import Shared, concatenate

_STEPS = 3  # a first guess that is off by 1/17 ends at 17^-8


def reciprocal(x: Shared, *, low: int = -8, high: int | None = None, frac: int | None = None) -> Shared:
    """1 / x for 2^low <= x < 2^high, with an error of at most 2^-frac + 1e-6 / x; 21 rounds.

    Args:
        low, high: of x; by default -8 and the settings' bound. Each power between them costs a comparison.
        frac: of the result; by default the settings'.
    """
    result, inner = x.party.settings.frac if frac is None else frac, inner_frac(x.party)
    powers, reached = _leading(x, low, high)
    scale = _chosen([2.0 ** -(j + 1) for j in powers], reached, x, inner)
    z = drop(multiply(x, scale), inner)
    return drop(multiply(newton(z), scale), result, bits=1 - low)


def rsqrt(x: Shared, *, low: int = -8, high: int | None = None, frac: int | None = None) -> Shared:
    """x^(-1/2) for 2^low <= x < 2^high, with an error of at most 2^-frac + 2e-6 x^(-1/2); 27 rounds.

    Args:
        low, high, frac: as of `reciprocal`.
    """
    result, inner = x.party.settings.frac if frac is None else frac, inner_frac(x.party)
    powers, reached = _leading(x, low, high)
    z = drop(multiply(x, _chosen([2.0 ** -(j + 1) for j in powers], reached, x, inner)), inner)
    # y <- y (3 - z y^2) / 2, from the best straight line on [1/2, 1], which is off by 3 %.
    y = drop(-z.times_public(0.828427, frac=inner) + 1.801719, inner, bits=2)
    for _ in range(_STEPS):
        half = product(z, product(y, y, inner, bits=2), inner, bits=2).shifted(0, inner + 1)
        y = drop(multiply(y, -half + 1.5), inner, bits=2)
    scale = _chosen([2.0 ** (-(j + 1) / 2) for j in powers], reached, x, inner)
    return drop(multiply(y, scale), result, bits=1 - low // 2)


def _leading(x: Shared, low: int, high: int | None) -> tuple[range, Shared | None]:
    """The powers j that 2^j <= x < 2^(j+1) may hold for, and for all but the first whether x >= 2^j, along a new axis.

    The bits have no fractional bits; there are none if there is one power. Four rounds.
    """
    settings = x.party.settings
    top = settings.bound if high is None else high
    least, most = -min(x.frac, settings.bound), min(settings.bound, inner_frac(x.party))
    if not least <= low < top <= most:
        raise UsageError(f"range: got 2^{low} to 2^{top}, wanted one within 2^{least} and 2^{most}")
    powers = range(low, top)
    if len(powers) == 1:
        return powers, None
    distances = concatenate([(x - 2.0**j).reshape(1, *x.shape) for j in powers[1:]], 0)
    ones = Shared.public(x.party, np.ones(distances.shape), 0)
    return powers, ones - is_negative(distances)


def _chosen(values: Sequence[float], reached: Shared | None, x: Shared, frac: int) -> Shared:
    """Of public values, one for each power, that of x's leading power; no round."""
    result = Shared.public(x.party, np.full(x.shape, values[0]), frac)
    for i, (before, value) in enumerate(pairwise(values)):
        assert reached is not None  # noqa: S101  # there are several
        result = result + reached[i].times_public(value - before, frac=frac)
    return result


def newton(z: Shared) -> Shared:
    """1 / z for 1/2 <= z <= 1, at z's fractional bits, by y <- y (2 - z y); 13 rounds."""
    frac = z.frac
    # The best straight line: off by at most 1/17 of 1 / z.
    y = drop(-z.times_public(32 / 17, frac=frac) + 48 / 17, frac, bits=2)
    for _ in range(_STEPS):
        y = product(y, -product(z, y, frac, bits=2) + 2.0, frac, bits=2)
    return y
