"""e^x by squaring: e^x = (e^(x/16))^16, where the inner power is a polynomial."""

from __future__ import annotations

from strongroom.mpc.functions.fixed import inner_frac, polynomial, product, raised
from strongroom.mpc.shared import Shared

_SQUARINGS = 4
LOWEST = -20.0  # where to clip what is below: even a thousand times that is less than the last of 16 fractional bits
# Chebyshev interpolation of e^u on [-1, 0.65], which is x in [-16, 10.4]; relative error 9e-8.
_COEFFICIENTS = (
    1.000000005,
    1.000000356,
    0.499999841,
    0.1666608583,
    0.04166559515,
    0.00835755893,
    0.00140247529,
    0.0001697348672,
)


def exp(x: Shared, *, frac: int | None = None, bits: int | None = None) -> Shared:
    """e^x for -16 <= x <= 10.3, with an error of at most 2^-frac + 2e-5 e^x; 15 rounds.

    Values between -20 and -16 give less than 2^-frac; lower ones are for the caller to clip, as `softmax` does.

    Args:
        x: at the settings' fractional bits.
        frac: of the result; by default the settings'.
        bits: e^x < 2^bits; by default the settings' bound. A smaller one costs less.
    """
    settings = x.party.settings
    result = settings.frac if frac is None else frac
    most = settings.bound if bits is None else bits
    inner = inner_frac(x.party)
    y = polynomial(raised(x, inner, power=-_SQUARINGS), _COEFFICIENTS)
    for left in reversed(range(_SQUARINGS)):
        ceiling = -(-most >> left)  # this square is e^(x / 2^left), so below 2^(most / 2^left)
        y = product(y, y, inner if left else result, bits=ceiling)
    return y
