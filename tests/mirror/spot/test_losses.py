"""What is read as a step and its loss, what counts as the same curve, and how curves are drawn."""

import math
import re

import pytest

from strongroom.errors import UsageError
from strongroom.mirror.spot import curves
from strongroom.mirror.spot.losses import Loss, Losses, pattern
from strongroom.mirror.spot.run import Course, Kill


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("step 12 loss 0.345", (12, "0.345")),
        ("step=12 loss=0.345", (12, "0.345")),
        ("Step: 12/900 - Loss: 3.45e-1 - 12 s", (12, "3.45e-1")),
        ("[epoch 3] global_step=12, lr=1e-3, train_loss=0.345, grad 2", (12, "0.345")),
        ("step 12: lr 0.001, loss .5.", (12, ".5")),
        ("step 12 loss -1.0", (12, "-1.0")),
        ("step 12 loss nan", (12, "nan")),
        ("step 12 loss inf", (12, "inf")),
        ("{'step': 12, 'loss': 0.345}", (12, "0.345")),
        ('{"step":12,"loss":0.345}', (12, "0.345")),
        ("loss 0.3", None),
        ("step 12 accuracy 0.3", None),
        ("footstep 12 loss 0.3", None),
        ("step 12 gloss 0.3", None),
        ("step 1234567890123456 loss 0.3", None),
    ],
)
def test_lines(line, found):
    loss = Losses().read(line, start=1, time=0)
    assert (loss and (loss.step, loss.text)) == found


def test_expressions_of_one_s_own():
    assert Losses(pattern(r"^(\d+)\t(\S+)")).read("7\t0.5", start=1, time=2) == Loss(1, 2, 7, "0.5", False)
    turned = Losses(pattern(r"L=(?P<loss>\S+) at (?P<step>\d+)"))
    assert turned.read("L=0.5 at 7", start=1, time=2).step == 7
    assert turned.read("L=half at 7", start=1, time=2) is None
    for wrong in ("(", r"step (\d+)"):
        with pytest.raises(UsageError, match=r"loss: .*, wanted"):
            pattern(wrong)


def test_the_same_is_what_has_the_same_digits():
    losses = Losses()
    for start, step, text in ((1, 1, "0.50"), (1, 2, "0.4"), (1, 2, "9"), (2, 2, "0.4"), (2, 3, "nan"), (3, 3, "nan")):
        losses.read(f"step {step} loss {text}", start=start, time=0)
    assert (losses.again, losses.repeated, losses.differing) == (2, 2, {})
    losses.read("step 1 loss 0.5", start=3, time=0)
    losses.read("step 1 loss 0.6", start=4, time=0)
    assert losses.differing == {1: ("0.50", "0.5")}
    assert losses.curve() == {1: "0.50", 2: "0.4", 3: "nan"}


def test_one_curve():
    """30 columns for 30 steps, by hand: values from 2 to 4 in 4 lines."""
    drawn = curves.text(
        {"loss": {step: 4 - (step - 1) // 10 for step in range(1, 31)}}, kills=[10, 10, 25], again=[10, 26],
        width=44, height=4,
    )  # fmt: skip
    assert drawn.splitlines() == [
        "             loss: o median, : range",
        "          4 |oooooooooo",
        "            |          oooooooooo",
        "            |",
        "          2 |                    oooooooooo",
        "      kills |         2              1",
        "      again |         =               =",
        "            +------------------------------",
        "             step 1                 step 30",
    ]


def test_two_curves_that_are_one_and_two_that_are_not():
    one = {step: 30.0 - step for step in range(1, 31)}
    other = one | dict.fromkeys(range(21, 31), 30.0)
    alone = curves.text({"a": one}, width=44).splitlines()
    both = curves.text({"a": one, "b": dict(one)}, width=44).splitlines()
    assert both[:-1] == alone and both[-1] == "o and : are both curves; 1 would be only a, 2 only b"
    apart = "\n".join(curves.text({"a": one, "b": other}, width=44).splitlines()[:-3])
    assert "2222222222" in apart and "1" in re.sub(r".*\|", "", apart)


def test_what_cannot_be_drawn():
    for given in ({}, {"a": {}}, {"a": {1: math.nan}}, {"a": {1: 1}, "b": {1: 1}, "c": {1: 1}}):
        with pytest.raises(UsageError, match="plot: "):
            curves.text(given)
    with pytest.raises(UsageError, match="plot: "):
        curves.text({"a": {1: 1}}, width=39)
    assert "step 1" in curves.text({"a": {1: 0.0}, "b": {1: 0.0, 2: math.inf}})


def test_png():
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    losses = Losses()
    course = Course("done", 0, 2, (Kill(60, 2), Kill(90, None)), ((0, 60), (120, 180)), 180, 120, 0.1, 3)
    with pytest.raises(UsageError, match="no loss"):
        curves.png(losses, course)
    for start, step in ((1, 1), (1, 2), (2, 2), (2, 3)):
        losses.read(f"step {step} loss {'nan' if step == 3 else 10.0**-step}", start=start, time=start * 50 + step)
    drawn = curves.png(losses, course, title="a trace")
    assert drawn.startswith(b"\x89PNG\r\n\x1a\n")
    assert drawn == curves.png(losses, course, title="a trace")
