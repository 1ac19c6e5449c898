"""e^x by a masked exponent; or by squaring, e^x = (e^(x/16))^16, where results must not depend on masks."""

from __future__ import annotations

from strongroom.mpc.functions.fixed import drop, inner_frac, polynomial, product, raised
from strongroom.mpc.protocols.exponential import Exponent, exponential
from strongroom.mpc.protocols.relu import relu
from strongroom.mpc.shared import Shared

LOWEST = -20.0  # where `exp` begins: its window is 32 wide
_WINDOW = 5  # bits before the point that it takes
_SPAN = 16  # of a window that ends at 0
_SQUARINGS = 4
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


def exp(x: Shared, *, frac: int | None = None, bits: int | None = None, clip: bool = False) -> Shared:
    """e^x for -20 <= x <= 10.3, with an error of at most 2^-frac + 3e-6 + 4e-6 e^x; 5 rounds.

    The error is that at a bound of 2^15; for every two bits more it doubles. With exact settings it is for -16 <= x,
    with an error of at most 2^-frac + 2e-5 e^x; 39 rounds.

    Args:
        x: at the settings' fractional bits.
        frac: of the result; by default the settings'.
        bits: e^x < 2^bits; by default the settings' bound. A smaller one is more precise.
        clip: what is below -20 counts as that; in the same rounds, if settings are not exact.
    """
    settings = x.party.settings
    result = settings.frac if frac is None else frac
    most = settings.bound if bits is None else bits
    if settings.exact:
        return _by_squaring(_at_least(x, LOWEST) if clip else x, result, most)
    width = max(settings.opening(x.frac), x.frac + _WINDOW + 2) if clip else 0  # of a value less LOWEST
    how = Exponent.fit(x.frac, int(LOWEST) << x.frac, span=3, high=2, bits=most, width=width)
    return drop(exponential(x, how), result, bits=most)


def exp_negative(x: Shared, *, frac: int | None = None) -> Shared:
    """e^x for all x <= 0 that are a value or the difference of two, 0 below -16; 5 rounds.

    The error is at most 2^-frac + 1.2e-6 + 2e-6 e^x.

    Args:
        x, frac: as of `exp`.
    """
    settings = x.party.settings
    result = settings.frac if frac is None else frac
    if settings.exact:
        return _by_squaring(_at_least(x, -_SPAN), result, 1)
    width = max(settings.opening(x.frac), x.frac + _WINDOW + 1)
    how = Exponent.fit(x.frac, 1 - (_SPAN << x.frac), span=4, high=0, bits=1, width=width)
    return drop(exponential(x, how), result)


def _at_least(x: Shared, low: float) -> Shared:
    """max(x, low) of the difference of two values."""
    settings = x.party.settings
    if -low >= 2 ** (settings.bound + 1):
        return x
    half = low / 2  # the bound may be less than `low`
    return relu(x - half - half, 0, width=settings.opening(x.frac) + 1) + half + half


def _by_squaring(x: Shared, frac: int, most: int) -> Shared:
    inner = inner_frac(x.party)
    y = polynomial(raised(x, inner, power=-_SQUARINGS), _COEFFICIENTS)
    for left in reversed(range(_SQUARINGS)):
        ceiling = -(-most >> left)  # this square is e^(x / 2^left), so below 2^(most / 2^left)
        y = product(y, y, inner if left else frac, bits=ceiling)
    return y
