"""What networks end their layers with."""

from __future__ import annotations

import math

from strongroom.mpc.functions.division import newton, reciprocal
from strongroom.mpc.functions.exponential import LOWEST, exp
from strongroom.mpc.functions.fixed import drop, inner_frac, polynomial
from strongroom.mpc.protocols.compare import amax, is_negative
from strongroom.mpc.protocols.linear import multiply
from strongroom.mpc.protocols.relu import relu
from strongroom.mpc.protocols.truncate import truncate
from strongroom.mpc.shared import Shared

_GELU_END = 4.5  # from here on x and GELU(x) differ by less than 1.6e-5
# Chebyshev interpolation of a Phi(-a) for a = 2.25 (t + 1), on [-1, 1]; error 1e-5.
_GELU = (
    0.02749898536,
    -0.1331710517,
    0.2464816755,
    -0.1444737109,
    -0.2019630199,
    0.4188994541,
    -0.2079988309,
    -0.138992544,
    0.1801776679,
    -0.01641222438,
    -0.04419460114,
    0.0141619158,
)


def gelu(x: Shared) -> Shared:
    """x Phi(x), Phi the normal distribution function, for all x; error at most 5e-5; 19 rounds.

    It is max(x, 0) less an even function that ends at 4.5: a polynomial.
    """
    positive = relu(x, 0)
    size = positive + positive - x
    settings, inner = x.party.settings, inner_frac(x.party)
    size = -(_at_least_zero(-size + _GELU_END)) + _GELU_END
    t = drop(size.times_public(2 / _GELU_END, frac=inner), inner, bits=2) - 1.0
    return positive - drop(polynomial(t, _GELU), settings.frac)


def sigmoid(x: Shared) -> Shared:
    """1 / (1 + e^-x) for all x; error at most 2^-15; 39 rounds."""
    return _sigmoid(x, x.party.settings.frac)


def silu(x: Shared) -> Shared:
    """x / (1 + e^-x) for all x; error at most 2^-15 + 2e-6 |x|; 41 rounds."""
    return truncate(multiply(x, _sigmoid(x, inner_frac(x.party))))


def _sigmoid(x: Shared, frac: int) -> Shared:
    inner = inner_frac(x.party)
    negative = is_negative(x)
    # |x| = x - 2 x [x < 0]; e^-|x| is at most 1, so the quotient needs no scaling.
    size = x - multiply(negative, x + x)
    e = exp(_at_least_zero(-size - LOWEST) + LOWEST, frac=inner, bits=1)
    # (1 + e) / 2 is e + 1 read with one more fractional bit, and half of its reciprocal the same again.
    twice = newton((e + 1.0).shifted(0, inner + 1))
    upper = drop(twice.shifted(0, inner + 2), frac)
    return upper + multiply(negative, -(upper + upper) + 1.0)


def softmax(x: Shared) -> Shared:
    """e^x over its sum along the last axis, for all x; error at most 2^-15.

    Rounds: 43, and 4 for each halving of the axis.
    """
    inner = inner_frac(x.party)
    largest = amax(x)
    z = x - largest.reshape(*largest.shape, 1)
    e = exp(_at_least_zero(z - LOWEST) + LOWEST, frac=inner, bits=1)
    short = drop(e.sum(), x.party.settings.frac, bits=math.ceil(math.log2(x.shape[-1])) + 1)
    inverse = reciprocal(short, low=-1, high=max(1, math.ceil(math.log2(x.shape[-1] + 1))), frac=inner)
    return drop(multiply(e, inverse.reshape(*inverse.shape, 1)), x.party.settings.frac)


def _at_least_zero(x: Shared) -> Shared:
    """max(x, 0) of a sum or difference of two values."""
    return relu(x, 0, width=x.party.settings.opening(x.frac) + 1)
