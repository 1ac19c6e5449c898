"""Programs that are killed and started again along a trace: in a world of its own clock, and really."""

import contextlib
import math
import os
import signal
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strongroom.errors import UsageError
from strongroom.mirror.spot import Job, Saving, parse_csv, simulate
from strongroom.mirror.spot.host import LocalHost
from strongroom.mirror.spot.losses import Losses
from strongroom.mirror.spot.run import Kill, run

# A minute each, USD an hour: 3 minutes at 60, one at 180, 4 at 60, one at 180, 3 at 120.
TINY = parse_csv("60\n60\n60\n180\n60\n60\n60\n60\n180\n120\n120\n120\n")
posix = pytest.mark.skipif(not hasattr(os, "killpg"), reason="no process groups")


class World:
    """A host whose program takes `step` seconds for each of `steps`, prints it, and remembers every `every`-th.

    `fails` is a step after which it ends with status 3; `obeys` the status that it ends with on SIGTERM; `finishes`
    whether it has just ended with 0 when it is killed.
    """

    def __init__(
        self, steps=10, step=50.0, *, every=1, fails=None, obeys=None, finishes=False, loss=lambda step, start: 1 / step
    ):
        self.steps, self.step, self.every, self.fails = steps, step, every, fails
        self.obeys, self.finishes, self.loss = obeys, finishes, loss
        self.clock = 1000.0
        self.kept = self.at = self.starts = 0
        self.log = []
        self.status, self.due, self.up = None, math.inf, False

    def now(self):
        return self.clock

    def start(self):
        assert not self.up
        self.starts, self.up, self.status = self.starts + 1, True, None
        self.at, self.due = self.kept, self.clock + self.step
        self.log.append(("start", self.clock))

    def listen(self, until):
        if self.up and self.status is None and self.due <= until:
            self.clock = max(self.clock, self.due)
            self.at += 1
            self.due += self.step
            if self.at % self.every == 0 or self.at == self.steps:
                self.kept = self.at
            if self.at == self.steps:
                self.status = 0
            elif self.at == self.fails:
                self.status = 3
            return f"step {self.at} loss {self.loss(self.at, self.starts)!r}"
        if self.up and self.status is not None:
            self.up = False
            return self.status
        assert until < math.inf
        self.clock = max(self.clock, until)
        return None

    def warn(self):
        self.log.append(("warn", self.clock))
        self.status = self.obeys

    def kill(self):
        assert self.up
        self.log.append(("kill", self.clock))
        if self.status is None:
            self.status = 0 if self.finishes else -signal.SIGKILL


def walk(world, trace=TINY, bid=120, **how):
    losses, events = Losses(), []
    course = run(trace, bid, world, losses, tell=events.append, **({"speed": 1.0} | how))
    assert not world.up
    return course, losses, events


def test_by_hand():
    """The instance is there from 0 to 180 s, 240 to 480 and 540 to 720; a step takes 50 s, every second one is kept.
    First 3 steps, then 3 and 4 and 5 and 6, then 7 and so on."""
    world = World(8, every=2)
    course, losses, events = walk(world)
    assert (course.end, course.status, course.starts) == ("done", 0, 3)
    assert course.kills == (Kill(180, 3), Kill(480, 6))
    assert course.spells == ((0, 180), (240, 480), (540, 640))
    assert course.wall_seconds == course.real_seconds == 640
    assert course.running_seconds == 180 + 240 + 100
    assert course.cost == pytest.approx(3 + 4 + 100 / 60 * 2)
    assert [(loss.start, loss.step, loss.again) for loss in losses.printed] == [
        (1, 1, False), (1, 2, False), (1, 3, False), (2, 3, True), (2, 4, False), (2, 5, False), (2, 6, False),
        (3, 7, False), (3, 8, False),
    ]  # fmt: skip
    assert (losses.repeated, losses.differing) == (1, {})
    counted = [(event.kind, event.time, event.price) for event in events if event.kind not in ("said", "tick")]
    assert counted == [
        ("started", 0, 60), ("killed", 180, 180), ("waits", 180, 180), ("started", 240, 60), ("killed", 480, 180),
        ("waits", 480, 180), ("started", 540, 120), ("ended", 640, 120),
    ]  # fmt: skip


def test_time_is_compressed():
    world = World(8, 0.05, every=2)
    course, _, _ = walk(world, speed=1000)
    assert course.kills == (Kill(180, 3), Kill(480, 6))
    assert course.wall_seconds == pytest.approx(640)
    assert course.real_seconds == pytest.approx(0.64)


@given(
    st.lists(st.sampled_from([1, 3]), min_size=1, max_size=12),
    st.integers(1, 40),
    st.sampled_from([7.0, 13.0, 61.0]),
    st.sampled_from([0.0, 10.0, 75.0]),
    st.booleans(),
)
@settings(deadline=None, max_examples=200)
def test_what_it_costs_is_what_the_simulator_says(prices, steps, step, boot, free):
    trace = parse_csv("\n".join(map(str, prices)))
    told = simulate(trace, 2, Job(steps, step, boot), Saving(), first_hour_free=free)
    course, losses, _ = walk(World(steps, step), trace, 2, boot_seconds=boot, first_hour_free=free)
    assert (course.end == "done", len(course.kills)) == (told.finished, told.interruptions)
    assert [kill.time for kill in course.kills] == told.stops.tolist()
    assert course.wall_seconds == pytest.approx(told.wall_seconds)
    assert course.cost == pytest.approx(told.cost)
    assert course.running_seconds == pytest.approx(told.wall_seconds - told.waiting_seconds)
    assert losses.repeated == 0


def test_a_loss_that_comes_out_otherwise_is_told():
    _, losses, _ = walk(World(8, every=2, loss=lambda step, start: start))
    assert losses.differing == {3: ("1", "2")}


def test_notice_is_given_and_what_ends_by_it_is_started_again():
    world = World(8, every=2, obeys=0)
    course, _, events = walk(world, notice_seconds=20)
    assert world.log == [
        ("start", 1000), ("warn", 1160), ("start", 1240), ("warn", 1460), ("start", 1540),
    ]  # fmt: skip
    assert (course.end, len(course.kills)) == ("done", 2)
    assert course.running_seconds == 180 + 240 + 100  # paid until it is taken away
    assert [event.time for event in events if event.kind == "warned"] == [160, 460]


def test_what_disregards_the_notice_is_killed():
    world = World(8, every=2)
    walk(world, notice_seconds=20)
    assert world.log[:3] == [("start", 1000), ("warn", 1160), ("kill", 1180)]


def test_a_program_that_fails_is_not_started_again():
    course, _, _ = walk(World(8, fails=4))
    assert (course.end, course.status, course.starts, len(course.kills)) == ("failed", 3, 2, 1)
    assert course.wall_seconds == 290


def test_a_program_that_ends_as_it_is_killed_is_done():
    course, _, _ = walk(World(8, finishes=True))
    assert (course.end, course.status, course.kills) == ("done", 0, ())


def test_the_trace_may_end_first():
    course, losses, _ = walk(World(100, every=100))
    assert (course.end, course.status, course.wall_seconds) == ("trace", None, 720)
    assert (len(course.kills), losses.repeated) == (2, 3)
    course, _, _ = walk(World(100), bid=59)
    assert (course.end, course.starts, course.cost, course.wall_seconds) == ("trace", 0, 0, 720)


def test_limit():
    world = World(100)
    course, _, _ = walk(world, limit=100)
    assert (course.end, course.real_seconds) == ("limit", 100)
    assert world.log[-1] == ("kill", 1100)


def test_waiting_can_be_skipped():
    world = World(8, every=2)
    course, _, _ = walk(world, skip_waiting=True)
    assert course.wall_seconds == 640
    assert course.real_seconds == 640 - 120


def test_ctrl_c_leaves_nothing_running():
    world = World(8)

    def interrupt(event):
        if event.kind == "said":
            raise KeyboardInterrupt

    course = run(TINY, 120, world, Losses(), speed=1, tell=interrupt)
    assert course.end == "stopped"
    assert world.log[-1] == ("kill", 1050)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"speed": 0}, "speed: 0, wanted more"),
        ({"speed": math.inf}, "speed: inf, wanted more"),
        ({"speed": math.nan}, "speed: nan, wanted more"),
        ({"limit": 0}, "limit: 0, wanted more"),
        ({"boot_seconds": -1}, "boot seconds: -1, wanted 0"),
        ({"notice_seconds": math.inf}, "notice: inf, wanted 0"),
        ({"bid": -1}, "bid: -1, wanted 0"),
    ],
)
def test_refusals(how, message):
    world = World()
    with pytest.raises(UsageError, match=message):
        walk(world, **how)
    assert world.log == []


# Really, on this machine.


@pytest.fixture
def host():
    """Makes hosts of shell programs; what they left running is ended."""
    made = []

    def shell(script):
        made.append(LocalHost(["/bin/sh", "-c", script]))
        return made[-1]

    yield shell
    for one in made:
        if one._process is not None:
            one.kill()
            hear(one)


def hear(host, until=math.inf):
    """All that it says, and its status."""
    said = []
    while isinstance(heard := host.listen(host.now() + 30 if until is math.inf else until), str):
        said.append(heard)
    return said, heard


def wait_for_the_end_of(pid):
    """Of a process that got SIGKILL a moment ago. One that nobody has waited for yet is there, as a zombie."""
    until = time.monotonic() + 30
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX":
            assert time.monotonic() < until


@posix
def test_lines_and_status(host):
    one = host("echo a; echo b >&2; printf 'c\\rd\\r\\n'; printf e; exit 7")
    one.start()
    assert hear(one) == (["a", "b", "c", "d", "e"], 7)
    one.start()
    assert hear(one) == (["a", "b", "c", "d", "e"], 7)


@posix
def test_the_whole_group_is_killed(host):
    one = host("sh -c 'kill -STOP $$' & echo $!; printf 'step 3 loss 0.1'; kill -STOP $$")
    one.start()
    child = int(one.listen(one.now() + 30))
    one.kill()
    # Half a number looks like a whole one: what is no whole line is nothing.
    assert hear(one) == ([], -signal.SIGKILL)
    if sys.platform == "linux":
        wait_for_the_end_of(child)


@posix
def test_what_outlives_the_program_ends_with_it(host):
    one = host("sh -c 'kill -STOP $$' & echo $!; exit 0")
    one.start()
    said, status = hear(one)
    assert status == 0
    if sys.platform == "linux":
        wait_for_the_end_of(int(said[0]))


@posix
def test_a_program_can_hear_the_notice(host):
    one = host("trap 'echo saved; exit 0' TERM; echo ready; while :; do read -r x || sleep 0.01; done")
    one.start()
    assert one.listen(one.now() + 30) == "ready"
    one.warn()
    lines, status = hear(one)  # the shell may say that its own child was terminated
    assert (lines[-1], status) == ("saved", 0)


@posix
def test_a_program_that_is_not_there():
    with pytest.raises(UsageError, match="command: no-such-program is no program"):
        LocalHost(["no-such-program"])
    with pytest.raises(UsageError, match="command: none"):
        LocalHost([])


@posix
def test_real_kills(host, tmp_path):
    """Each start gets two steps farther, and stands still until it is killed; the second of them is not kept."""
    (tmp_path / "kept").write_text("0\n")
    one = host(
        f"cd '{tmp_path}'; read n < kept; n=$((n + 1)); echo step $n loss 0.$n; echo $n > new; mv new kept;"
        "n=$((n + 1)); echo step $n loss 0.$n; [ $n = 5 ] || kill -STOP $$"
    )
    # Each spell is longer than the one before: one that is too short on a busy machine does no harm.
    lengths = [0.1 * 1.5**power for power in range(16)]
    rows, time = ["time,available"], 0.0
    for length in lengths:
        rows += [f"{time:.3f},1", f"{time + length:.3f},0"]
        time += length + 0.01
    losses = Losses()
    course = run(parse_csv("\n".join([*rows, f"{time:.3f},1", f"{time + 1:.3f},1"])), None, one, losses, speed=1)
    assert (course.end, course.status) == ("done", 0)
    assert course.starts == len(course.kills) + 1 >= 4
    assert losses.curve() == {step: f"0.{step}" for step in range(1, 6)}
    # A kill costs at most the step that it fell into; a start that is killed between its two steps repeats none.
    assert 1 <= losses.repeated <= len(course.kills)
    assert losses.differing == {}
