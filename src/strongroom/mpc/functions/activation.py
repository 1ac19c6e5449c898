"""What networks end their layers with."""

from __future__ import annotations

import math

from strongroom.mpc.functions.division import reciprocal
from strongroom.mpc.functions.exponential import exp_negative
from strongroom.mpc.functions.fixed import drop, inner_frac, polynomial
from strongroom.mpc.protocols.compare import amax, is_negative
from strongroom.mpc.protocols.linear import multiply
from strongroom.mpc.protocols.relu import relu
from strongroom.mpc.protocols.truncate import truncate
from strongroom.mpc.shared import Shared

# Of 1 / (1 + t) on [0, 1], and 1 at 0, so that what is far from 0 has no error; 1.2e-6.
_SIGMOID = (
    1.0,
    -0.999890924,
    0.9969049703,
    -0.9696883403,
    0.8533574999,
    -0.5895469837,
    0.2627298913,
    -0.05386732763,
)
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
    """x Phi(x), Phi the normal distribution function, for all x; error at most 5e-5; 18 rounds.

    It is max(x, 0) less an even function that ends at 4.5: a polynomial.
    """
    positive = relu(x, 0)
    size = positive + positive - x
    settings, inner = x.party.settings, inner_frac(x.party)
    if 2**settings.bound > _GELU_END:
        size = -(_at_least_zero(-size + _GELU_END)) + _GELU_END
    t = drop(size.times_public(2 / _GELU_END, frac=inner), inner, bits=2) - 1.0
    return positive - polynomial(t, _GELU, frac=settings.frac)


def sigmoid(x: Shared, *, frac: int | None = None) -> Shared:
    """1 / (1 + e^-x) for all x; error at most 2^-15; 18 rounds.

    Args:
        frac: of the result; by default the settings'.
    """
    return _sigmoid(x, x.party.settings.frac if frac is None else frac)


def silu(x: Shared) -> Shared:
    """x / (1 + e^-x) for all x; error at most 2^-15 + 2e-6 |x|; 20 rounds."""
    return truncate(multiply(x, _sigmoid(x, inner_frac(x.party))))


def _sigmoid(x: Shared, frac: int) -> Shared:
    negative = is_negative(x)
    # -|x| = 2 x [x < 0] - x
    e = exp_negative(multiply(negative, x + x) - x, frac=inner_frac(x.party))
    upper = polynomial(e, _SIGMOID, frac=frac)
    return upper + multiply(negative, -(upper + upper) + 1.0)


def softmax(x: Shared) -> Shared:
    """e^x over its sum along the last axis, for all x; error at most 2^-15.

    Rounds: 23, and at most 4 for each halving of the axis.
    """
    inner = inner_frac(x.party)
    largest = amax(x)
    z = x - largest.reshape(*largest.shape, 1)
    e = exp_negative(z, frac=inner)
    inverse = reciprocal(e.sum(), low=-1, high=max(1, math.ceil(math.log2(x.shape[-1] + 1))), frac=inner)
    return drop(multiply(e, inverse.reshape(*inverse.shape, 1)), x.party.settings.frac)


def _at_least_zero(x: Shared) -> Shared:
    """max(x, 0) of a sum or difference of two values."""
    return relu(x, 0, width=x.party.settings.opening(x.frac) + 1)
