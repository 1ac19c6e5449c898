"""Goals, fair comparisons, verdicts.

- Nothing is decided by eye: each claim is a `Goal`, written down before it is measured, and holds or fails.
- Ours and the peer run in turns, A B A B, so that a machine that slows down slows both. A goal is held against the
  median of the rounds' ratios; the medians and spreads (interquartile ranges) of both sides stand beside it.
- A comparison may end early, once its bound lies clear of everything seen, on whichever side: that favours neither.
- A goal that was declared and not measured fails. Only `--quick` and `--only` leave goals out, and the report says
  which.
- A quick run ends within a minute: after `QUICK_BUDGET` no goal and no optional round begins, at `QUICK_LIMIT` what
  still runs is cut off.

An area is a module with `GOALS` and `measure(bench)`; copy `benchmarks/template.py` and add its name to `AREAS` in
`benchmarks/__main__.py`.
"""

from __future__ import annotations

import contextlib
import signal
import statistics
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Literal, Protocol

from benchmarks import peers

Direction = Literal["at most", "at least"]
Verdict = Literal["holds", "fails", "full run", "left out", "not measured"]
Figure = Callable[[], float]
Say = Callable[[str], None]

QUICK_BUDGET = 40.0  # seconds
QUICK_LIMIT = 55.0  # the rest of the minute is for starting and reporting
FEWEST_ROUNDS = 3


@dataclass(frozen=True)
class Goal:
    """A claim that a measurement can refute.

    Args:
        name: unique in its area, short: it heads a row of the table.
        wanted: the bound.
        unit: of `wanted`; "x" where it is a ratio of ours to a peer.
        direction: on which side of `wanted` the measured value must lie; equal holds.
        full_only: too long for `--quick`.
    """

    name: str
    wanted: float
    unit: str
    direction: Direction
    full_only: bool = False

    def holds(self, value: float) -> bool:
        """Whether a measured value reaches the goal; one that is not a number does not."""
        return value <= self.wanted if self.direction == "at most" else value >= self.wanted


@dataclass(frozen=True)
class Sample:
    """What several runs of one thing gave, in the order in which they ran; at least one."""

    values: tuple[float, ...]
    unit: str

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("sample: got no values, wanted at least one")

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def spread(self) -> float:
        """The interquartile range; 0 for a single run."""
        if len(self.values) == 1:
            return 0.0
        low, _, high = statistics.quantiles(self.values, n=4, method="inclusive")
        return high - low


@dataclass(frozen=True)
class Result:
    """What became of one goal.

    Attributes:
        value: what the goal was held against; None if it was not measured.
        ours: our runs.
        peer, peer_name, ratios: the peer's runs, and ours / peer of each round, where there is a peer.
    """

    goal: Goal
    verdict: Verdict
    value: float | None = None
    ours: Sample | None = None
    peer: Sample | None = None
    peer_name: str | None = None
    ratios: Sample | None = None


class Bench:
    """What an area measures with. Each goal is measured once.

    Attributes:
        complete: whether to measure also what no goal names: a full run without `only`, or one that draws.

    Args:
        goals: those of the area.
        quick: leave out what is `full_only`, and begin nothing after `QUICK_BUDGET` seconds.
        only: measure only goals with one of these texts in their names; all, if there is none.
        plots: a directory for pictures of what is measured, if they are wanted.
        say: is given a line of progress for each goal, and what an area has to tell besides.
        clock: seconds, for tests.
    """

    def __init__(
        self,
        goals: Sequence[Goal],
        *,
        quick: bool,
        only: Sequence[str] = (),
        plots: Path | None = None,
        say: Say = lambda text: None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._goals = {goal.name: goal for goal in goals}
        if len(self._goals) != len(goals):
            raise ValueError(f"goals: got {[goal.name for goal in goals]}, wanted each name once")
        self.quick = quick
        self.plots = plots
        self.complete = not quick and (not only or plots is not None)
        self._say = say
        self._clock = clock
        self._began = self._told = clock()
        self._results: dict[str, Result] = {}
        self._unwanted = {name for name in self._goals if only and not any(text in name for text in only)}
        self._left_out = {goal.name for goal in goals if quick and goal.full_only}

    def wants(self, *names: str) -> bool:
        """Whether this run is to measure a goal, or any of several: ask before preparing something expensive for it."""
        if self.quick and not self._time_left():
            self.leave_rest()
        return bool({self._goals[name].name for name in names} - self._left_out - self._unwanted)

    def compare(
        self,
        name: str,
        ours: Figure,
        peer: Figure,
        *,
        peer_name: str,
        unit: str,
        rounds: int = 9,
        warmup: int = 1,
        until_clear: bool = False,
    ) -> None:
        """Hold a goal against ours / peer, in turns.

        Args:
            ours: runs once and returns its figure (`timed` makes one of a duration).
            peer: the same for what we are compared with.
            peer_name: as the table calls it, its version included where that matters.
            unit: of both figures.
            rounds: how many of each; a quick run may stop after `FEWEST_ROUNDS`.
            warmup: rounds before those, which do not count.
            until_clear: stop after `FEWEST_ROUNDS` or more, once the bound is further from every ratio than they are
                from one another.
        """
        if not self.wants(name):
            return
        for _ in range(warmup):
            ours(), peer()
        pairs: list[tuple[float, float]] = []
        for _ in self._rounds(rounds):
            pairs.append((ours(), peer()))
            if until_clear and _is_clear(self._goals[name].wanted, [a / b for a, b in pairs if b]):
                break
        ratios = Sample(tuple(a / b if b else float("nan") for a, b in pairs), "x")
        self._keep(
            name,
            value=ratios.median,
            ours=Sample(tuple(a for a, _ in pairs), unit),
            peer=Sample(tuple(b for _, b in pairs), unit),
            peer_name=peer_name,
            ratios=ratios,
        )

    def measure(self, name: str, ours: Figure, *, rounds: int = 9, warmup: int = 1) -> None:
        """Hold a goal against the median of a figure of ours, which is in the goal's unit."""
        if not self.wants(name):
            return
        for _ in range(warmup):
            ours()
        self.record(name, *[ours() for _ in self._rounds(rounds)])

    def record(self, name: str, *values: float) -> None:
        """Hold a goal against the median of figures had in some other way, in the goal's unit."""
        sample = Sample(values, self._goals[name].unit)
        self._keep(name, value=sample.median, ours=sample)

    def timed(self, action: Callable[[], object], *, per: float = 1.0) -> Figure:
        """A figure: the milliseconds that one call of `action` takes, divided by `per`."""

        def milliseconds() -> float:
            began = self._clock()
            action()
            return (self._clock() - began) * 1000 / per

        return milliseconds

    def say(self, what: str, *, rounds: int = 1) -> None:
        """A line of progress, with the time since the one before."""
        now = self._clock()
        times = f"{now - self._told:.1f} s" if rounds == 1 else f"{rounds} rounds, {now - self._told:.1f} s"
        self._told = now
        self._say(f"{what} ({times})")

    def peer_environment(self, name: str, requirements: Sequence[str]) -> Path:
        """The Python of a peer's own environment (`peers.environment`), which a quick run never makes.

        Raises:
            peers.UnavailableError: it is not there and this run is quick. Uncaught, it leaves the rest to a full run.
        """
        return peers.environment(name, requirements, make=not self.quick)

    def leave_rest(self) -> None:
        """Leave every goal that is not measured yet to a full run."""
        self._left_out |= self._goals.keys() - self._results.keys()

    def results(self) -> list[Result]:
        """One for each goal, in the order declared."""
        return [self._results.get(name) or Result(goal, self._missing(name)) for name, goal in self._goals.items()]

    def _missing(self, name: str) -> Verdict:
        if name in self._unwanted:
            return "left out"
        return "full run" if name in self._left_out else "not measured"

    def _time_left(self) -> bool:
        return self._clock() - self._began < QUICK_BUDGET

    def _rounds(self, wanted: int) -> Iterator[int]:
        for done in range(wanted):
            if self.quick and done >= FEWEST_ROUNDS and not self._time_left():
                return
            yield done

    def _keep(
        self,
        name: str,
        *,
        value: float,
        ours: Sample,
        peer: Sample | None = None,
        peer_name: str | None = None,
        ratios: Sample | None = None,
    ) -> None:
        goal = self._goals[name]
        if name in self._results:
            raise ValueError(f"goal {name}: measured twice, wanted once")
        verdict: Verdict = "holds" if goal.holds(value) else "fails"
        self._results[name] = Result(goal, verdict, value, ours, peer, peer_name, ratios)
        self.say(f"{name}: {value:.3g} {goal.unit}, {verdict}", rounds=len(ours.values))


def _is_clear(bound: float, ratios: Sequence[float]) -> bool:
    if len(ratios) < FEWEST_ROUNDS:
        return False
    low, high = min(ratios), max(ratios)
    return not low - (high - low) <= bound <= high + (high - low)


class Area(Protocol):
    """What a module of this package offers."""

    GOALS: Sequence[Goal]

    def measure(self, bench: Bench) -> None:
        """Measure every goal that `bench` wants."""


@dataclass(frozen=True)
class AreaReport:
    """One area's results, and the stack trace if it did not run to its end."""

    name: str
    results: Sequence[Result]
    seconds: float
    trouble: str | None = None

    @property
    def holds(self) -> bool:
        """Whether the area ran to its end, measured something, and every goal that it should measure holds.

        A quick run of an area whose goals are all `full_only`, or left out, measures nothing by design, and holds.
        """
        verdicts = [result.verdict for result in self.results]
        wanted = [result for result in self.results if result.verdict != "left out"]
        measured = "holds" in verdicts or all(result.goal.full_only for result in wanted)
        return self.trouble is None and measured and not {"fails", "not measured"} & set(verdicts)


def run_area(
    name: str,
    load: Callable[[str], Area],
    *,
    quick: bool,
    only: Sequence[str] = (),
    plots: Path | None = None,
    say: Say = lambda text: None,
) -> AreaReport:
    """Load one area and run it; whatever it raises is in the report, so that an area that breaks hides no other."""
    began = time.perf_counter()
    bench = Bench((), quick=quick)
    trouble = None
    try:
        with _limit(QUICK_LIMIT if quick else None):
            area = load(name)
            bench = Bench(area.GOALS, quick=quick, only=only, plots=plots, say=say)
            if bench.wants(*(goal.name for goal in area.GOALS)) or not only:
                area.measure(bench)
    except Exception as error:
        if quick and isinstance(error, peers.UnavailableError):
            say(f"left to a full run: {error}")
            bench.leave_rest()
        else:
            trouble = traceback.format_exc()
    except _OutOfTimeError:
        bench.leave_rest()
    return AreaReport(name, bench.results(), time.perf_counter() - began, trouble)


class _OutOfTimeError(BaseException):
    """The limit of a quick run; no `except Exception` of an area swallows it."""


@contextlib.contextmanager
def _limit(seconds: float | None) -> Iterator[None]:
    if seconds is None or not hasattr(signal, "SIGALRM"):
        yield
        return

    def stop(signum: int, frame: FrameType | None) -> None:
        raise _OutOfTimeError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
