"""Programs run both ways: by themselves, and by `strongroom run`.

- A home of its own, so that nothing that the user keeps helps or hinders; one for all, but for what measures first
  runs.
- Python keeps compiled code beside its sources, as it does unless it is told not to: the launcher's too.
- Both sides are the same file with the same arguments, run by the same interpreter. Where a figure is of steady work,
  one process of each side lives for the whole measurement and works when it is told to, in turns, so that a machine
  that slows down slows both.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Self

from benchmarks.peers import UnavailableError

PROGRAMS = Path(__file__).parent / "enclave_programs"


@dataclass(frozen=True)
class Runs:
    """A directory to work in, with a home of its own."""

    directory: Path
    home: Path

    @property
    def environment(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        return {**inherited, "STRONGROOM_HOME": str(self.home), "TF_CPP_MIN_LOG_LEVEL": "2"}

    def copy(self, program: str) -> None:
        """Put one of the programs into the directory, by itself: what lies beside it would be measured."""
        shutil.copy(PROGRAMS / program, self.directory / program)

    def outside(self, program: str, *arguments: str) -> list[str]:
        """The command that runs it by itself."""
        return [sys.executable, program, *arguments]

    def inside(self, program: str, *arguments: str, options: Sequence[str] = ()) -> list[str]:
        """The command that runs it in an enclave."""
        env = ["--env", "TF_CPP_MIN_LOG_LEVEL=2"]
        run = [sys.executable, "-m", "strongroom", "run", *env, *options]
        return [*run, "--out", "out.vault", "--", "python", program, *arguments]

    def run(self, command: Sequence[str], *, accept: Sequence[int] = (0,)) -> str:
        """Run to its end, with one of these exit statuses; what it printed."""
        done = subprocess.run(
            command, cwd=self.directory, env=self.environment, capture_output=True, text=True, check=False
        )
        if done.returncode not in accept:
            raise RuntimeError(f"{' '.join(command)}: {done.returncode}: {done.stderr[-2000:]}")
        return done.stdout

    def talk(self, command: Sequence[str]) -> Talk:
        return Talk(command, self)


class Talk:
    """A program that works when it is told to: a line for a line. A context manager, which ends it."""

    def __init__(self, command: Sequence[str], runs: Runs) -> None:
        self._process = subprocess.Popen(
            command,
            cwd=runs.directory,
            env=runs.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        if self._line() != ["ready"]:
            raise RuntimeError("the program is not ready")
        return self

    @property
    def process(self) -> int:
        """Its number."""
        return self._process.pid

    def ask(self, *words: object) -> list[float]:
        assert self._process.stdin is not None  # a pipe
        self._process.stdin.write(" ".join(map(str, words)) + "\n")
        self._process.stdin.flush()
        return [float(word) for word in self._line()]

    def _line(self) -> list[str]:
        assert self._process.stdout is not None  # a pipe
        line = self._process.stdout.readline()
        if not line:
            _, said = self._process.communicate()
            raise RuntimeError(f"the program ended: {said[-2000:]}")
        return line.split()

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.communicate()  # the end of its input is the end of it


@contextlib.contextmanager
def runs(*packages: str, new_home: bool = False) -> Iterator[Runs]:
    """A directory to work in. Raises UnavailableError where one of these packages is missing."""
    for package in packages:
        if find_spec(package) is None:
            raise UnavailableError(f"{package} is not installed")
    with tempfile.TemporaryDirectory(prefix="strongroom-enclave-") as name:
        yield Runs(Path(name), Path(name, "home") if new_home else _home())


@functools.cache
def _home() -> Path:
    name = tempfile.mkdtemp(prefix="strongroom-enclave-home-")
    atexit.register(shutil.rmtree, name, ignore_errors=True)
    return Path(name)
