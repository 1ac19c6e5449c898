"""What paging is said to cost."""

from __future__ import annotations

import numpy as np
import pytest

from strongroom.errors import UsageError
from strongroom.serve.plan.paging import CONSTANTS, PAGE, Paging, fit

LIMIT = 64 << 20


def test_the_fit_finds_what_made_the_points():
    true = Paging(30_000, 300, "test")
    sizes = [int(LIMIT * share) for share in (1.05, 1.1, 1.2, 1.5, 2, 3)]
    times = true.nanoseconds(np.array(sizes), np.array(sizes), LIMIT)
    found = fit(LIMIT, list(zip(sizes, map(float, times), strict=True)))
    assert found.page_ns == pytest.approx(30_000, rel=0.03)
    assert found.sharpness == pytest.approx(300, rel=0.05)


def test_too_few_points_are_no_fit():
    with pytest.raises(UsageError, match="1 arrays over the limit"):
        fit(LIMIT, [(LIMIT // 2, 5.0), (2 * LIMIT, 1e9)])


@pytest.mark.parametrize("paging", CONSTANTS.values(), ids=CONSTANTS)
def test_paging_begins_at_the_limit_and_ends_with_what_is_touched(paging: Paging):
    sizes = np.array([1, LIMIT, LIMIT + PAGE, 2 * LIMIT, 100 * LIMIT])
    added = paging.nanoseconds(sizes, sizes // 2, LIMIT)
    assert added[0] == added[1] == 0 < added[2] < added[3] < added[4]
    assert added[4] == pytest.approx(50 * LIMIT / PAGE * paging.page_ns, rel=0.01) or added[4] == 10**11
