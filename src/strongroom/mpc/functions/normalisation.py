"""Layer and RMS norms, along the last axis."""

from __future__ import annotations

from math import ceil, floor, log2

from strongroom.mpc.functions.division import root_room, rsqrt
from strongroom.mpc.functions.fixed import drop, inner_frac
from strongroom.mpc.protocols.linear import multiply
from strongroom.mpc.shared import Shared

_LOWEST = -24  # power of two that a mean of squares is taken to reach: each one less costs a comparison for each row
_NEEDED = -12  # the same where settings leave no more room
_PRECISE = 8  # bits of the least such mean: its root is known to 2^-9, and to less where values are that small


def layer_norm(
    x: Shared, weight: Shared | None = None, bias: Shared | None = None, *, eps: float = 1e-5, low: int | None = None
) -> Shared:
    """(x - mean) / sqrt(variance + eps), times `weight`, plus `bias`; 25 rounds, 27 with a weight. As `rms_norm`."""
    settings = x.party.settings
    total = x.sum(keep=True)
    mean = drop(total.times_public(1 / x.shape[-1], frac=inner_frac(x.party)), settings.frac, bits=settings.bound)
    y = rms_norm(x - mean, weight, eps=eps, low=low)
    return y if bias is None else y + bias


def rms_norm(x: Shared, weight: Shared | None = None, *, eps: float = 1e-5, low: int | None = None) -> Shared:
    """x / sqrt(mean of x^2 + eps), times `weight`; 24 rounds, 26 with a weight.

    The error is at most 2^-14 + 2^-15 / s for each 1 of a result and of the weight, where s is the root: a value has no
    more than its fractional bits, and dividing by a small root shows that.

    Args:
        x: means of squares stay below the settings' bound.
        weight: for each element of the last axis.
        low: power of two that a mean of squares reaches with `eps`; below it results are wrong. By default as `eps` has
            it, so that none is below, but at least -24, or what the bound leaves room for: -22 at 2^12, -18 at 2^9.
    """
    settings = x.party.settings
    y = drop(multiply(x, inverse_rms(x, eps=eps, low=low)), settings.frac, bits=settings.bound)
    return y if weight is None else drop(multiply(y, weight), settings.frac, bits=settings.bound)


def inverse_rms(x: Shared, *, eps: float = 1e-5, low: int | None = None) -> Shared:
    """1 / sqrt(mean of x^2 + eps) along the last axis, which stays as an axis of one; 22 rounds. As `rms_norm`."""
    settings, inner, count = x.party.settings, inner_frac(x.party), x.shape[-1]
    if low is None:
        least = max(_LOWEST, min(root_room(x.party), _NEEDED))
        low = min(max(least, floor(log2(eps))), settings.bound - 1) if eps > 0 else least
    total = drop(multiply(x, x).sum(keep=True), inner, bits=settings.bound + ceil(log2(count)))
    mean = drop(total.times_public(1 / count, frac=inner), max(inner, _PRECISE - low), bits=settings.bound)
    return rsqrt(mean + eps, low=low, frac=inner)
