"""Trainings killed 100 times with SIGKILL, each against the same left alone: every loss and the final weights, by bits.

- The trainings are those of the tests: `tests/mirror/kills.py` (PyTorch: shuffled batches from a loader with two
  workers, dropout, augmentations that draw from every generator, a schedule of the rate) and
  `tests/mirror/kills_keras.py` (Keras on PyTorch: shuffled batches, a transform, dropout, two callbacks that change the
  rate, metrics; two threads load ahead). One of the three optimisers commits synchronously, the others
  overlapped and by what changed, so that kills fall into steps beside which a commit is under way.
- All kills fall into one training, at moments spread evenly over time, so anywhere in a start, a restore, a step or a
  commit. A killed training goes on from its mirror in a new process, which is forked from one that has imported
  everything: else nearly all of the time, and of the kills, would go into imports.
- Losses are compared as hexadecimal floats, also those of steps done twice, and weights by SHA-256. A kill counts as
  survived only if the whole of the training that it fell into is the same.

Where the kills fell is printed; "step" takes in the loading of its batch, and the start of the workers at an epoch's
begin. A quick run kills one training 5 times.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from benchmarks.harness import Bench, Goal

KILLS: Final = 100
FEW: Final = 5
QUICK: Final = f"{FEW} kills survived, PyTorch, adamw"
STEPS: Final = 8  # for each kill

# By framework: the program, how many of its steps are an epoch, the environment.
PROGRAMS: Final[dict[str, tuple[str, int, dict[str, str]]]] = {
    "PyTorch": ("tests.mirror.kills", 12, {}),
    "Keras": ("tests.mirror.kills_keras", 8, {"KERAS_BACKEND": "torch", "OMP_NUM_THREADS": "1"}),
}
# SGD has momentum in both.
MODES: Final = {"sgd": "synchronous", "adam": "overlapped", "adamw": "overlapped"}


def _name(framework: str, optimizer: str) -> str:
    return f"kills survived, {framework}, {optimizer}"


GOALS: Sequence[Goal] = (
    Goal(QUICK, FEW, "kills", "at least"),
    *(
        Goal(_name(framework, optimizer), KILLS, "kills", "at least", full_only=True)
        for framework in PROGRAMS
        for optimizer in MODES
    ),
)


def measure(bench: Bench) -> None:
    """Measure every goal that `bench` wants, and print where the kills fell."""
    if not hasattr(os, "fork"):
        raise NotImplementedError("kills: forks what it kills, which this system cannot")
    said: dict[str, dict[str, Any]] = {}
    try:
        for name, framework, optimizer, kills in (
            (QUICK, "PyTorch", "adamw", FEW),
            *((_name(framework, one), framework, one, KILLS) for framework in PROGRAMS for one in MODES),
        ):
            if bench.wants(name):
                said[name] = one = _kill(framework, optimizer, kills)
                if not one["same"]:
                    bench.say(f"{name}: otherwise than the training left alone at {', '.join(one['differ'])}")
                bench.record(name, one["kills"] if one["same"] else 0)
    finally:
        if said:
            _show(said)


def _kill(framework: str, optimizer: str, kills: int) -> dict[str, Any]:
    """What the program says of one training killed so often."""
    program, epoch, environment = PROGRAMS[framework]
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(sys.executable, "-W", "ignore", "-m", program, optimizer, "--kills", str(kills)),
            *("--epochs", str(-(-kills * STEPS // epoch)), "--mode", MODES[optimizer], "--directory", folder),
        ]
        done = subprocess.run(
            command,
            cwd=Path(__file__).parent.parent,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": "", **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
    if done.returncode:
        raise RuntimeError(f"{program}: ended with {done.returncode}:\n{done.stderr[-3000:]}")
    said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return said


def _show(said: dict[str, dict[str, Any]]) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("kills that fell into")
    for name in ("start", "restore", "step", "commit", "commit\nbeside a step", "steps", "done\ntwice"):
        table.add_column(name, justify="right", vertical="bottom")
    for name, one in said.items():
        table.add_row(name, *map(str, one["where"].values()), f"{one['steps']:,}", str(one["repeated"]))
    Console(highlight=False, width=100).print(table)
