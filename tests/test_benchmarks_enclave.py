"""The benchmark of enclaves measures what it says: the same programs inside and outside, by the same clock."""

from __future__ import annotations

import sys

import pytest

from benchmarks import enclave, enclave_start, enclave_work
from benchmarks.enclave_runs import PROGRAMS, Runs, runs
from strongroom.cli.remembered import save_digests
from strongroom.cli.workspace import Home
from strongroom.enclave import sandbox
from strongroom.enclave.config import BootConfig
from strongroom.enclave.measure import KNOWN, measure


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """One that knows the digests that this process does: reading gigabytes is measured elsewhere."""
    home = Home.open(tmp_path_factory.mktemp("home"))
    config = BootConfig("m", "a/b", "sha256:" + "0" * 64, "program", ("python",))
    measure(config, {})
    KNOWN.grown = True
    save_digests(home)
    return home.path


@pytest.fixture
def place(tmp_path, home):
    if sandbox.bubblewrap() is None:
        pytest.skip("bubblewrap does not work here: nothing is measured")
    return Runs(tmp_path, home)


def test_every_goal_is_wanted_and_some_by_a_quick_run():
    names = [goal.name for goal in enclave.GOALS]
    assert len(set(names)) == len(names)
    assert [goal for goal in enclave.GOALS if not goal.full_only]
    assert {enclave_work.classification(size, 1) for size in (42, 91, 163)} <= set(names)


def test_start_up_is_told_by_the_programs_own_clock(place):
    place.copy("start.py")
    inside, outside = place.inside("start.py"), place.outside("start.py")
    assert 0 < enclave_start._first_line(place, outside) < enclave_start._first_line(place, inside)
    phases = [what for what, _ in enclave_start._phases(place, "start.py")]
    assert phases[:3] == ["import the launcher", "start the development CAS", "measure"]
    assert phases[-1] == "drop privileges, start"
    assert len(phases) >= 9


def test_both_sides_work_when_they_are_told_to(place):
    place.copy("calls.py")
    with place.talk(place.outside("calls.py")) as outside, place.talk(place.inside("calls.py")) as inside:
        for talk in (outside, inside, outside):
            assert talk.ask("getppid", 10)[0] > 0


def test_a_program_that_fails_is_no_figure(tmp_path):
    place = Runs(tmp_path, tmp_path)
    (tmp_path / "fails.py").write_text("raise SystemExit('no')")
    with pytest.raises(RuntimeError, match="no"):
        place.run(place.outside("fails.py"))
    with pytest.raises(RuntimeError, match="the program ended: no"), place.talk(place.outside("fails.py")):
        pass


def test_what_is_missing_is_said():
    with pytest.raises(Exception, match="no_such_package is not installed"), runs("no_such_package"):
        pass


@pytest.mark.parametrize("program", sorted(path.name for path in PROGRAMS.glob("*.py")))
def test_programs_are_programs(program):
    compile((PROGRAMS / program).read_text(), program, "exec")
    assert sys.version_info >= (3, 11)
