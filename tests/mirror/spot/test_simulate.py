"""The simulator: numbers worked out by hand, and what holds for every trace, bid and job."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strongroom.errors import UsageError
from strongroom.mirror.spot import Job, Saving, best, compare, daly, daly_steps, parse_csv, simulate, sweep, young

fuzz = settings(max_examples=200, deadline=None)

# A minute each, USD an hour: 3 minutes at 60, one at 180, 4 at 60, one at 180, 3 at 120.
TINY = parse_csv("60\n60\n60\n180\n60\n60\n60\n60\n180\n120\n120\n120\n")


def facts(way):
    return (
        way.finished, way.steps, way.interruptions, way.wall_seconds, way.waiting_seconds, way.starting_seconds,
        way.useful_seconds, way.lost_seconds, way.stall_seconds, round(way.cost, 9),
    )  # fmt: skip


# By hand. A step is 50 s and there are 5 of them; a boot 10 s, a restore 5 s, a commit 10 s. The instance is there from
# 0 to 180 s and from 240 to 480 s at 1 USD a minute, and from 540 to 720 s at 2.


def test_without_a_mirror_by_hand():
    """Each spell begins anew and is too short for 5 steps: 170 s, then 230 s, then 170 s of work, lost but the last."""
    way = simulate(TINY, 120, Job(5, 50, 10))
    assert facts(way) == (False, 3, 2, 720, 120, 30, 170, 400, 0, 3 + 4 + 6)
    assert way.stops.tolist() == [180, 480]
    assert way.every is None


def test_with_a_mirror_by_hand():
    """A commit every 2 steps. First spell: boot 10, steps 100, commit 10, then 50 s of step 3 and 10 s of step 4: lost.
    Second spell: boot and restore 15, steps 100, commit 10, step 50 s, last commit 10: ends 185 s after its start."""
    way = simulate(TINY, 120, Job(5, 50, 10), Saving(2, 10, 5))
    assert facts(way) == (True, 5, 1, 240 + 185, 60, 25, 250, 60, 30, round(3 + 185 / 60, 9))
    assert way.curve.tolist() == [[10, 0], [180, 3.2], [180, 2], [255, 2], [425, 5]]


def test_with_a_commit_after_every_step_by_hand():
    """First spell: 2 cycles of 60 s, then 50 s of step 3, whose commit was about to begin. Second: 3 cycles."""
    way = simulate(TINY, 120, Job(5, 50, 10), Saving(1, 10, 5))
    assert facts(way) == (True, 5, 1, 240 + 195, 60, 25, 250, 50, 50, round(3 + 195 / 60, 9))


def test_a_bid_at_the_price_runs_and_one_below_does_not():
    assert simulate(TINY, 60, Job(5, 50)).starts == 2
    assert simulate(TINY, 59.999, Job(5, 50)).starts == 0
    assert simulate(TINY, 59.999, Job(5, 50)).cost == 0
    assert simulate(TINY, None, Job(5, 50)).interruptions == 0


def test_an_instance_that_goes_while_it_boots_does_nothing_and_is_paid():
    way = simulate(TINY, 120, Job(1, 1, 1000), Saving())
    assert facts(way) == (False, 0, 2, 720, 120, 600, 0, 0, 0, 13)


def test_first_hour_free():
    """Taken away in the first hour: nothing to pay; the last one ran to the end of the trace and is paid."""
    assert simulate(TINY, 120, Job(5, 50, 10), first_hour_free=True).cost == pytest.approx(6)
    hours = parse_csv("1\n1\n9\n1\n9\n", interval=3600)
    assert simulate(hours, 1, Job(10**6, 1), first_hour_free=True).cost == pytest.approx(3)
    assert simulate(hours, 1, Job(10**6, 1)).cost == pytest.approx(3)


def test_without_a_mirror_a_job_longer_than_any_spell_never_ends():
    trace = parse_csv(("1\n" * 9 + "3\n") * 50)
    without, mirrored, every_step = compare(trace, 2, Job(600, 1), Saving(10, 0.1))
    assert not without.finished and without.useful_seconds == 0
    assert mirrored.finished and every_step.finished
    assert mirrored.cost < every_step.cost < without.cost


def test_a_higher_bid_can_mean_more_interruptions():
    """It sleeps through less. That is why no test here says otherwise."""
    trace = parse_csv("5\n5\n2\n5\n1\n5\n")
    assert [trace.interruptions(bid) for bid in (0, 1, 2, 5)] == [0, 1, 2, 0]
    assert [trace.share(bid) for bid in (0, 1, 2, 5)] == [0, 1 / 6, 2 / 6, 1]


def test_daly_as_in_the_paper():
    """The values that the captions of the paper's figures 3 to 5 give: commits of 5 min, M = 24 h, 6 h, 15 min."""
    assert [round(daly(5, between), 1) for between in (1440, 360, 15)] == [116.7, 56.7, 9.1]
    assert daly(10, 4) == 4
    assert young(5, 1440) == 120
    assert daly_steps(TINY, 120, Job(100, 1), Saving(1, 1)) == round(daly(1, 300))
    assert daly_steps(TINY, None, Job(100, 1), Saving(1, 1)) == 100
    assert daly_steps(TINY, 120, Job(100, 1), Saving(1, 0)) == 1


def test_best_is_what_trying_each_gives():
    job, mirror = Job(5, 50, 10), Saving(1, 10, 5)
    tried = sweep(TINY, job, mirror, [60, 120, 180], [1, 2, 5])
    for row, bid in enumerate(tried.bids):
        for column, every in enumerate(tried.intervals):
            way = simulate(TINY, bid, job, Saving(every, 10, 5))
            expected = (way.wall_seconds, way.cost) if way.finished else (math.inf, math.inf)
            assert (tried.wall_seconds[row, column], tried.cost[row, column]) == expected
    assert best(tried) == (60, 2)
    assert best(tried, deadline=300) == (180, 5)
    assert best(tried, budget=100) == (180, 5)
    assert best(tried, budget=6.2) == (60, 2)
    with pytest.raises(UsageError, match=r"no bid and interval keep within 0\.01 hours and 1 USD") as caught:
        best(tried, deadline=36, budget=1)
    assert caught.value.hint.startswith("the fastest takes 0.07")
    with pytest.raises(UsageError, match="under none of the bids"):
        best(sweep(TINY, Job(10**6, 1), mirror, [60], [1]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Job(0, 1), "steps: 0"),
        (lambda: Job(1, 0), "step seconds: 0"),
        (lambda: Job(1, math.nan), "step seconds: nan"),
        (lambda: Job(1, 1, -1), "boot seconds: -1"),
        (lambda: Saving(0), "every: 0"),
        (lambda: Saving(1, math.inf), "commit seconds: inf"),
        (lambda: Saving(1, 1, -1), "restore seconds: -1"),
        (lambda: simulate(TINY, math.nan, Job(1, 1)), "bid: nan"),
        (lambda: sweep(TINY, Job(1, 1), Saving(), [], [1]), "0 bids and 1 intervals"),
        (lambda: sweep(TINY, Job(1, 1), Saving(), [-1], [1]), "bid: -1"),
    ],
)
def test_arguments_that_make_no_sense(make, message):
    with pytest.raises(UsageError, match=message):
        make()


# What holds always. Prices come from few values, so that bids meet them.

traces = st.lists(st.sampled_from([0, 1, 2, 3, 9]), min_size=1, max_size=60).map(
    lambda prices: parse_csv("\n".join(map(str, prices)))
)
bids = st.sampled_from([0.0, 1.0, 2.0, 2.5, 3.0, None])
seconds = st.floats(0, 100)
jobs = st.builds(Job, st.integers(1, 200), st.floats(0.01, 200), seconds)
mirrors = st.builds(Saving, st.integers(1, 50), seconds, seconds)


@fuzz
@given(traces, bids, jobs, st.none() | mirrors)
def test_every_second_and_every_step_is_accounted_for(trace, bid, job, mirror):
    way = simulate(trace, bid, job, mirror)
    parts = (
        way.waiting_seconds, way.starting_seconds, way.useful_seconds, way.lost_seconds, way.stall_seconds, way.cost,
    )  # fmt: skip
    assert min(parts) >= 0
    assert sum(parts[:-1]) == pytest.approx(way.wall_seconds, abs=1e-6)
    assert way.wall_seconds <= trace.seconds
    assert way.steps == job.steps if way.finished else way.wall_seconds == trace.seconds
    assert way.steps * job.step_seconds <= way.useful_seconds + 1e-6
    assert way.interruptions == len(way.stops) and way.starts - way.interruptions in (0, 1)
    assert way.cost <= trace.seconds / 3600 * trace.prices.max() + 1e-9
    assert (np.diff(way.curve[:, 0]) >= 0).all()


@fuzz
@given(traces, bids, jobs, mirrors)
def test_with_a_commit_every_step_an_interruption_loses_one_step_at_most(trace, bid, job, mirror):
    way = compare(trace, bid, job, mirror).every_step
    assert way.lost_seconds <= way.interruptions * job.step_seconds + 1e-6


@fuzz
@given(traces, bids, jobs, mirrors)
def test_with_a_mirror_an_interruption_loses_one_interval_at_most(trace, bid, job, mirror):
    way = simulate(trace, bid, job, mirror)
    assert way.lost_seconds <= way.interruptions * mirror.every * job.step_seconds + 1e-6


@fuzz
@given(jobs, mirrors)
def test_without_interruptions_the_three_ways_differ_by_the_stall_only(job, mirror):
    without, mirrored, every_step = compare(parse_csv("1\n", interval=1e6), 1, job, mirror)
    for way, commits in ((without, 0), (mirrored, -(-job.steps // mirror.every)), (every_step, job.steps)):
        assert way.finished
        assert way.stall_seconds == pytest.approx(commits * mirror.commit_seconds)
        assert way.wall_seconds == pytest.approx(without.wall_seconds + way.stall_seconds)
        assert way.lost_seconds == way.waiting_seconds == 0


@fuzz
@given(traces, st.tuples(bids, bids), jobs, st.none() | mirrors)
def test_a_higher_bid_never_runs_less_and_never_ends_later(trace, pair, job, mirror):
    """As long as a restore takes no longer than what it saves: else to begin anew may win."""
    low, high = sorted(pair, key=lambda bid: math.inf if bid is None else bid)
    if mirror:
        saved = min(mirror.every, job.steps) * job.step_seconds + mirror.commit_seconds
        mirror = Saving(mirror.every, mirror.commit_seconds, min(mirror.restore_seconds, saved))
    assert trace.share(low) <= trace.share(high)
    below, above = simulate(trace, low, job, mirror), simulate(trace, high, job, mirror)
    assert above.wall_seconds <= below.wall_seconds + 1e-6
    assert above.finished or not below.finished


@fuzz
@given(traces, bids, jobs)
def test_a_mirror_that_costs_nothing_never_ends_later_than_none(trace, bid, job):
    without, mirrored, every_step = compare(trace, bid, job, Saving(3))
    assert every_step.wall_seconds <= mirrored.wall_seconds + 1e-6 <= without.wall_seconds + 2e-6
    assert every_step.lost_seconds <= mirrored.lost_seconds + 1e-6


def tick_by_tick(trace, bid, job, saving):
    """The same model, a second at a time: what an instance does is a queue that is thrown away when it goes."""
    up, kept, queue, stops, cost = trace.up(bid), 0, None, 0, 0.0
    for second in range(int(trace.seconds)):
        row = second // 60
        if not up[row]:
            stops += queue is not None
            queue = None
            continue
        if queue is None:
            head = job.boot_seconds + (saving.restore_seconds if saving and kept else 0)
            queue = [None] * int(head)
            for step in range(kept + 1, job.steps + 1):
                queue += [None] * int(job.step_seconds)
                if saving and (step % saving.every == 0 or step == job.steps):
                    queue += [None] * int(saving.commit_seconds)
                    queue[-1] = step
            queue[-1] = job.steps
        cost += trace.prices[row] / 3600
        done = queue.pop(0)
        kept = kept if done is None else done
        if not queue:
            return True, second + 1, stops, kept, cost
    stops += queue is not None and not up[-1]
    return False, int(trace.seconds), stops, kept, cost


whole = st.integers(0, 40)


@fuzz
@given(
    traces, bids, st.builds(Job, st.integers(1, 20), st.integers(1, 90), whole),
    st.none() | st.builds(Saving, st.integers(1, 9), whole, whole),
)  # fmt: skip
def test_as_when_every_second_is_walked(trace, bid, job, saving):
    way = simulate(trace, bid, job, saving)
    finished, wall, stops, kept, cost = tick_by_tick(trace, bid, job, saving)
    assert (way.finished, way.wall_seconds) == (finished, wall)
    assert way.interruptions == stops
    assert way.cost == pytest.approx(cost)
    # What is shown at the trace's end has steps that no commit holds.
    assert way.steps == kept if finished else way.steps >= kept
