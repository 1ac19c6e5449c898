"""What a training job costs and how long it takes on spot instances, along a trace. Pure functions, no clock.

The model:

- An instance runs whenever one is there and its price is not above the bid (`Trace.up`). When that ends it is gone at
  once: the two minutes' notice that EC2 often gives is not used.
- Each start boots for `boot_seconds`; if something was saved, it is restored for `restore_seconds`. Then come steps.
  With a mirror there is a commit after every `every` steps and after the last one; training stands still for
  `commit_seconds` meanwhile. What was not committed when the instance goes is lost. Without a mirror all is.
- An instance is paid by the second, at the price of the moment, from its start until it is taken away or the job ends;
  while it is out-bid nothing is paid: "You pay the Spot price that's in effect, billed to the nearest second" (AWS,
  "Overview of Amazon EC2 Spot Instances", section "How Spot Instances Work").
- `first_hour_free` adds a rule of EC2's: an instance that EC2 takes away in its first hour costs nothing (EC2 User
  Guide, "Billing for interrupted Spot Instances", Linux and Windows). It is off by default, since other markets have no
  such rule, and a bid chosen by it is one that counts on being interrupted early.

For each run, up to rounding: wall = waiting + starting + useful + lost + stall.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from strongroom.errors import UsageError
from strongroom.mirror.spot.traces import Floats, Trace

MAX_STEPS: Final = 10**12
FIRST_HOUR: Final = 3600.0
# Sums of seconds are rounded; a commit that ends in the moment in which the instance goes shall count.
_ROUNDING: Final = 1e-9


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be trained.

    Attributes:
        steps: of training, at least 1.
        step_seconds: for one of them, more than 0.
        boot_seconds: from the start of an instance until training, or restoring, begins.

    Raises:
        UsageError: a number makes no sense.
    """

    steps: int
    step_seconds: float
    boot_seconds: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= MAX_STEPS:
            raise UsageError(f"steps: {self.steps}, wanted 1 to {MAX_STEPS:,}")
        if not 0 < self.step_seconds < math.inf:
            raise UsageError(f"step seconds: {self.step_seconds:g}, wanted more than 0")
        _check_seconds("boot", self.boot_seconds)


@dataclass(frozen=True, slots=True)
class Saving:
    """How the state of training is saved.

    Attributes:
        every: steps between commits, at least 1.
        commit_seconds: that training stands still for a commit. Of an overlapped commit that is the copy only; that
            what the thread behind has not finished is lost too, this model leaves out.
        restore_seconds: for restoring at a start.

    Raises:
        UsageError: a number makes no sense.
    """

    every: int = 1
    commit_seconds: float = 0.0
    restore_seconds: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.every <= MAX_STEPS:
            raise UsageError(f"every: {self.every}, wanted 1 to {MAX_STEPS:,} steps")
        _check_seconds("commit", self.commit_seconds)
        _check_seconds("restore", self.restore_seconds)


@dataclass(frozen=True, eq=False)
class Outcome:
    """What became of a job. All times are seconds, money is USD.

    Attributes:
        job: what was to be done.
        bid: USD an hour; None for any price.
        every: steps between commits; None without a mirror.
        finished: whether the job ended before the trace did.
        steps: that are done: all of them, or what there is when the trace ends.
        starts: of instances.
        interruptions: how often an instance was taken away before the job ended.
        wall_seconds: from the beginning of the trace until the job ends, or the trace.
        waiting_seconds: of these without an instance.
        starting_seconds: booting and restoring.
        useful_seconds: in steps that were not lost.
        lost_seconds: in steps, begun or done, that had to be done again.
        stall_seconds: in commits, finished or not.
        cost: of all seconds with an instance.
        stops: when an instance was taken away, from the beginning of the trace.
        curve: of shape (points, 2): at that second that many steps were done, straight between the points.
    """

    job: Job
    bid: float | None
    every: int | None
    finished: bool
    steps: int
    starts: int
    interruptions: int
    wall_seconds: float
    waiting_seconds: float
    starting_seconds: float
    useful_seconds: float
    lost_seconds: float
    stall_seconds: float
    cost: float
    stops: Floats
    curve: Floats


class Comparison(NamedTuple):
    """The same job three ways."""

    without: Outcome
    mirrored: Outcome
    every_step: Outcome


@dataclass(frozen=True, eq=False)
class Sweep:
    """A job under every pair of bid and interval. Of shape (bids, intervals); infinite where the trace was too short.

    Attributes:
        bids: USD an hour; None for any price.
        intervals: steps between commits.
        wall_seconds: until the job ended.
        cost: in USD.
    """

    bids: tuple[float | None, ...]
    intervals: tuple[int, ...]
    wall_seconds: Floats
    cost: Floats


def simulate(
    trace: Trace, bid: float | None, job: Job, mirror: Saving | None = None, *, first_hour_free: bool = False
) -> Outcome:
    """Run `job` along `trace` from its beginning.

    Args:
        bid: the most to be paid, USD an hour; None: whatever it costs.
        mirror: how it is saved; None: not at all, so that each interruption loses everything.
        first_hour_free: an instance taken away in its first hour costs nothing.

    Raises:
        UsageError: the bid makes no sense.
    """
    starts, stops, paid = spells(trace, check_bid(bid))
    log: list[tuple[float, float]] = []
    run = _walk(starts, stops, paid, trace, job, mirror, first_hour_free, log)
    taken = np.array(stops[: run.interruptions], np.float64)
    waiting = max(0.0, run.wall - run.up)
    return Outcome(
        job, bid, mirror.every if mirror else None, run.finished, run.steps, run.starts, run.interruptions,
        run.wall, waiting, run.starting, run.useful, run.lost, run.stall, run.cost,
        taken, np.array(log, np.float64).reshape(-1, 2),
    )  # fmt: skip


def compare(trace: Trace, bid: float | None, job: Job, mirror: Saving, *, first_hour_free: bool = False) -> Comparison:
    """`job` without a mirror, with `mirror`, and with a commit after every step.

    Raises:
        UsageError: the bid makes no sense.
    """
    each = Saving(1, mirror.commit_seconds, mirror.restore_seconds)
    return Comparison(
        *(simulate(trace, bid, job, way, first_hour_free=first_hour_free) for way in (None, mirror, each))
    )


def sweep(
    trace: Trace,
    job: Job,
    mirror: Saving,
    bids: Sequence[float | None],
    intervals: Sequence[int],
    *,
    first_hour_free: bool = False,
) -> Sweep:
    """`job` under every pair of `bids` (USD an hour) and `intervals` (steps); `mirror` says what a commit costs.

    Takes about a microsecond for each pair and each time that the instance starts.

    Raises:
        UsageError: there is no bid or no interval, or one that makes no sense.
    """
    if not len(bids) or not len(intervals):
        raise UsageError(f"sweep: {len(bids)} bids and {len(intervals)} intervals, wanted at least one of each")
    ways = [Saving(int(every), mirror.commit_seconds, mirror.restore_seconds) for every in intervals]
    wall = np.full((len(bids), len(ways)), math.inf)
    cost = np.full((len(bids), len(ways)), math.inf)
    for row, bid in enumerate(bids):
        starts, stops, paid = spells(trace, check_bid(bid))
        for column, way in enumerate(ways):
            run = _walk(starts, stops, paid, trace, job, way, first_hour_free, None)
            if run.finished:
                wall[row, column], cost[row, column] = run.wall, run.cost
    return Sweep(tuple(bids), tuple(way.every for way in ways), wall, cost)


def best(tried: Sweep, *, deadline: float | None = None, budget: float | None = None) -> tuple[float | None, int]:
    """The bid and the interval that cost least, or with a budget alone those that take the least time within it.

    Args:
        deadline: seconds from the beginning of the trace in which the job has to end.
        budget: USD that it may cost.

    Raises:
        UsageError: no pair keeps that.
    """
    wall, cost = tried.wall_seconds, tried.cost
    fits = np.isfinite(cost)
    if not fits.any():
        raise UsageError(
            "best: the job ends before the trace under none of the bids, wanted one",
            hint="fewer steps, higher bids, more frequent commits, or a longer trace",
        )
    fastest, cheapest = float(wall[fits].min()), float(cost[fits].min())
    fits &= (wall <= (math.inf if deadline is None else deadline)) & (cost <= (math.inf if budget is None else budget))
    if not fits.any():
        wanted = [] if deadline is None else [f"{deadline / 3600:.4g} hours"]
        wanted += [] if budget is None else [f"{budget:.4g} USD"]
        raise UsageError(
            f"best: no bid and interval keep within {' and '.join(wanted)}",
            hint=f"the fastest takes {fastest / 3600:.4g} hours, the cheapest costs {cheapest:.4g} USD",
        )
    first, second = (wall, cost) if budget is not None and deadline is None else (cost, wall)
    order = np.lexsort((second.ravel(), first.ravel(), ~fits.ravel()))
    row, column = divmod(int(order[0]), len(tried.intervals))
    return tried.bids[row], tried.intervals[column]


def young(commit_seconds: float, between: float) -> float:
    """Seconds of work between commits after Young, "A first order approximation to the optimum checkpoint interval",
    CACM 17(9), 1974: sqrt(2 C M), for commits of C seconds and interruptions `between` = M seconds apart on average.
    """
    return math.sqrt(2 * commit_seconds * between)


def daly(commit_seconds: float, between: float) -> float:
    """The same after Daly, "A higher order estimate of the optimum checkpoint interval for restart dumps", Future
    Generation Computer Systems 22(3), 2006, eq. (37): with x = C / 2M below 1,
    sqrt(2 C M) (1 + sqrt(x) / 3 + x / 9) - C, else M.

    Both take interruptions for a Poisson process, which those of a price trace are not: `sweep` tries instead.
    """
    if commit_seconds >= 2 * between:
        return between
    x = commit_seconds / (2 * between)
    return young(commit_seconds, between) * (1 + math.sqrt(x) / 3 + x / 9) - commit_seconds


def daly_steps(trace: Trace, bid: float | None, job: Job, mirror: Saving) -> int:
    """Daly's interval in steps, 1 to `job.steps`, for the mean time that an instance runs in `trace` under `bid`.

    Raises:
        UsageError: the bid makes no sense.
    """
    interruptions = trace.interruptions(check_bid(bid))
    if not interruptions:
        return job.steps  # nothing to be ready for: one commit, at the end
    between = trace.share(bid) * trace.seconds / interruptions
    return max(1, min(job.steps, round(daly(mirror.commit_seconds, between) / job.step_seconds)))


class _Run(NamedTuple):
    """An `Outcome` without what is drawn; `up` is the seconds with an instance."""

    finished: bool
    steps: int
    starts: int
    interruptions: int
    wall: float
    up: float
    starting: float
    useful: float
    lost: float
    stall: float
    cost: float


def spells(trace: Trace, bid: float | None) -> tuple[list[float], list[float], Floats]:
    """When the instance starts, when it stops, and what was paid by each time of the trace if it ran all along."""
    up = np.concatenate(([False], trace.up(bid), [False]))
    edges = np.flatnonzero(up[1:] != up[:-1])
    paid = np.concatenate(([0.0], np.cumsum(np.diff(trace.times) * trace.prices / 3600)))
    return trace.times[edges[::2]].tolist(), trace.times[edges[1::2]].tolist(), paid


def _walk(
    starts: list[float],
    stops: list[float],
    paid: Floats,
    trace: Trace,
    job: Job,
    mirror: Saving | None,
    first_hour_free: bool,
    log: list[tuple[float, float]] | None,
) -> _Run:
    # Without a mirror: one commit that takes no time, after the last step.
    every, commit, restore = (
        (mirror.every, mirror.commit_seconds, mirror.restore_seconds) if mirror else (job.steps, 0.0, 0.0)
    )
    step = job.step_seconds
    cycle = every * step + commit
    kept, shown, finished, count = 0, 0, False, 0
    up = starting = useful = lost = stall = 0.0
    wall = trace.seconds
    billed: list[tuple[float, float]] = []
    for start, stop in zip(starts, stops, strict=True):
        count += 1
        head = job.boot_seconds + (restore if kept else 0.0)
        run = stop - start - head
        left = job.steps - kept
        commits = -(-left // every) if mirror else 0
        need = left * step + commits * commit
        if run > 0 and need <= run * (1 + _ROUNDING):
            wall = min(start + head + need, trace.seconds)
            starting += head
            useful += left * step
            stall += commits * commit
            up += wall - start
            billed.append((start, wall))
            if log is not None:
                log += [(start + head, kept), (wall, job.steps)]
            finished, kept, shown = True, job.steps, job.steps
            break
        last = stop >= trace.seconds
        up += stop - start
        if last or not first_hour_free or stop - start >= FIRST_HOUR:
            billed.append((start, stop))
        starting += min(head, stop - start)
        if run <= 0:
            shown = kept
            continue
        whole = min(int(run / cycle + _ROUNDING), (left - 1) // every)
        rest = max(0.0, run - whole * cycle)
        begun = min(rest, min(every, left - whole * every) * step)
        before = kept
        kept += whole * every
        useful += whole * every * step
        stall += whole * commit + rest - begun
        shown = kept + int(begun / step + _ROUNDING)
        if log is not None:
            log += [(start + head, before), (stop, kept + begun / step)]
            if not last:
                log.append((stop, kept))
        if last:
            useful += begun
        else:
            lost += begun
            shown = kept
    interruptions = count - (1 if finished or (stops and stops[-1] >= trace.seconds) else 0)
    return _Run(
        finished, shown, count, interruptions, wall, up, starting, useful, lost, stall, bill(trace, billed, paid)
    )


def bill(trace: Trace, billed: Sequence[tuple[float, float]], paid: Floats) -> float:
    """What an instance cost from each first to each second moment, in USD; `paid` as `spells` gives it."""
    ends = np.interp(np.array(billed, np.float64).reshape(-1, 2), trace.times, paid)
    return float(max(0.0, (ends[:, 1] - ends[:, 0]).sum()))


def check_bid(bid: float | None) -> float | None:
    """Raises UsageError if it makes no sense."""
    if bid is not None and not 0 <= bid < math.inf:
        raise UsageError(f"bid: {bid:g}, wanted 0 or more USD an hour")
    return bid


def _check_seconds(name: str, seconds: float) -> None:
    if not 0 <= seconds < math.inf:
        raise UsageError(f"{name} seconds: {seconds:g}, wanted 0 or more")
