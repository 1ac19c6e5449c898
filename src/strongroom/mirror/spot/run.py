"""A training program that is really killed and started again, as an instance along a trace would have been.

The rules are those of `simulate`, but what trains is no model of a job:

- A second of real time is `speed` seconds of the trace.
- Whenever there is an instance under the bid, the program runs. When the instance goes, the program's whole group of
  processes gets SIGKILL: nothing of it can put anything in order.
- With a notice, it gets SIGTERM that long before, as EC2 gives two minutes. What ends after that was ended by it,
  whatever its status, and is started again.
- It is over when the program exits with 0, or with anything else of its own accord, or the trace ends, or the limit
  has passed, or Ctrl-C.

The clock and the processes are behind `Host`: nothing here reads a clock or starts anything.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol

import numpy as np

from strongroom.errors import UsageError
from strongroom.mirror.spot.losses import Loss, Losses
from strongroom.mirror.spot.simulate import FIRST_HOUR, bill, check_bid, spells
from strongroom.mirror.spot.traces import Trace

TICK: Final = 0.25  # seconds between two looks at the clock of somebody who watches

End = Literal["done", "failed", "trace", "limit", "stopped"]


class Host(Protocol):
    """Where the program runs, and its clock."""

    def now(self) -> float:
        """Seconds of real time, from any origin."""

    def start(self) -> None:
        """Start the program; there is none running."""

    def listen(self, until: float) -> str | int | None:
        """The next line that the program has printed; once there is none left and it has ended, its exit status (less
        than 0: the signal that ended it); or None if it is `until` before. Without a program it waits until then.
        """

    def warn(self) -> None:
        """Send SIGTERM to all of the program's group."""

    def kill(self) -> None:
        """Send SIGKILL to all of it. What it had printed, and its status, are then still to be listened to."""


@dataclass(frozen=True, slots=True)
class Kill:
    """An interruption: when in the trace, and the last step that had been printed in that start, if any."""

    time: float
    step: int | None


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened, or with `tick` only the time that passed.

    Attributes:
        kind: `started`, `said` a line, `warned`, `killed`, `ended` by itself, `waits` for an instance, `boots`, `tick`.
        time: seconds of the trace.
        price: of an instance then, USD an hour.
        line: what was said.
        loss: that the line has.
    """

    kind: Literal["started", "said", "warned", "killed", "ended", "waits", "boots", "tick"]
    time: float
    price: float
    line: str = ""
    loss: Loss | None = None


@dataclass(frozen=True, eq=False)
class Course:
    """What became of it. Times are seconds of the trace, money is USD.

    Attributes:
        end: why it is over: the program is `done`; it `failed`; the `trace` ended, or the `limit` passed; `stopped` by
            Ctrl-C.
        status: that the program ended with by itself; None if it did not.
        starts: of the program.
        kills: each interruption of an instance.
        spells: from when to when there was an instance.
        wall_seconds: from the beginning of the trace until it was over.
        running_seconds: of these with an instance.
        cost: of all seconds with an instance.
        real_seconds: that all of it took.
    """

    end: End
    status: int | None
    starts: int
    kills: tuple[Kill, ...]
    spells: tuple[tuple[float, float], ...]
    wall_seconds: float
    running_seconds: float
    cost: float
    real_seconds: float


def run(
    trace: Trace,
    bid: float | None,
    host: Host,
    losses: Losses,
    *,
    speed: float,
    boot_seconds: float = 0.0,
    notice_seconds: float = 0.0,
    skip_waiting: bool = False,
    limit: float = math.inf,
    first_hour_free: bool = False,
    tell: Callable[[Event], None] = lambda event: None,
) -> Course:
    """Walk along `trace` from its beginning, and have the program run while there is an instance.

    Args:
        bid: the most to be paid, USD an hour; None: whatever it costs.
        losses: that gets every line which the program prints.
        speed: seconds of the trace in one of real time.
        boot_seconds: of the trace from the start of an instance until the program is started.
        notice_seconds: of the trace between SIGTERM and SIGKILL; 0: no SIGTERM.
        skip_waiting: leap over the time without an instance.
        limit: seconds of real time after which it is given up.
        first_hour_free: an instance taken away in its first hour costs nothing.
        tell: hears of every `Event`.

    Raises:
        UsageError: a number makes no sense.
    """
    for name, value in (("boot seconds", boot_seconds), ("notice", notice_seconds)):
        if not 0 <= value < math.inf:
            raise UsageError(f"{name}: {value:g}, wanted 0 or more")
    for name, value in (("speed", speed), ("limit", limit)):
        if not value > 0 or (name == "speed" and value == math.inf):
            raise UsageError(f"{name}: {value:g}, wanted more than 0")
    walk = _Walk(trace, check_bid(bid), host, losses, speed, limit, tell)
    end, status = walk.go(boot_seconds, notice_seconds, skip_waiting)
    wall = min(walk.time, trace.seconds)
    ran = [(start, min(stop, wall)) for start, stop in walk.spells if start < wall]
    # The last one was not taken away, unless that is how it ended.
    taken = [True] * len(walk.kills) + [False] * (len(ran) - len(walk.kills))
    billed = [
        (start, stop)
        for (start, stop), gone in zip(ran, taken, strict=False)
        if not (first_hour_free and gone and stop - start < FIRST_HOUR)
    ]
    _, _, paid = spells(trace, bid)
    return Course(
        end, status, walk.starts, tuple(walk.kills), tuple(ran), wall, sum(stop - start for start, stop in ran),
        bill(trace, billed, paid), host.now() - walk.began,
    )  # fmt: skip


class _Limit(Exception):  # noqa: N818  # no error
    """The time that all may take has passed."""


@dataclass
class _Walk:
    trace: Trace
    bid: float | None
    host: Host
    losses: Losses
    speed: float
    limit: float
    tell: Callable[[Event], None]
    starts: int = 0
    kills: list[Kill] = field(default_factory=list)
    spells: list[tuple[float, float]] = field(default_factory=list)
    _step: int | None = None  # the last one printed in this start
    _running: bool = False

    def __post_init__(self) -> None:
        self.began = self._origin = self.host.now()

    @property
    def time(self) -> float:
        """Seconds of the trace."""
        return (self.host.now() - self._origin) * self.speed

    def go(self, boot: float, notice: float, skip_waiting: bool) -> tuple[End, int | None]:
        """Why it is over, and the program's status if that is why."""
        starts, stops, _ = spells(self.trace, self.bid)
        try:
            for start, stop in zip(starts, stops, strict=True):
                if self.time >= stop:
                    continue  # so short that it was over while the one before was being ended
                if skip_waiting and self.time < start:
                    self._origin = self.host.now() - start / self.speed
                if self.time < start:
                    self._say("waits")
                    self._until(start)
                self.spells.append((start, stop))
                over = self._spell(min(start + boot, stop), max(start, stop - notice), stop)
                if over is not None:
                    return over
            self._until(self.trace.seconds)
            return "trace", None
        except _Limit:
            return "limit", None
        except KeyboardInterrupt:
            return "stopped", None
        finally:
            if self._running:
                self._end()

    def _spell(self, begin: float, warn: float, stop: float) -> tuple[End, int | None] | None:
        """One instance: boot, run, and be taken away at `stop` unless the program ends before."""
        status, warned = None, False
        if self.time < begin:
            self._say("boots")
            self._until(begin)
        if begin < stop:
            self.starts, self._step = self.starts + 1, None
            self.host.start()
            self._running = True
            self._say("started")
            status = self._until(min(warn, stop))
            if status is None and warn < stop:
                warned = True
                self.host.warn()
                self._say("warned")
                status = self._until(stop)
            if status is not None and not warned:
                self._say("ended")
                return ("failed" if status else "done"), status
            if status is None:
                heard = self._end()
                # It may have ended in the moment before.
                if heard == 0 and not warned:
                    return "done", 0
                if heard > 0 and not warned:
                    return "failed", heard
        if status is not None:
            self._until(stop)  # an instance that was left early is there, and paid, until it is taken away
        if stop >= self.trace.seconds:
            return "trace", None
        self.kills.append(Kill(stop, self._step))
        self._say("killed")
        return None

    def _until(self, moment: float) -> int | None:
        """Listen until that second of the trace, or until the program ends: then its exit status."""
        while True:
            now, end, last = self.host.now(), self._origin + moment / self.speed, self.began + self.limit
            if now >= last:
                raise _Limit
            if now >= end:
                return None
            heard = self.host.listen(min(end, last, now + TICK))
            if isinstance(heard, int):
                self._running = False
                return heard
            if heard is None:
                self._say("tick")
            else:
                self._read(heard)

    def _end(self) -> int:
        """Kill the program, and hear it out: its exit status."""
        self.host.kill()
        while not isinstance(heard := self.host.listen(math.inf), int):
            if heard is not None:
                self._read(heard)
        self._running = False
        return heard

    def _read(self, line: str) -> None:
        time = self.time
        loss = self.losses.read(line, start=self.starts, time=time)
        if loss is not None:
            self._step = loss.step
        self.tell(Event("said", time, self._price(time), line, loss))

    def _say(self, kind: Literal["started", "warned", "killed", "ended", "waits", "boots", "tick"]) -> None:
        time = self.time
        self.tell(Event(kind, time, self._price(time)))

    def _price(self, time: float) -> float:
        row = int(np.searchsorted(self.trace.times, time, side="right")) - 1
        return float(self.trace.prices[min(row, len(self.trace.prices) - 1)])
