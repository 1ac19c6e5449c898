"""Secret sharing: the field, against published numbers, and sharing, against a second implementation by tables."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strongroom.cas.unseal.shamir import combine, split, times
from strongroom.errors import UsageError

# FIPS 197, sections 4.2 and 4.2.1.
FIPS_197 = [(0x57, 0x83, 0xC1), (0x57, 0x13, 0xFE), (0x57, 0x02, 0xAE), (0x57, 0x04, 0x47), (0x57, 0x10, 0x07)]

# github.com/codahale/shamir, GF256Test: the value at 0 of the polynomial through three points.
INTERPOLATED = [({1: 1, 2: 2, 3: 3}, 0), ({1: 80, 2: 90, 3: 20}, 30), ({1: 43, 2: 22, 3: 86}, 107)]


@pytest.mark.parametrize(("a", "b", "product"), FIPS_197)
def test_the_field_is_that_of_aes(a, b, product):
    assert times(a, b, 1) == times(b, a, 1) == product


@pytest.mark.parametrize(("points", "value"), INTERPOLATED)
def test_published_interpolations(points, value):
    assert combine({index: bytes([y]) for index, y in points.items()}) == bytes([value])


def tables() -> tuple[list[int], list[int]]:
    """Powers of the generator 3, and their logarithms."""
    powers, logarithms, value = [], [0] * 256, 1
    for exponent in range(255):
        powers.append(value)
        logarithms[value] = exponent
        doubled = value << 1
        value ^= doubled ^ (0x11B if doubled & 0x100 else 0)
    return powers, logarithms


POWERS, LOGARITHMS = tables()


def product(a: int, b: int) -> int:
    return POWERS[(LOGARITHMS[a] + LOGARITHMS[b]) % 255] if a and b else 0


def quotient(a: int, b: int) -> int:
    return POWERS[(LOGARITHMS[a] - LOGARITHMS[b]) % 255] if a else 0


def at_zero(points: dict[int, int]) -> int:
    """The value at 0 of the polynomial through these points."""
    total = 0
    for x, y in points.items():
        for other in points:
            if other != x:
                y = quotient(product(y, other), other ^ x)
        total ^= y
    return total


def test_the_product_of_all_numbers_is_that_of_the_tables():
    vector = bytes(range(256))
    for scalar in range(256):
        wanted = bytes(product(value, scalar) for value in vector)
        assert times(int.from_bytes(vector, "big"), scalar, 256).to_bytes(256, "big") == wanted


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_any_threshold_of_shares_gives_the_secret_here_and_by_the_tables(data):
    count = data.draw(st.sampled_from([1, 2, 3, 5, 9, 255]))
    threshold = data.draw(st.integers(1, min(count, 9)))
    secret = data.draw(st.binary(min_size=1, max_size=40))
    shares = split(
        secret, threshold=threshold, count=count, random=lambda size: data.draw(st.binary(min_size=size, max_size=size))
    )
    chosen = data.draw(st.permutations(sorted(shares)))[:threshold]
    some = {index: shares[index] for index in chosen}
    assert combine(some) == secret
    assert bytes(at_zero({index: share[i] for index, share in some.items()}) for i in range(len(secret))) == secret


def test_fewer_shares_fit_every_secret():
    """Of two shares of three needed, each third share gives another secret: nothing is known of it."""
    shares = split(b"\x2a", threshold=3, count=3, random=lambda size: b"\x77"[:size])
    found = {combine({1: shares[1], 2: shares[2], 3: bytes([third])}) for third in range(256)}
    assert len(found) == 256


def test_every_number_of_shares_from_the_threshold_on_agrees():
    shares = split(b"secret", threshold=2, count=4, random=lambda size: b"random"[:size])
    for number in (2, 3, 4):
        for some in itertools.combinations(shares, number):
            assert combine({index: shares[index] for index in some}) == b"secret"


@pytest.mark.parametrize(("threshold", "count"), [(0, 3), (4, 3), (1, 0), (1, 256), (-1, 2)])
def test_thresholds_that_make_no_sense(threshold, count):
    with pytest.raises(UsageError, match="wanted at least one"):
        split(b"x", threshold=threshold, count=count, random=bytes)


@pytest.mark.parametrize("shares", [{}, {0: b"x"}, {256: b"x"}, {1: b"x", 2: b"xy"}])
def test_shares_that_are_none(shares):
    with pytest.raises(UsageError, match="wanted at least one"):
        combine(shares)
