"""The largest along an axis and where it is, as a row that is 1 there and 0 elsewhere.

A tournament of neighbours upwards, 5 rounds for each halving of the axis. Then downwards the row: whoever won above is
passed on to the one of its pair that won, one round for each.
"""

from __future__ import annotations

from strongroom.errors import UsageError
from strongroom.mpc.protocols.compare import less
from strongroom.mpc.protocols.linear import multiply
from strongroom.mpc.shared import Shared, concatenate


def one_hot_largest(x: Shared) -> tuple[Shared, Shared]:
    """The largest along the last axis, and the row, without fractional bits; of several equal ones the first."""
    if not x.shape or not x.shape[-1]:
        raise UsageError(f"max: got shape {x.shape}, wanted a last axis of at least one element")
    won: list[Shared] = []  # at each level, whether the later of each pair did
    while x.shape[-1] > 1:
        pairs = x.shape[-1] // 2
        first, second = x[..., 0 : 2 * pairs : 2], x[..., 1 : 2 * pairs : 2]
        later = less(first, second)
        best = first + multiply(later, second - first)
        x = concatenate([best, x[..., 2 * pairs :]]) if x.shape[-1] % 2 else best
        won.append(later)
    row = Shared.public(x.party, 1.0, 0).broadcast(x.shape)
    for later in reversed(won):
        pairs = later.shape[-1]
        above = row[..., :pairs]
        second = multiply(above, later)
        both = concatenate([(above - second).reshape(*second.shape, 1), second.reshape(*second.shape, 1)])
        both = both.reshape(*second.shape[:-1], 2 * pairs)
        row = concatenate([both, row[..., pairs:]]) if row.shape[-1] > pairs else both
    return x[..., 0], row
