"""Orders are permutations, the same everywhere, and can be entered at any position."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strongroom.data import Batches, Order
from strongroom.data.order import permute


@settings(deadline=None)
@given(
    count=st.integers(1, 6000),
    window=st.none() | st.integers(30, 7000),
    chunk=st.integers(1, 300),
    epoch=st.integers(0, 3),
    cuts=st.lists(st.integers(0, 6000), max_size=4),
)
def test_every_record_once_and_any_part_alone(count, window, chunk, epoch, cuts):
    order = Order(count, seed=7, epoch=epoch, window=window, chunk=chunk)
    whole = order.take(0, count)
    assert np.array_equal(np.sort(whole), np.arange(count))
    edges = sorted({0, count, *(cut for cut in cuts if cut < count)})
    parts = [order.take(a, b) for a, b in itertools.pairwise(edges)]
    assert np.array_equal(np.concatenate(parts), whole)


def test_orders_never_change():
    """What a resumed run must find again: these values are part of the format."""
    assert Order(10).take(0, 10).tolist() == SMALL
    assert Order(1_000_003, seed=1, epoch=2).take(500_000, 500_006).tolist() == LARGE
    assert Order(1 << 40, seed=1, epoch=2).take(1 << 39, (1 << 39) + 3).tolist() == HUGE
    assert Order(100_000, seed=1, window=5000, chunk=83).take(50_000, 50_006).tolist() == WINDOWED


def test_large_orders_are_permutations():
    positions = np.arange(70_001, dtype=np.uint64)
    assert np.array_equal(np.sort(permute(bytes(range(64)), 70_001, positions)), positions.astype(np.int64))
    huge = permute(bytes(range(64)), (1 << 40) + 1, positions)  # computed with 64-bit words
    assert len(np.unique(huge)) == 70_001 and huge.min() >= 0 and huge.max() <= 1 << 40


@pytest.mark.parametrize("count", [1000, 100_000])
def test_uniform_orders_look_uniform(count):
    """Positions against records in a 10 x 10 table: chi-square of 99 degrees, far below its 1e-9 quantile of 200."""
    for epoch in range(5):
        order = Order(count, epoch=epoch).take(0, count)
        table = np.histogram2d(np.arange(count), order, bins=10)[0]
        assert ((table - count / 100) ** 2 / (count / 100)).sum() < 200
        steps = np.diff(order)
        assert np.mean(np.abs(steps) == 1) < 10 / count + 0.01
        assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 5 / count**0.5


def test_seeds_and_epochs_give_other_orders():
    heads = {tuple(Order(10_000, seed=s, epoch=e).take(0, 5)) for s in range(10) for e in range(10)}
    assert len(heads) == 100
    assert Order(10_000, seed=-1 << 90).take(0, 5).max() < 10_000


def test_windows_keep_together_what_is_read_together():
    order = Order(10_000, window=1000, chunk=100).take(0, 10_000)
    for start in range(0, 10_000, 1000):
        assert len(np.unique(order[start : start + 1000] // 100)) == 10


def test_batches_of_a_loader():
    batches = Batches(Order(1003, seed=2), 100, start=3)
    assert len(batches) == 8
    lists = list(batches)
    assert [len(each) for each in lists] == [100] * 7 + [3]
    assert lists == list(Batches(Order(1003, seed=2), 100))[3:]
    assert all(type(number) is int for number in lists[0])
    batches.set_epoch(4)
    assert len(batches) == 11 and list(batches) == list(Batches(Order(1003, seed=2, epoch=4), 100))
    assert len(Batches(Order(1003), 100, drop_last=True)) == len(list(Batches(Order(1003), 100, drop_last=True))) == 10
    assert list(Batches(Order(10), 5, start=9)) == []
    assert [len(each) for each in Batches(Order(0), 5)] == []


SMALL = [2, 4, 1, 7, 5, 0, 6, 8, 3, 9]
LARGE = [434568, 824316, 842506, 129062, 341116, 60266]
HUGE = [758449762310, 668792872801, 135421335025]
WINDOWED = [47800, 84116, 46725, 47787, 94677, 46665]
