"""What paging is said to cost."""

from __future__ import annotations

import numpy as np
import pytest

from strongroom.errors import UsageError
from strongroom.serve.plan.paging import CONSTANTS, PAGE, Paging, Point, fit

LIMIT = 64 << 20


def points(true: Paging, *shares: float) -> list[Point]:
    """Passes over so many times the limit, a tenth of it written again and again, as they would be seen."""
    found = []
    for share in shares:
        touched = int(LIMIT * share)
        once = touched * 9 // 10
        pages = (min(once, max(0, touched - LIMIT) * true.sharpness / 100) + max(0, touched - once - LIMIT)) / PAGE
        found.append(Point(touched, once, pages, pages * true.page_ns))
    return found


def test_the_fit_finds_what_made_the_points_and_foretells_others():
    true = Paging(30_000, 300, "test")
    found = fit(LIMIT, points(true, 0.9, 1.05, 1.1, 1.2, 2, 3))
    assert found.page_ns == pytest.approx(30_000, rel=0.03)
    assert found.sharpness == pytest.approx(300, rel=0.05)
    sizes = np.array([LIMIT * 23 // 20, 2 * LIMIT])
    assert found.nanoseconds(sizes, LIMIT) == pytest.approx(true.nanoseconds(sizes, LIMIT), rel=0.05)


def test_too_few_points_are_no_fit():
    with pytest.raises(UsageError, match="1 sizes over the limit"):
        fit(LIMIT, points(Paging(30_000, 300, "test"), 0.5, 0.9, 2))


@pytest.mark.parametrize("paging", CONSTANTS.values(), ids=CONSTANTS)
def test_paging_begins_where_what_is_touched_outgrows_the_limit_and_ends_with_all_of_it(paging: Paging):
    touched = np.array([1, LIMIT, LIMIT + PAGE, LIMIT + 20 * PAGE, 2 * LIMIT])
    added = paging.nanoseconds(touched, LIMIT)
    assert added[0] == added[1] == 0 < added[2] < added[3] < added[4]
    assert added[4] == pytest.approx(2 * LIMIT / PAGE * paging.page_ns, rel=0.01)
