"""The lives of a training that is killed over and over at random moments, and where each kill fell.

- A life is a child process, in a process group of its own, that trains from wherever its mirror is. It writes a line
  of a log for each step, and says in shared memory what it is doing, which is still there once it is killed.
- Kills are spread evenly over the time of a life: over its start, its restore, its steps and commits. Lives are as
  long as the steps that are left allow, so that the kills to come fall into the same training.
- A training left alone writes another log. The two must say the same of every step, also of those done twice.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import random
import signal
import statistics
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PHASES = ("start", "restore", "step", "commit")
BESIDE = "commit beside a step"
_ROOM = 0.9  # of the lines, for the kills: past them the training ends before it is killed


class Trace:
    """What a life is doing, in a file mapped by it and by who kills it."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(bytes(mmap.PAGESIZE))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), mmap.PAGESIZE)

    def enter(self, phase: str) -> None:
        self._map[0] = PHASES.index(phase)

    def begin(self) -> None:
        """A life begins."""
        self._map[:3] = bytes(3)

    def watch(self, opened: Any) -> None:
        """Mark the commits of a mirror, from the call until they are decided."""
        commit = opened.commit

        def marked(step: int, state: Any) -> Any:
            number = (self._map[1] + 1) % 256
            phase, self._map[0], self._map[1] = self._map[0], PHASES.index("commit"), number
            made = commit(step, state)
            made._future.add_done_callback(lambda _: self._map.__setitem__(2, number))
            self._map[0] = phase
            return made

        opened.commit = marked

    def where(self) -> str:
        """What the life was doing when it was killed."""
        phase, begun, decided = PHASES[self._map[0]], self._map[1], self._map[2]
        return BESIDE if phase != "commit" and begun != decided else phase


def child(function: Callable[..., Any], *arguments: Any) -> int:
    """Run it in a fork with a process group of its own."""
    number = os.fork()
    if number:
        return number
    code = 1
    try:
        os.setsid()
        function(*arguments)
        code = 0
    except Exception:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def curve(log: Path) -> dict[str, set[str]]:
    """What was said of each step; more than one thing if a step done again went otherwise."""
    said: dict[str, set[str]] = {}
    for line in log.read_text().splitlines(keepends=True) if log.exists() else []:
        step, _, value = line.partition(" ")
        if value.endswith("\n"):  # a line is one write, which a kill does not cut
            said.setdefault(step, set()).add(value)
    return said


class Lives:
    """A training in `directory`, a function of its own directory, its log and its trace, or a command that ends so.

    Args:
        train: is forked; or the beginning of a command, which takes the three as ``--directory``, ``--log``,
            ``--trace``: for what cannot go on in a fork.
    """

    def __init__(self, directory: Path, train: Callable[[Path, Path, Path], None] | list[str]) -> None:
        self._train = train
        self._directory = directory

    def run(self, kills: int, seed: int) -> dict[str, Any]:
        """Train once to the end, once with kills; what became of it.

        The steps of the training must be some times the kills: a last kill that comes too late does not count.
        """
        rng = random.Random(seed)  # noqa: S311  # a failure must come back
        life = self._live("alone")
        alone = curve(self._directory / "alone.log")
        line = life.wrote / len(alone)
        lives, where = [life], Counter(dict.fromkeys((*PHASES, BESIDE), 0))
        while True:
            done = where.total()
            left = _ROOM * len(alone) - len(curve(self._directory / "killed.log"))
            most = max(1, 2 * left / (kills - done + 1)) * line
            start = statistics.median(one.start for one in lives[-9:])
            pace = statistics.median(one.pace for one in lives[-9:])
            when = rng.uniform(0, start + most * pace)
            life = self._live("killed", when, most) if done < kills else self._live("killed")
            if life.killed is None:
                break
            where[life.killed] += 1
            if life.wrote > 2 * line:
                lives.append(life)
        killed = curve(self._directory / "killed.log")
        differ = [step for step in alone.keys() | killed.keys() if alone.get(step) != killed.get(step)]
        return {
            "kills": where.total(),
            "steps": sum(step.isdecimal() for step in alone),
            "lines": len(alone),
            "repeated": (self._directory / "killed.log").read_bytes().count(b"\n") - len(killed),
            "same": not differ and all(len(said) == 1 for said in alone.values()),
            "differ": sorted(differ)[:5],
            "where": dict(where),
        }

    def _live(self, name: str, when: float = math.inf, most: float = math.inf) -> _Life:
        """One life, killed after so many seconds or bytes of its log, or left alone."""
        place, log, path = (self._directory / f"{name}{end}" for end in ("", ".log", ".trace"))
        place.mkdir(exist_ok=True)
        trace = Trace(path)
        trace.begin()
        before, first, killed = _size(log), 0.0, None
        began = time.monotonic()
        if isinstance(self._train, list):
            command = [*self._train, "--directory", str(place), "--log", str(log), "--trace", str(path)]
            number = subprocess.Popen(command, start_new_session=True).pid
        else:
            number = child(self._train, place, log, path)
        while True:
            ended, status = os.waitpid(number, os.WNOHANG)
            took, wrote = time.monotonic() - began, _size(log) - before
            first = first or (took if wrote else 0.0)
            if ended:
                assert status == 0, f"the training ended with {status}"
                break
            if took >= when or wrote >= most:
                with contextlib.suppress(ProcessLookupError):  # its group, which it has not made yet
                    os.killpg(number, signal.SIGKILL)
                os.kill(number, signal.SIGKILL)
                os.waitpid(number, 0)
                killed = trace.where()
                break
            time.sleep(0.0003)
        return _Life(first, (took - first) / max(1, wrote), wrote, killed)


@dataclass(frozen=True)
class _Life:
    """What became of one.

    Attributes:
        start: seconds to its first line.
        pace: seconds for each byte of its log since then.
        wrote: bytes.
        killed: what it was doing then; None if it came to its end.
    """

    start: float
    pace: float
    wrote: int
    killed: str | None


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
