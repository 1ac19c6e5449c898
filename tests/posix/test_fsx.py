"""Random operations, with the mount made anew, or its server killed, in between."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.posix import fsx
from tests.posix.server import served


def exercise(places: tuple[Path, Path], scratch: Path, seed: int, *, runs: int, operations: int) -> None:
    """Some operations on one mount, then on the next, and so on; every third server is killed after a sync."""
    model = scratch / "model"
    for run in range(runs):
        with served(*places) as server:
            path = server.point / "file"
            if run:
                assert path.read_bytes() == model.read_bytes(), f"seed {seed}: after mount {run}"
            program = [sys.executable, fsx.__file__, path, model, str(seed), str(run * operations), str(operations)]
            done = subprocess.run(program, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            if run % 3 == 1:
                fd = os.open(path, os.O_RDONLY)
                os.fsync(fd)
                os.close(fd)
                server.kill()


def test_a_sample(places, tmp_path) -> None:
    exercise(places, tmp_path, 20_000, runs=5, operations=4000)


@pytest.mark.slow
def test_a_million(places, tmp_path) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    exercise(places, tmp_path, seed, runs=40, operations=25_000)
