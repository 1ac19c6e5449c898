"""The killing of trainings itself: that one which goes on otherwise is told from one that goes on the same."""

import os
import time
from pathlib import Path

import numpy as np
import pytest

from strongroom import mirror
from strongroom.sealed import NO_FRESHNESS
from strongroom.storage import MemoryDirectory
from tests.mirror.lives import BESIDE, Lives, Trace

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked children")

STEPS = 400


def train(directory: Path, log: Path, trace: Path, *, forgets: bool = False) -> None:
    """Adds up the numbers to `STEPS`, and keeps where it is in a file; or forgets the sum when it is killed."""
    tracer, state = Trace(trace), directory / "state"
    tracer.enter("restore")
    step, total = map(int, state.read_text().split()) if state.exists() else (0, 0)
    tracer.enter("step")
    with log.open("a", buffering=1) as lines:
        while step < STEPS:
            step, total = step + 1, total + step
            ends = time.monotonic() + 0.0005
            while time.monotonic() < ends:
                pass
            lines.write(f"{step} {total}\n")
            tracer.enter("commit")
            (directory / "new").write_text(f"{step} {0 if forgets else total}")
            (directory / "new").rename(state)
            tracer.enter("step")


def test_a_training_that_goes_on_the_same(tmp_path):
    said = Lives(tmp_path, train).run(10, 1)
    assert said["kills"] == sum(said["where"].values()) == 10
    assert (said["steps"], said["same"], said["differ"]) == (STEPS, True, [])


def test_a_training_that_goes_on_otherwise(tmp_path):
    said = Lives(tmp_path, lambda *paths: train(*paths, forgets=True)).run(10, 1)
    assert said["kills"] == 10
    assert not said["same"] and said["differ"]


def test_a_training_that_fails_is_no_kill(tmp_path):
    with pytest.raises(AssertionError, match="the training ended with"):
        Lives(tmp_path, lambda *paths: os._exit(3)).run(1, 1)


def test_a_kill_beside_a_commit_is_told_from_one_in_a_step(tmp_path):
    trace = Trace(tmp_path / "trace")
    with mirror.open(MemoryDirectory(), key=bytes(32), anchor=NO_FRESHNESS, mode="overlapped") as opened:
        seal = opened._seal
        seen = []

        def watched(*arguments):
            seen.append(trace.where())
            return seal(*arguments)

        opened._seal = watched
        trace.watch(opened)
        trace.enter("step")
        commit = opened.commit(1, {"weights": np.zeros(10)})
        commit.durable()
        opened.commit(2, {"weights": np.zeros(10)}).durable()
    assert set(seen) <= {"commit", BESIDE} and len(seen) == 2
    assert trace.where() == "step"
