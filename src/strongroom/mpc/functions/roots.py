"""Square roots, and quotients by numbers of either sign."""

from __future__ import annotations

from strongroom.mpc.functions.division import reciprocal, root_room, rsqrt
from strongroom.mpc.functions.fixed import drop, inner_frac
from strongroom.mpc.protocols.compare import is_negative
from strongroom.mpc.protocols.linear import multiply
from strongroom.mpc.shared import Shared

LOWEST = -12  # power of two that what a root is taken of reaches
_SMALLEST = -20  # the same of what a root divides: a mean of squares, and an epsilon of 1e-6, is as small
_MOST = 28  # fractional bits to take of it


def sqrt(x: Shared, *, low: int = LOWEST, frac: int | None = None) -> Shared:
    """The square root for 2^low <= x, with an error of at most 2^-frac + 2.5e-5 sqrt(x); two rounds more than `rsqrt`.

    What lies between 0 and 2^low gives less than its root, 0 gives 0: an error of at most 2^(low / 2 - 2).

    Args:
        frac: of the result; by default the settings'.
    """
    settings, inner = x.party.settings, inner_frac(x.party)
    x = drop(x, inner, bits=settings.bound)
    root = multiply(x, rsqrt(x, low=low, frac=inner))
    return drop(root, settings.frac if frac is None else frac, bits=settings.bound)


def inverse_root(x: Shared) -> Shared:
    """x^(-1/2) as `rsqrt`, of any number of fractional bits, with as many as there is room for.

    For x of 2^-20 and more, with an error of at most 3e-5 of it, or 2^-28 / x of it where x has more fractional bits.
    """
    x = drop(x, min(x.frac, _MOST), bits=x.party.settings.bound)
    low = max(_SMALLEST, -x.frac, min(root_room(x.party), LOWEST))
    return rsqrt(x, low=low, frac=inner_frac(x.party))


def signed_reciprocal(x: Shared, *, frac: int | None = None) -> Shared:
    """1 / x for 2^-8 <= |x|, with an error of at most 2^(1-frac) + 1e-6 / |x|; six rounds more than `reciprocal`.

    Args:
        frac: of the result; by default the settings'.
    """
    settings, inner = x.party.settings, inner_frac(x.party)
    x = drop(x, inner, bits=settings.bound) if x.frac > inner else x
    negative = is_negative(x)
    size = x - multiply(negative, x + x)
    inverse = reciprocal(size, frac=settings.frac if frac is None else frac)
    return inverse - multiply(negative, inverse + inverse)
