"""The harness's statistics, verdicts and exit statuses, on measurements that we make up."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks import harness, peers, report, template
from benchmarks.__main__ import AREAS, main
from benchmarks.harness import Bench, Goal, Sample, run_area

FAST = Goal("fast", 2, "x", "at most")
RATE = Goal("rate", 100, "MiB/s", "at least")
LONG = Goal("long", 1, "s", "at most", full_only=True)


@dataclass
class FakeArea:
    """An area whose figures are made up."""

    act: Callable[[Bench], None]
    GOALS: Sequence[Goal] = field(default=(FAST, RATE))

    def measure(self, bench: Bench) -> None:
        self.act(bench)


class FakeClock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def good(bench: Bench) -> None:
    bench.compare("fast", lambda: 3.0, lambda: 2.0, peer_name="the peer", unit="ms")
    bench.measure("rate", lambda: 120.0)


def exit_status(*areas: FakeArea, options: Sequence[str] = ()) -> int:
    named = {f"area{i}": area for i, area in enumerate(areas)}
    return main(["all", *options], areas=dict.fromkeys(named, "made up"), load=lambda name: named[name])


class TestGoal:
    @pytest.mark.parametrize(("value", "holds"), [(1.9, True), (2.0, True), (2.1, False), (math.nan, False)])
    def test_at_most(self, value: float, holds: bool) -> None:
        assert FAST.holds(value) is holds

    @pytest.mark.parametrize(("value", "holds"), [(101, True), (100, True), (99, False), (math.nan, False)])
    def test_at_least(self, value: float, holds: bool) -> None:
        assert RATE.holds(value) is holds


class TestSample:
    def test_median_and_interquartile_range(self) -> None:
        sample = Sample((9.0, 1.0, 5.0, 3.0, 7.0), "ms")
        assert (sample.median, sample.spread) == (5.0, 4.0)

    def test_one_outlier_moves_neither(self) -> None:
        calm, shaken = Sample((1.0, 2.0, 3.0, 4.0, 5.0), "ms"), Sample((1.0, 2.0, 3.0, 4.0, 5000.0), "ms")
        assert (calm.median, calm.spread) == (shaken.median, shaken.spread)

    def test_a_single_run_has_no_spread(self) -> None:
        assert Sample((4.0,), "ms").spread == 0

    def test_no_runs_are_no_sample(self) -> None:
        with pytest.raises(ValueError, match="got no values, wanted at least one"):
            Sample((), "ms")


class TestCompare:
    def test_runs_in_turns_and_discards_the_warm_up(self) -> None:
        order: list[str] = []

        def run(name: str) -> Callable[[], float]:
            return lambda: order.append(name) or float(len(order))

        bench = Bench([FAST], quick=False)
        bench.compare("fast", run("A"), run("B"), peer_name="peer", unit="ms", rounds=3, warmup=1)
        assert "".join(order) == "ABABABAB"
        (result,) = bench.results()
        assert result.ours == Sample((3.0, 5.0, 7.0), "ms")
        assert result.peer == Sample((4.0, 6.0, 8.0), "ms")

    def test_the_value_is_the_median_of_the_rounds_ratios(self) -> None:
        # The machine gets ten times slower in the middle of the run: the ratio does not move.
        ours: Iterator[float] = iter([3, 3, 30, 30, 30])
        peer: Iterator[float] = iter([2, 2, 20, 20, 20])
        bench = Bench([FAST], quick=False)
        bench.compare("fast", lambda: next(ours), lambda: next(peer), peer_name="peer", unit="ms", rounds=5, warmup=0)
        (result,) = bench.results()
        assert (result.value, result.verdict) == (1.5, "holds")
        assert result.ratios is not None
        assert result.ratios.spread == 0

    def test_a_peer_that_measures_nothing_is_no_success(self) -> None:
        bench = Bench([FAST], quick=False)
        bench.compare("fast", lambda: 1.0, lambda: 0.0, peer_name="peer", unit="ms")
        assert bench.results()[0].verdict == "fails"

    @pytest.mark.parametrize(("ratios", "rounds"), [([1.5, 1.5, 1.6], 3), ([2.5, 2.6, 2.5], 3), ([1.5, 1.9] * 3, 6)])
    def test_may_end_once_the_bound_lies_clear_of_all_ratios_on_either_side(
        self, ratios: list[float], rounds: int
    ) -> None:
        values = iter(ratios)
        bench = Bench([FAST], quick=False)  # wanted: at most 2
        bench.compare(
            "fast", lambda: next(values), lambda: 1.0, peer_name="p", unit="ms", rounds=6, warmup=0, until_clear=True
        )
        (result,) = bench.results()
        assert result.ratios is not None
        assert len(result.ratios.values) == rounds


class TestBench:
    def test_timed_is_milliseconds_by_the_clock(self) -> None:
        clock = FakeClock()

        def work() -> None:
            clock.now += 0.25

        bench = Bench([FAST], quick=False, clock=clock)
        assert bench.timed(work)() == 250
        assert bench.timed(work, per=10)() == 25

    def test_a_goal_is_measured_once(self) -> None:
        bench = Bench([RATE], quick=False)
        bench.record("rate", 120)
        with pytest.raises(ValueError, match="goal rate: measured twice, wanted once"):
            bench.record("rate", 130)

    def test_names_are_unique_and_known(self) -> None:
        with pytest.raises(ValueError, match="wanted each name once"):
            Bench([RATE, RATE], quick=False)
        with pytest.raises(KeyError, match="typo"):
            Bench([RATE], quick=False).record("typo", 1)

    def test_a_full_run_wants_everything_however_late(self) -> None:
        clock = FakeClock()
        bench = Bench([LONG], quick=False, clock=clock)
        clock.now = 1e6
        assert bench.wants("long")

    def test_only_what_is_named_is_wanted(self) -> None:
        bench = Bench([FAST, RATE, LONG], quick=False, only=["ra", "lo"])
        assert [bench.wants(name) for name in ("fast", "rate", "long")] == [False, True, True]
        assert bench.wants("fast", "rate")
        bench.measure("fast", lambda: pytest.fail("was left out"))
        assert [result.verdict for result in bench.results()] == ["left out", "not measured", "not measured"]

    def test_each_goal_is_told_when_it_is_measured(self) -> None:
        said: list[str] = []
        clock = FakeClock()
        bench = Bench([FAST, RATE], quick=False, say=said.append, clock=clock)
        clock.now = 3
        bench.record("rate", 90, 91)
        assert said == ["rate: 90.5 MiB/s, fails (2 rounds, 3.0 s)"]

    def test_a_quick_run_leaves_out_what_is_long_and_what_is_late(self) -> None:
        clock = FakeClock()
        bench = Bench([FAST, RATE, LONG], quick=True, clock=clock)
        assert [bench.wants(name) for name in ("fast", "rate", "long")] == [True, True, False]
        bench.record("fast", 1)
        clock.now = harness.QUICK_BUDGET
        bench.measure("rate", lambda: pytest.fail("begun too late"))
        assert [result.verdict for result in bench.results()] == ["holds", "full run", "full run"]

    def test_a_quick_run_stops_a_long_comparison_after_three_rounds(self) -> None:
        clock = FakeClock()
        runs = count()

        def slow() -> float:
            clock.now += 30
            return float(next(runs))

        bench = Bench([RATE], quick=True, clock=clock)
        bench.measure("rate", slow, rounds=50, warmup=0)
        assert next(runs) == harness.FEWEST_ROUNDS


class TestRunArea:
    def test_what_was_declared_and_not_measured_fails(self) -> None:
        ran = run_area("area", lambda _: FakeArea(lambda bench: bench.record("fast", 1)), quick=False)
        assert [result.verdict for result in ran.results] == ["holds", "not measured"]
        assert not ran.holds

    def test_a_forgotten_goal_fails_a_quick_run_too(self) -> None:
        assert not run_area("area", lambda _: FakeArea(lambda bench: bench.record("fast", 1)), quick=True).holds

    def test_a_quick_run_of_long_goals_alone_holds(self) -> None:
        assert run_area("area", lambda _: FakeArea(lambda _: None, (LONG,)), quick=True).holds

    def test_a_quick_run_that_got_nowhere_does_not_hold(self) -> None:
        ran = run_area("area", lambda _: FakeArea(lambda bench: bench.leave_rest()), quick=True)
        assert {result.verdict for result in ran.results} == {"full run"}
        assert not ran.holds

    def test_an_area_that_breaks_keeps_what_it_measured(self) -> None:
        def breaks(bench: Bench) -> None:
            bench.record("fast", 1)
            raise RuntimeError("the server died")

        ran = run_area("area", lambda _: FakeArea(breaks), quick=False)
        assert ran.trouble is not None
        assert "the server died" in ran.trouble
        assert not ran.holds
        assert ran.results[0].verdict == "holds"

    def test_an_area_that_cannot_be_loaded_is_a_failure(self) -> None:
        def load(name: str) -> FakeArea:
            raise ModuleNotFoundError(f"No module named {name!r}")

        ran = run_area("area", load, quick=False)
        assert ran.trouble is not None
        assert not ran.holds

    @pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="needs SIGALRM")
    def test_a_quick_run_is_cut_off_at_its_limit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(harness, "QUICK_LIMIT", 0.1)

        def hangs(bench: Bench) -> None:
            bench.record("fast", 1)
            with contextlib.suppress(Exception):  # as an area might
                time.sleep(30)

        began = time.monotonic()
        ran = run_area("area", lambda _: FakeArea(hangs), quick=True)
        assert time.monotonic() - began < 5
        assert [result.verdict for result in ran.results] == ["holds", "full run"]
        assert ran.holds

    def test_a_missing_peer_waits_for_the_full_run(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(peers, "environment", lambda name, reqs, make: _unavailable(make))

        def needs_peer(bench: Bench) -> None:
            bench.record("fast", 1)
            bench.peer_environment("peer", ["peer==1"])

        quick = run_area("area", lambda _: FakeArea(needs_peer), quick=True)
        assert (quick.holds, quick.results[1].verdict) == (True, "full run")
        full = run_area("area", lambda _: FakeArea(needs_peer), quick=False)
        assert (full.holds, full.results[1].verdict) == (False, "not measured")


def _unavailable(make: bool) -> Path:
    raise peers.UnavailableError("pip failed" if make else "not there")


class TestExitStatus:
    def test_zero_when_every_goal_holds(self) -> None:
        assert exit_status(FakeArea(good)) == 0

    def test_one_goal_of_one_area_that_fails_is_enough(self) -> None:
        def slow(bench: Bench) -> None:
            bench.record("fast", 2.5)
            bench.record("rate", 120)

        assert exit_status(FakeArea(good), FakeArea(slow), FakeArea(good)) == 1

    def test_quick_counts_what_it_measured(self, capsys: pytest.CaptureFixture[str]) -> None:
        area = FakeArea(good, (FAST, RATE, LONG))
        assert exit_status(area, options=["--quick"]) == 0
        assert "2 hold, 0 fail, 1 need the full run (area0: long)" in capsys.readouterr().out
        assert exit_status(area) == 1  # in full, it was to be measured

    def test_only_some_goals(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        file = tmp_path / "out.json"
        missed = FakeArea(lambda bench: bench.measure("rate", lambda: pytest.fail("was left out")), (RATE,))
        assert exit_status(FakeArea(good), missed, options=["--only", "fast", "--json", str(file)]) == 0
        out = capsys.readouterr().out
        assert "1 hold, 0 fail, 2 left out (area0: rate; area1: rate)" in out
        assert "fast: 1.5 x, holds (9 rounds" in out
        verdicts = [goal["verdict"] for area in json.loads(file.read_text())["areas"] for goal in area["goals"]]
        assert verdicts == ["holds", "left out", "left out"]

    def test_only_what_no_goal_has_is_a_usage_error(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as caught:
            exit_status(FakeArea(good), options=["--only", "typo"])
        assert caught.value.code == 2
        assert "--only: no goal of all has 'typo' in its name" in capsys.readouterr().err

    def test_an_area_that_breaks_is_not_called_a_typo(self) -> None:
        def load(name: str) -> FakeArea:
            raise ModuleNotFoundError(f"No module named {name!r}")

        assert main(["a", "--only", "typo"], areas={"a": "made up"}, load=load) == 1

    def test_an_unknown_area_is_a_usage_error(self) -> None:
        with pytest.raises(SystemExit) as caught:
            main(["nothing"])
        assert caught.value.code == 2


class TestReport:
    def test_json_has_the_machine_and_every_value(self, tmp_path: Path) -> None:
        file = tmp_path / "out.json"
        assert exit_status(FakeArea(good), options=["--json", str(file)]) == 0
        facts = json.loads(file.read_text())
        assert facts["holds"] is True
        assert facts["machine"]["cores"] >= 1
        assert facts["machine"]["python"]
        assert facts["machine"]["versions"]["strongroom"]
        fast, rate = facts["areas"][0]["goals"]
        assert fast | {"ours": 0, "peer": 0, "ratios": 0} == {
            "name": "fast",
            "wanted": 2,
            "unit": "x",
            "direction": "at most",
            "full_only": False,
            "verdict": "holds",
            "value": 1.5,
            "peer_name": "the peer",
            "ours": 0,
            "peer": 0,
            "ratios": 0,
        }
        assert fast["peer"] == {"unit": "ms", "median": 2.0, "spread": 0.0, "values": [2.0] * 9}
        assert rate["peer"] is None

    def test_json_has_no_nan(self, tmp_path: Path) -> None:
        def broken(bench: Bench) -> None:
            bench.record("fast", math.nan)
            bench.record("rate", math.inf)

        file = tmp_path / "out.json"
        exit_status(FakeArea(broken), options=["--json", str(file)])
        json.loads(file.read_text(), parse_constant=lambda word: pytest.fail(f"{word} in JSON"))

    def test_the_table_shows_both_sides_and_fits_80_columns(self) -> None:
        ran = run_area("area", lambda _: FakeArea(good, (FAST, RATE, LONG)), quick=True)
        out = io.StringIO()
        Console(file=out, width=80).print(report.table([ran]))
        text = out.getvalue()
        for part in ("vs the peer", "3 ms", "2 ms", "1.5 x", "≤ 2 x", "≥ 100 MiB/s", "holds", "full run"):
            assert part in text
        assert "…" not in text


class TestPeerEnvironment:
    def test_makes_one_once(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        ran: list[tuple[str, ...]] = []

        def run(name: str, *command: str) -> None:
            ran.append(command)
            if command[1:3] == ("-m", "venv"):
                subprocess.run([sys.executable, "-m", "venv", "--without-pip", command[3]], check=True)

        monkeypatch.setattr(peers, "_run", run)
        python = peers.environment("peer", ["six==1.17.0"], cache=tmp_path)
        assert subprocess.run([python, "-c", ""]).returncode == 0
        assert ran[1][-1] == "six==1.17.0"
        assert peers.environment("peer", ["six==1.17.0"], make=False, cache=tmp_path) == python
        assert len(ran) == 2
        assert peers.environment("peer", ["six==1.16.0"], cache=tmp_path) != python

    def test_one_that_failed_halfway_does_not_count(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        def run(name: str, *command: str) -> None:
            if "pip" in command:
                raise peers.UnavailableError("no network")
            subprocess.run([sys.executable, "-m", "venv", "--without-pip", command[3]], check=True)

        monkeypatch.setattr(peers, "_run", run)
        for _ in range(2):
            with pytest.raises(peers.UnavailableError, match="no network"):
                peers.environment("peer", ["six"], cache=tmp_path)
        with pytest.raises(peers.UnavailableError, match="peer peer: no environment yet, wanted one from a full run"):
            peers.environment("peer", ["six"], make=False, cache=tmp_path)

    def test_a_command_that_fails_says_why(self) -> None:
        with pytest.raises(peers.UnavailableError, match=r"peer x: -c .* failed:\nbecause"):
            peers._run("x", sys.executable, "-c", "raise SystemExit('because')")

    @pytest.mark.parametrize(("name", "requirements"), [("../x", ["six"]), ("", ["six"]), ("x", [])])
    def test_nonsense(self, name: str, requirements: list[str], tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="wanted"):
            peers.environment(name, requirements, cache=tmp_path)


def test_the_template_measures_what_it_declares() -> None:
    ran = run_area("template", lambda _: template, quick=True)
    assert ran.trouble is None
    assert [result.value is not None for result in ran.results] == [not goal.full_only for goal in template.GOALS]


@pytest.mark.parametrize("name", AREAS)
def test_every_area_has_its_module(name: str) -> None:
    assert importlib.util.find_spec(f"benchmarks.{name}") is not None
