"""erf, and the GELU that is made of tanh."""

from __future__ import annotations

from strongroom.mpc.functions.fixed import drop, inner_frac, polynomial, product
from strongroom.mpc.protocols.pool import clamp
from strongroom.mpc.protocols.relu import relu
from strongroom.mpc.shared import Shared

_ERF_END = 3.5  # from here on erf differs from 1 by less than 8e-7
# Chebyshev interpolation of erf(c) / c for c^2 = 6.125 (t + 1), on [-1, 1]; error 1.5e-9.
_ERF = (
    0.4038730242,
    -0.2007023526,
    0.1467472763,
    -0.1145726201,
    0.08843216183,
    -0.06511561111,
    0.04493453955,
    -0.02878282359,
    0.01699758401,
    -0.009367085375,
    0.004966264326,
    -0.002335439764,
    0.0008206573483,
    -0.0003601437138,
    0.0002751116444,
    -9.64703313e-05,
)
_GELU_END = 4.5
# Chebyshev interpolation of a (1 - tanh(sqrt(2 / pi) (a + 0.044715 a^3))) / 2 for a = 2.25 (t + 1); error 9e-6.
_GELU_TANH = (
    0.02719846418,
    -0.1348024775,
    0.2492232612,
    -0.136792698,
    -0.2121074257,
    0.4037905401,
    -0.1903723605,
    -0.1235985837,
    0.1657418148,
    -0.02449461924,
    -0.03968537295,
    0.01590466201,
)


def erf(x: Shared, *, frac: int | None = None) -> Shared:
    """The error function for all x; error at most 2^-frac + 2e-6; 24 rounds.

    Args:
        frac: of the result; by default the settings'.
    """
    settings, inner = x.party.settings, inner_frac(x.party)
    c = drop(x if 2**settings.bound <= _ERF_END else clamp(x, -_ERF_END, _ERF_END), inner, bits=2)
    square = product(c, c, inner, bits=4)
    t = drop(square.times_public(2 / _ERF_END**2, frac=inner), inner, bits=2) - 1.0
    return product(c, polynomial(t, _ERF), settings.frac if frac is None else frac, bits=2)


def gelu_tanh(x: Shared) -> Shared:
    """x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2 for all x; error at most 5e-5; 19 rounds.

    As `gelu`: max(x, 0) less an even function that ends at 4.5.
    """
    settings, inner = x.party.settings, inner_frac(x.party)
    positive = relu(x, 0)
    size = positive + positive - x
    if 2**settings.bound > _GELU_END:
        size = -relu(-size + _GELU_END, 0, width=settings.opening(x.frac) + 1) + _GELU_END
    t = drop(size.times_public(2 / _GELU_END, frac=inner), inner, bits=2) - 1.0
    return positive - drop(polynomial(t, _GELU_TANH), settings.frac)
