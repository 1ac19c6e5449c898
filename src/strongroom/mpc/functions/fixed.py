"""Arithmetic at more fractional bits than values have: what happens between an argument and a result."""

from __future__ import annotations

from collections.abc import Sequence

from strongroom.errors import UsageError
from strongroom.mpc.party import Party
from strongroom.mpc.protocols.linear import multiply
from strongroom.mpc.protocols.truncate import truncate
from strongroom.mpc.ring import WIDTH
from strongroom.mpc.shared import Shared, concatenate

_BLOCK = 4  # coefficients of a polynomial that are summed up before the next product
_MOST, _LEAST = 28, 10  # fractional bits; with more, numbers below 2^4 would have no room, whatever the bound


def inner_frac(party: Party) -> int:
    """The most fractional bits, up to 28, at which a product of two values still has room below the settings' bound."""
    return min(_MOST, (WIDTH - 2 - party.settings.bound) // 2)


def require(party: Party, name: str, bound: int = 1) -> None:
    """UsageError unless a function's numbers keep below the settings' bound, and that leaves it enough inner bits."""
    most = WIDTH - 2 - 2 * _LEAST
    if not bound <= party.settings.bound <= most:
        raise UsageError(
            f"bound: got 2^{party.settings.bound}, wanted 2^{bound} to 2^{most} for {name}",
            hint="it is one of the settings",
        )


def product(x: Shared, y: Shared, frac: int, *, bits: int = 1) -> Shared:
    """x y with `frac` fractional bits, where |x y| < 2^bits; two rounds, or one if both are open."""
    return drop(multiply(x, y), frac, bits=bits)


def drop(x: Shared, frac: int, *, bits: int = 1) -> Shared:
    """`x` with fewer fractional bits, where |x| < 2^bits; one round."""
    return truncate(x, x.frac - frac, width=min(WIDTH, x.frac + bits + 2)) if x.frac > frac else raised(x, frac)


def raised(x: Shared, frac: int, *, power: int = 0) -> Shared:
    """x 2^power with more fractional bits; no round. UsageError where that would drop bits."""
    shift = frac + power - x.frac
    if shift < 0:
        raise UsageError(
            f"fractional bits: got {x.frac} and a bound of 2^{x.party.settings.bound}, wanted fewer",
            hint="functions work at more fractional bits than values have; lower either setting",
        )
    return x.shifted(shift, frac)


def polynomial(t: Shared, coefficients: Sequence[float], *, frac: int | None = None) -> Shared:
    """The sum of c_i t^i for |t| <= 1, where no partial sum reaches 2, at `frac` fractional bits, t's by default.

    Up to four coefficients take 2 products one after the other; each four more take one more (Paterson and Stockmeyer,
    SIAM J. Comput. 2 (1973)). Rounds: 4 and, for every four coefficients beyond the first four, 2; and 1.
    """
    require(t.party, "a function by a polynomial")
    inner = t.frac
    square = product(t, t, inner)
    # Both products take the opening of the square, which the first of them makes.
    pair = concatenate([each.reshape(1, *each.shape) for each in (multiply(square, t), multiply(square, square))], 0)
    higher = drop(pair, inner)
    cube, fourth = higher[0], higher[1]
    blocks = [coefficients[i : i + _BLOCK] for i in range(0, len(coefficients), _BLOCK)]
    result: Shared | None = None
    for left, block in reversed(list(enumerate(blocks))):
        terms = [power.times_public(c, frac=inner) for power, c in zip((t, square, cube), block[1:], strict=False)]
        total = Shared.public(t.party, block[0], 2 * inner).broadcast(t.shape)
        for term in terms:
            total = total + term
        if result is not None:
            total = total + multiply(result, fourth)
        result = drop(total, inner if left or frac is None else frac)
    assert result is not None  # noqa: S101  # there are coefficients
    return result
