"""The masked exponent, over every exponent and many masks, and its public factor, which both servers must agree on."""

import hashlib

import numpy as np
import pytest

from strongroom.mpc.protocols.exponential import Exponent, _factors, exponential
from strongroom.mpc.threads import run_local
from tests.mpc.parties import integers, opened

FRAC = 4


def evaluate(x, how):
    words = opened(run_local(lambda p: exponential(integers(p, x, FRAC), how)))
    return words / 2.0 ** (how.left + how.right)


def bound(how, wanted):
    """Both factors' rounding; of the public one, also that of its tables."""
    span = 2.0 ** (how.low - how.frac)
    return 2.0 ** -(how.left + 1) + (np.exp(span) * 2.0 ** -(how.right + 1) + 2.0**-20) * wanted


@pytest.mark.parametrize("high", [0, 1, 2])
def test_every_exponent_of_a_window_under_many_masks(high):
    """The window holds 2^(7 + high) exponents: with 64 masks for each, all borrows and turns come up."""
    lowest = -(3 << FRAC)
    x = np.tile(lowest + np.arange(1 << (FRAC + 3 + high)), 64)
    bits = int(np.ceil(x.max() / 2**FRAC * np.log2(np.e)))
    how = Exponent.fit(FRAC, lowest, span=3, high=high, bits=bits)
    wanted = np.exp(x / 2**FRAC)
    error = np.abs(evaluate(x, how) - wanted)
    assert (error <= bound(how, wanted)).all()
    assert len(set(zip(x.tolist(), error.tolist(), strict=True))) > len(x) / 4  # the masks did differ


def test_what_lies_below_the_window_gives_nothing():
    """Every exponent that an opening of 12 bits may hold, from the lowest to 0."""
    x = np.tile(np.arange(1 - (1 << 11) + (16 << FRAC), 1), 16)
    how = Exponent.fit(FRAC, 1 - (16 << FRAC), span=4, high=0, bits=1, width=12)
    got, wanted = evaluate(x, how), np.exp(x / 2**FRAC)
    inside = x >= how.lowest
    assert (got[~inside] == 0).all()
    assert (np.abs(got - wanted) <= bound(how, wanted))[inside].all()


@pytest.mark.parametrize("count", [1, 64, 65, (1 << 16) + 1])
def test_sizes_around_planes_and_chunks(count):
    how = Exponent.fit(FRAC, -(16 << FRAC), span=3, high=2, bits=4)
    x = np.arange(count) % 200 - 160
    assert np.abs(evaluate(x, how) - np.exp(x / 2**FRAC)).max() < 1e-5


def test_the_public_factor_is_the_same_on_every_machine():
    """One unit of difference between the servers would make a random number of the result."""
    for low, wanted in ((19, "26d5f8b7b021389d"), (20, "5b61df1916ae7978")):
        tables = _factors(16, low)
        assert hashlib.sha256(b"".join(each.tobytes() for each in tables)).hexdigest()[:16] == wanted
        coarse, fine = (each.astype(float) for each in tables)
        product = (coarse[:, None] * fine).reshape(-1) / 2.0**63
        exact = np.exp((np.arange(1 << low) - (1 << low)) / 2.0**16)
        assert np.abs(product / exact - 1).max() < 1.2e-6
