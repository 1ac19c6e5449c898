"""Every return from a mirror is on record in the commits that follow it."""

import numpy as np
import pytest

from strongroom import mirror
from strongroom.mirror import kept
from strongroom.mirror.restored import read
from strongroom.sealed import MemoryAnchor

KEY = b"k" * 32


class Training:
    def __init__(self, path):
        self.path, self.anchor, self.now = path, MemoryAnchor(), 100.0

    def open(self, **options):
        return mirror.open(self.path, key=KEY, anchor=self.anchor, clock=lambda: self.now, **options)

    def commit(self, opened, *steps):
        for step in steps:
            with opened.begin(step) as commit:
                commit["w"] = np.full(100, step, np.float32)

    def record(self):
        with read(self.path, key=KEY, anchor=self.anchor) as found:
            return found.manifest.resumes


@pytest.fixture
def training(tmp_path):
    return Training(tmp_path / "run.mirror")


def test_a_training_that_never_came_back_has_none(training):
    with training.open() as opened:
        assert opened.restore() is None
        training.commit(opened, 1, 2)
    assert training.record().count == 0


@pytest.mark.parametrize("mode", ["synchronous", "overlapped"])
def test_each_return_that_a_commit_follows_is_listed(training, mode):
    with training.open(mode=mode) as opened:
        training.commit(opened, 1, 2)
    first = training.anchor.read()
    for now, step in ((200.5, 3), (300.0, 4)):
        training.now = now
        with training.open(mode=mode) as opened:
            opened.restore()
            training.commit(opened, step)
    found = training.record()
    assert [(one.time, one.step) for one in found.listed] == [(200, 2), (300, 3)]
    assert found.listed[0].root == str(first)
    with training.open() as opened:
        opened.restore()  # to look, as nothing is committed after it
    assert training.record() == found


def test_going_back_in_a_training_forgets_the_returns_that_were_given_up(training):
    with training.open(keep=3) as opened:
        training.commit(opened, 1, 2, 3)
        opened.restore(2)
        training.commit(opened, 3)
        assert [one.step for one in training.record().listed] == [2]
        opened.restore(2)
        training.commit(opened, 3)
    assert [one.step for one in training.record().listed] == [2]


def test_going_back_from_the_shell_keeps_the_record(training):
    with training.open(keep=3) as opened:
        training.commit(opened, 1)
    with training.open(keep=3) as opened:
        opened.restore()
        training.commit(opened, 2, 3)
    kept.go_back(training.path, 2, key=KEY, anchor=training.anchor)
    assert [one.step for one in training.record().listed] == [1]
