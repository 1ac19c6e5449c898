"""How the benchmark of Plinius's networks kills a training and judges its curve, on trainings that are made up."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from benchmarks import plinius
from benchmarks.peers import UnavailableError

# Remembers its steps as a mirror would: exactly, or with a fault. Ends by itself after the last one.
FAKE = """
import sys
from pathlib import Path

cfg, mirror, fault = Path(sys.argv[1]), Path(sys.argv[5]), "{fault}"
done = int(mirror.read_text()) if mirror.exists() else 0
if done:
    print(f"resumed after step {{done}}", flush=True)
    done += {{"skips": 2, "repeats": -1}}.get(fault, 0)
steps = int(sys.argv[sys.argv.index("--steps") + 1]) if "--steps" in sys.argv else 9
for step in range(done + 1, steps + 1):
    loss = 1 / step + (fault == "drifts" and done > 0)
    print(f"step {{step}} loss {{loss:.9g}}", flush=True)
    sum(range(400_000))  # a step takes its time
    if step == 5 and fault == "breaks":
        sys.exit("out of paper")
    new = mirror.with_suffix(".new")
    new.write_text(str(step))
    new.replace(mirror)
print("accuracy 12.50 % of 8 test images", flush=True)
"""


@pytest.fixture
def training(tmp_path, monkeypatch):
    """Trains, and compares with a run without kills."""
    cfg = tmp_path / "net.cfg"
    cfg.write_text("[net]\nmax_batches = 9\n")

    def train(fault: str = "", kills: int = 3, onnx: Path | None = None, **how) -> plinius.Training:
        script = tmp_path / "fake.py"
        script.write_text(FAKE.format(fault=fault))
        monkeypatch.setattr(plinius, "SCRIPT", script)
        rng = random.Random(2)  # noqa: S311
        made = plinius.train(cfg, tmp_path, tmp_path / "killed", kills=kills, rng=rng, onnx=onnx, **how)
        made.compare(plinius.train_alone(cfg, tmp_path, tmp_path / "alone", **how))
        return made

    return train


def test_a_training_that_goes_on_exactly(training, tmp_path):
    made = training(onnx=tmp_path / "onnx")
    assert (made.kills, made.compared, made.differing, made.plain) == (3, 9, 0, 12.5)
    assert [*made.losses] == [*range(1, 10)]


def test_what_is_not_exported_is_not_tested(training):
    made = training(kills=2)
    assert (made.kills, made.compared, made.differing) == (2, 9, 0)


def test_only_some_of_it_is_compared(training, monkeypatch):
    monkeypatch.setattr(plinius, "COMPARED", 4)
    made = training(steps=12)
    assert (len(made.losses), made.compared, made.differing) == (12, 4, 0)


def test_steps_that_are_printed_again_are_counted(training):
    made = training("repeats")
    assert made.repeated >= 3
    assert made.differing == 0


def test_a_curve_that_a_kill_changes_is_seen(training):
    assert training("drifts").differing > 0


def test_a_step_that_is_left_out_is_no_result(training):
    with pytest.raises(RuntimeError, match=r"net.cfg: printed \d steps, wanted 9"):
        training("skips")


def test_a_training_that_breaks_says_why(training):
    with pytest.raises(RuntimeError, match=r"net.cfg: ended with status 1: out of paper"):
        training("breaks", kills=0)


def test_networks_of_one_content_are_one(tmp_path):
    folder = tmp_path / "plinius" / "cfg"
    (folder / "small").mkdir(parents=True)
    for name, text in (("small/a.cfg", "12"), ("mnist.cfg", "12"), ("small/b.cfg", "1"), ("big.cfg", "123")):
        (folder / name).write_text(text)
    assert plinius.networks(tmp_path) == ["small/b.cfg", "mnist.cfg", "big.cfg"]


@pytest.mark.parametrize("missing", ["mnist", "plinius/cfg"])
def test_without_the_data_it_is_left_to_another_run(tmp_path, monkeypatch, missing):
    for name in {"mnist", "plinius/cfg"} - {missing}:
        (tmp_path / Path(name)).mkdir(parents=True)
    monkeypatch.setenv("STRONGROOM_DATA", str(tmp_path))
    with pytest.raises(UnavailableError, match=f"names no directory with {missing}"):
        plinius.measure(None)
