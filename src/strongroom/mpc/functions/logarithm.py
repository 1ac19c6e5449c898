"""log x: scale x to [1/2, 1) by its leading bit, then a polynomial; and what is made of it."""

from __future__ import annotations

import math

from strongroom.mpc.functions.division import _chosen, _leading
from strongroom.mpc.functions.exponential import exp, exp_negative
from strongroom.mpc.functions.fixed import drop, inner_frac, polynomial, require
from strongroom.mpc.protocols.compare import amax
from strongroom.mpc.protocols.linear import multiply
from strongroom.mpc.protocols.relu import relu
from strongroom.mpc.shared import Shared

LOWEST = -12
# Chebyshev interpolation of log((3 + t) / 4) on [-1, 1]; error 2.6e-7.
_COEFFICIENTS = (
    -0.2876818934,
    0.33333328,
    -0.05556127064,
    0.01234737938,
    -0.003058276005,
    0.0008146746024,
    -0.0002719534907,
    7.819757513e-05,
)


def log(x: Shared, *, low: int = LOWEST, high: int | None = None, frac: int | None = None) -> Shared:
    """The natural logarithm for 2^low <= x < 2^high, with an error of at most 2^-frac + 2e-6; 14 rounds.

    What lies between 0 and 2^low gives a value below (low + 1) log 2, by at most 2.

    Args:
        low, high: as of `reciprocal`.
        frac: of the result; by default the settings'.
    """
    settings, inner = x.party.settings, inner_frac(x.party)
    x = drop(x, inner, bits=settings.bound)
    powers, reached = _leading(x, low, high)
    z = drop(multiply(x, _chosen([2.0 ** -(j + 1) for j in powers], reached, x, inner)), inner)
    whole = _chosen([(j + 1) * math.log(2) for j in powers], reached, x, inner)
    return drop(whole + _log_of_part(z), settings.frac if frac is None else frac, bits=5)


def _log_of_part(z: Shared) -> Shared:
    """log z for 1/2 <= z <= 1."""
    return polynomial(z.shifted(2, z.frac) - 3.0, _COEFFICIENTS)


def softplus(x: Shared, *, frac: int | None = None) -> Shared:
    """log(1 + e^x) for all x; error at most 2^-15; 17 rounds.

    It is max(x, 0) + log(1 + e^-|x|), where 1 + e^-|x| lies between 1 and 2.
    """
    settings, inner = x.party.settings, inner_frac(x.party)
    require(x.party, "softplus", 2)
    positive = relu(x, 0)
    e = exp_negative(x - positive - positive, frac=inner)
    part = _log_of_part((e + 1.0).shifted(0, inner + 1)) + math.log(2)
    return positive + drop(part, settings.frac if frac is None else frac)


def log_softmax(x: Shared) -> Shared:
    """x less the logarithm of the sum of e^x along the last axis, for all x; error at most 2^-14."""
    inner = inner_frac(x.party)
    largest = amax(x)
    z = x - largest.reshape(*largest.shape, 1)
    bits = math.ceil(math.log2(x.shape[-1])) + 1
    total = drop(exp_negative(z, frac=inner).sum(), x.party.settings.frac, bits=bits)
    logarithm = log(total, low=-1, high=max(1, math.ceil(math.log2(x.shape[-1] + 1))))
    return z - logarithm.reshape(*logarithm.shape, 1)


def exp_clipped(x: Shared, *, frac: int | None = None, bits: int | None = None) -> Shared:
    """As `exp`, for all x below 10.3: what is below -20 counts as that."""
    return exp(x, frac=frac, bits=bits, clip=True)
