"""Layer and RMS norms, along the last axis."""

from __future__ import annotations

from math import ceil, log2

from strongroom.mpc.functions.division import rsqrt
from strongroom.mpc.functions.fixed import drop, inner_frac
from strongroom.mpc.protocols.linear import multiply
from strongroom.mpc.shared import Shared

LOWEST = -12  # power of two that a mean of squares is taken to reach: each one less costs a comparison for each row


def layer_norm(
    x: Shared, weight: Shared | None = None, bias: Shared | None = None, *, eps: float = 1e-5, low: int = LOWEST
) -> Shared:
    """(x - mean) / sqrt(variance + eps), times `weight`, plus `bias`; 25 rounds, 27 with a weight. As `rms_norm`."""
    settings = x.party.settings
    total = x.sum(keep=True)
    mean = drop(total.times_public(1 / x.shape[-1], frac=inner_frac(x.party)), settings.frac, bits=settings.bound)
    y = rms_norm(x - mean, weight, eps=eps, low=low)
    return y if bias is None else y + bias


def rms_norm(x: Shared, weight: Shared | None = None, *, eps: float = 1e-5, low: int = LOWEST) -> Shared:
    """x / sqrt(mean of x^2 + eps), times `weight`; 24 rounds, 26 with a weight.

    The error is at most 2^-14 + 2^-15 / s for each 1 of a result and of the weight, where s is the root: a value has no
    more than its fractional bits, and dividing by a small root shows that.

    Args:
        x: means of squares stay below the settings' bound; those below 2^low give results that are too small.
        weight: for each element of the last axis.
    """
    settings, inner, count = x.party.settings, inner_frac(x.party), x.shape[-1]
    total = drop(multiply(x, x).sum(keep=True), inner, bits=settings.bound + ceil(log2(count)))
    mean = drop(total.times_public(1 / count, frac=inner), inner, bits=settings.bound)
    scale = rsqrt(mean + eps, low=low, frac=inner)
    y = drop(multiply(x, scale), settings.frac, bits=settings.bound)
    return y if weight is None else drop(multiply(y, weight), settings.frac, bits=settings.bound)
