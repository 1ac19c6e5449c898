"""Requests that run together: each gets its own rows, and batches are always full."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from strongroom.errors import ServeError, UnansweredError
from strongroom.serve.pipeline.batch import Batches

LONG = 60.0  # no test waits that long


def rows(*values, width=2, dtype=np.float32):
    return {"x": np.array([[value] * width for value in values], dtype)}


class Doubles:
    """A model; what it was run on."""

    def __init__(self):
        self.ran: list[np.ndarray] = []
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, inputs):
        self.gate.wait()
        self.ran.append(inputs["x"].copy())
        if (inputs["x"] == 13).any():
            raise ServeError("thirteen")
        return {"y": 2 * inputs["x"]}


@pytest.fixture
def doubles():
    return Doubles()


def batches(run, *, rows=4, delay=LONG, at_once=1):
    return Batches(run, rows=rows, delay=delay, at_once=at_once)


def test_each_gets_its_own_rows_of_a_full_batch(doubles):
    ours = batches(doubles)
    asked = [ours.submit(rows(1)), ours.submit(rows(2, 3)), ours.submit(rows(4))]
    got = [each.result()["y"][:, 0].tolist() for each in asked]
    assert got == [[2], [4, 6], [8]]
    assert [each.shape for each in doubles.ran] == [(4, 2)]
    ours.close()


def test_what_is_not_full_is_filled_with_zeros_when_the_delay_is_over(doubles):
    ours = batches(doubles, delay=0.0)
    assert ours.submit(rows(5)).result()["y"].tolist() == [[10, 10]]
    assert doubles.ran[0].tolist() == [[5, 5], [0, 0], [0, 0], [0, 0]]
    ours.close()


def test_what_does_not_fit_begins_the_next_batch(doubles):
    """Of too many rows together, of another width, of another type: in order, and none lost."""
    ours = batches(doubles)
    asked = [ours.submit(each) for each in (rows(1, 2, 3), rows(4, 5), rows(6, width=3), rows(7, dtype=np.float64))]
    ours.close()
    assert [each.result()["y"].shape for each in asked] == [(3, 2), (2, 2), (1, 3), (1, 2)]
    assert len(doubles.ran) == 4


def test_one_that_fails_does_not_fail_the_others(doubles):
    ours = batches(doubles, rows=2)
    good, bad = ours.submit(rows(1)), ours.submit(rows(13))
    assert good.result()["y"].tolist() == [[2, 2]]
    with pytest.raises(ServeError, match="thirteen"):
        bad.result()
    ours.close()


def test_one_that_fails_costs_few_runs(doubles):
    ours = batches(doubles, rows=16)
    asked = [ours.submit(rows(13 if number == 5 else 1)) for number in range(16)]
    assert [number for number, each in enumerate(asked) if each.exception()] == [5]
    assert len(doubles.ran) == 9  # the batch, and two halves four times
    ours.close()


def test_who_waits_no_more_is_not_run_again(doubles):
    now = [0.0]

    def takes_long(inputs):
        now[0] += 10
        return doubles(inputs)

    ours = Batches(takes_long, rows=3, delay=LONG, at_once=1, clock=lambda: now[0])
    late, bad, good = ours.submit(rows(1), 5.0), ours.submit(rows(13), 100.0), ours.submit(rows(2), 100.0)
    assert good.result()["y"].tolist() == [[4, 4]]
    assert isinstance(late.exception(), UnansweredError) and "thirteen" in str(bad.exception())
    assert [each[:, 0].tolist() for each in doubles.ran] == [[1, 13, 2], [13, 2, 0], [13, 0, 0], [2, 0, 0]]
    ours.close()


def test_who_has_gone_is_not_run(doubles):
    doubles.gate.clear()
    ours = batches(doubles, rows=1)
    first, second = ours.submit(rows(1)), ours.submit(rows(2))
    assert second.cancel()
    doubles.gate.set()
    ours.close()
    assert first.result()["y"].tolist() == [[2, 2]] and len(doubles.ran) == 1


@pytest.mark.parametrize("error", [UnansweredError("late"), ValueError("a mistake")], ids=["unanswered", "unexpected"])
def test_what_nobody_could_help_is_told_to_all_and_not_tried_again(error):
    calls = []

    def fails(inputs):
        calls.append(1)
        raise error

    ours = batches(fails, rows=2)
    asked = [ours.submit(rows(1)), ours.submit(rows(2))]
    assert [type(each.exception()) for each in asked] == 2 * [type(error)]
    assert len(calls) == 1
    ours.close()


def test_a_model_that_mixes_rows_is_found_out():
    ours = batches(lambda inputs: {"y": inputs["x"].sum(axis=0)}, delay=0.0)
    with pytest.raises(ServeError, match="4 rows went in"):
        ours.submit(rows(1)).result()
    ours.close()


def test_what_has_rows():
    assert [Batches.rows_of(each) for each in (rows(1), rows(1, 2, 3, 4, 5))] == [1, 5]
    for none in ({}, {"x": np.float32(1)}, {"x": np.zeros((1, 2)), "z": np.zeros((2, 2))}):
        assert Batches.rows_of(none) == 0
