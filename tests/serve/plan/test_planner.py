"""The planner against every plan there is, and what it says where there is none."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.plan_search import as_good, every_small_ask, random_asks, search, worth
from strongroom.errors import ServeError, UsageError
from strongroom.serve.plan import Ask, Costs, Enclaves, Paging, Placed, Transfer, solve
from strongroom.serve.plan.costs import NEVER
from strongroom.serve.plan.paging import PAGE
from strongroom.serve.plan.solution import Tables

FREE = Transfer(0, 0)


def costs(weights: list[int], *, ns: int = 10, frontier: int = 1, **more: object) -> Costs:
    n = len(weights)
    return Costs(weights, [0] * n, [ns] * n, [frontier] * (n + 1), **more)  # type: ignore[arg-type]


@st.composite
def asks(draw: st.DrawFn) -> Ask:
    n = draw(st.integers(1, 6))
    several = draw(st.booleans())
    few, some = st.integers(0, 3), st.integers(0, 200)
    number = draw(st.sampled_from([few, some]))

    def numbers(count: int) -> list[int]:
        return draw(st.lists(number, min_size=count, max_size=count))

    weights = [each + 50 for each in numbers(n)]
    pair = sorted(draw(st.lists(st.integers(0, n - 1), min_size=2, max_size=2, unique=True))) if n > 1 else []
    ties = [(*pair, draw(st.integers(0, 50)))] if pair and draw(st.booleans()) else []
    kinds = [
        Enclaves(
            draw(st.integers(60, 900)),
            draw(st.integers(1, 3) if several else st.none() | st.integers(1, 6)),
            draw(st.sampled_from([50, 100, 300])),
        )
        for _ in range(2 if several else 1)
    ]
    return Ask(
        Costs(weights, numbers(n), numbers(n), numbers(n + 1), ties, draw(few), draw(few)),
        kinds,
        Transfer(draw(number), draw(number) * 1000),
        draw(st.sampled_from(["latency", "throughput"])),
        draw(st.none() | st.builds(Paging, st.integers(1, 10_000), st.sampled_from([100, 250]), st.just("test"))),
        draw(st.sampled_from([None, None, 2])),
    )


@settings(max_examples=60, deadline=None)
@given(asks())
def test_no_plan_is_better_than_the_planners(ask: Ask):
    assert as_good(ask)


def test_chains_of_up_to_twelve_units_are_planned_as_by_trying_all():
    """Both objectives, replicas, unequal enclaves, shared weights, with and without paging: a sample of what
    benchmarks/plan.py tries."""
    assert [ask for ask in random_asks(60, seed=1) if not as_good(ask)] == []
    assert [ask for ask in itertools.islice(every_small_ask(), 0, None, 499) if not as_good(ask)] == []


def test_what_is_tried_is_every_plan():
    """Of three units, without counts: 4 ways to cut, each with the best of its figures; and worth says the same."""
    ask = Ask(Costs([1, 1, 1], [0] * 3, [5, 1, 5], [0] * 4), [Enclaves(9)], Transfer(1, 0), "throughput")
    ways = [[0, 3], [0, 1, 3], [0, 2, 3], [0, 1, 2, 3]]
    ranks = [worth(ask, [Placed(a, b, 0) for a, b in itertools.pairwise(way)]) for way in ways]
    assert ranks == [(11, 1, 1), (6, 2, 2), (6, 2, 2), (5, 3, 3)]
    assert search(ask) == (5, 3, 3)


def test_of_equal_plans_the_one_with_fewer_stages_counts():
    assert len(solve(Ask(costs([1] * 8), [Enclaves(100)], FREE)).stages) == 1
    assert len(solve(Ask(costs([1] * 8, frontier=0), [Enclaves(2)], FREE)).stages) == 4


def test_the_bottleneck_has_replicas():
    chain = Costs([9, 9, 9], [0] * 3, [10, 60, 10], [0] * 4)
    found = solve(Ask(chain, [Enclaves(10, 8)], FREE, "throughput"))
    assert [each.replicas for each in found.stages] == [1, 6, 1]
    assert found.period_ns == 10


def test_on_shared_cores_the_period_is_all_the_work():
    found = solve(Ask(costs([9, 9, 9]), [Enclaves(12)], FREE, "throughput", shared=2))
    assert (found.latency_ns, found.period_ns) == (30, 15)


def test_shared_weights_count_once_in_a_stage():
    apart = costs([50, 10, 50], frontier=0)
    with pytest.raises(ServeError):
        solve(Ask(apart, [Enclaves(60, 1)], FREE))
    tied = costs([50, 10, 50], frontier=0, ties=[(0, 2, 50)])
    assert len(solve(Ask(tied, [Enclaves(60, 1)], FREE)).stages) == 1


def test_a_little_paging_is_taken_where_it_is_cheaper_than_another_cut():
    chain = costs([4096] * 4, frontier=0)
    dear, cheap = Transfer(10**6, 0), Paging(10, 100, "test")
    kinds = [Enclaves(4 * 4096 - 1)]
    assert len(solve(Ask(chain, kinds, dear)).stages) == 2
    assert len(solve(Ask(chain, kinds, dear, paging=cheap)).stages) == 1
    assert len(solve(Ask(chain, kinds, FREE, paging=Paging(10**6, 100, "test"))).stages) == 2


def test_a_faster_and_larger_enclave_gets_what_needs_it():
    chain = Costs([5, 40, 5], [0] * 3, [10, 900, 10], [0] * 4)
    found = solve(Ask(chain, [Enclaves(10, 4, 100), Enclaves(50, 1, 300)], FREE))
    assert [each.kind for each in found.stages if each.first <= 1 < each.last] == [1]


def test_what_does_not_fit_is_named_and_what_would_fit_is_said():
    chain = costs([1 << 20, 9 << 20, 1 << 20], names=("Conv", "Gemm", "Relu"))
    with pytest.raises(ServeError, match=r"unit 1 \(Gemm\): takes 9.00 MiB, wanted at most 4.00 MiB") as caught:
        solve(Ask(chain, [Enclaves(4 << 20)], FREE))
    assert "--memory 10MiB" in str(caught.value.hint) and "--quantize" in str(caught.value.hint)
    with pytest.raises(ServeError, match="got 2, wanted at least 3"):
        solve(Ask(costs([9, 9, 9]), [Enclaves(12, 2)], FREE))


def test_a_thousand_units_keep_their_sums_exact():
    found = solve(Ask(costs([1] * 1000, ns=10**11), [Enclaves(400, 3)], FREE))
    assert found.latency_ns == 1000 * 10**11 and len(found.stages) == 3


def test_too_many_ways_are_refused_and_not_begun():
    kinds = [Enclaves(1000, 100, 100, f"kind {i}") for i in range(5)]
    with pytest.raises(UsageError, match="ways to use 5 kinds"):
        solve(Ask(costs([900] * 500), kinds, FREE, "throughput"))


def test_numbers_that_make_no_sense_are_refused():
    for broken in ([-1], [1 << 49]):
        with pytest.raises(UsageError):
            costs(broken)
    with pytest.raises(UsageError, match="in order"):
        costs([1, 1], ties=[(1, 0, 1)])


def test_stages_that_are_no_plan_are_refused():
    tables = Tables(Ask(costs([9, 9]), [Enclaves(10, 1)], FREE))
    assert tables.memory[1, 1] == NEVER
    for stages in ([Placed(0, 1, 0)], [Placed(0, 1, 0), Placed(1, 2, 0)], [Placed(0, 2, 0)]):
        with pytest.raises(UsageError):
            tables.judge(stages)


def test_what_a_stage_holds_and_no_unit_touches_does_not_page():
    paging = Paging(1000, 100, "test")

    def spent(**touched: object) -> int:
        chain = Costs([10 * PAGE, 10 * PAGE], [50 * PAGE, 0], [10, 10], [0] * 3, **touched)  # type: ignore[arg-type]
        tables = Tables(Ask(chain, [Enclaves(30 * PAGE)], FREE, paging=paging))
        return tables.judge([Placed(0, 2, 0)]).latency_ns

    assert spent() == 20 + 40 * 1000  # all 70 pages
    assert spent(reads=[10 * PAGE] * 2, active=[5 * PAGE, 0]) == 20
    assert spent(reads=[10 * PAGE, PAGE], active=[21 * PAGE, 0]) == 20 + 2 * 1000
    assert spent(measured=[(0, 2, 70 * PAGE, 31 * PAGE)]) == 20 + 1000


def test_what_was_measured_counts_and_not_what_its_hungriest_unit_takes_alone():
    chain = Costs([5, 5], [90, 0], [10, 10], [0] * 3, fixed=1, measured=[(0, 2, 20, 20)])
    assert len(solve(Ask(chain, [Enclaves(20)], FREE)).stages) == 1
    with pytest.raises(ServeError):
        solve(Ask(chain, [Enclaves(19)], FREE))
    with pytest.raises(UsageError, match="measured runs"):
        costs([1, 1], measured=[(1, 1, 1, 1)])
