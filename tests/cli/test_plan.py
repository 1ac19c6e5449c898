"""`strongroom plan` measures, plans, compares and draws."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from strongroom.cli.main import main
from strongroom.serve.plan import Plan
from tests.serve.plan.world import network

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a process's memory is told on Linux alone")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def model(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    path = tmp_path / "model.onnx"
    path.write_bytes(network(256, 4).SerializeToString())
    return path


def test_a_plan_is_printed_written_drawn_and_compared(model: Path, capsys: pytest.CaptureFixture[str]):
    out, picture = model.with_name("plan.json"), model.with_name("plan.svg")
    common = [str(model), "--threads", "1"]
    assert main(["plan", *common, "--memory", "1GiB", "--output", str(out), "--draw", str(picture), "--measure"]) == 0
    said = capsys.readouterr().out
    plan = Plan.parse(out.read_bytes())
    assert len(plan.stages) == 1 and plan.digest in said and "this plan" in said
    assert picture.read_text().startswith("<svg")

    tight = ["--memory", "1KiB", "--paging", "allow", "--paging-costs", "sgx", "--compare", str(out), "--json"]
    assert main(["plan", *common, *tight]) == 0
    wire = json.loads(capsys.readouterr().out)
    assert wire["compared"]["plan.json"]["stages"] == 1
    assert wire["compared"]["never paging"]["code"] == "serve"
    assert wire["plan"]["paging"]["source"] == "sgx"

    assert main(["plan", *common, "--memory", "1KiB"]) == 70
    assert "wanted at most 1.00 KiB in an enclave" in capsys.readouterr().err


def test_a_smaller_model_is_measured_beside_the_given_one(model: Path, capsys: pytest.CaptureFixture[str]):
    x = np.random.default_rng(0).standard_normal((32, 256)).astype(np.float32)
    np.save(model.with_name("x.npy"), x)
    np.save(model.with_name("y.npy"), np.zeros(32, np.int64))
    data = ["--calibrate", str(model.with_name("x.npy")), "--labels", str(model.with_name("y.npy"))]
    kept = model.with_name("small.onnx")
    options = ["--quantize", "int8", "--prune", "0.25", *data, "--save-model", str(kept), "--json"]
    assert main(["plan", str(model), "--threads", "1", "--memory", "1GiB", *options]) == 0
    wire = json.loads(capsys.readouterr().out)
    assert wire["plan"]["change"]["quantized"] == "static" and wire["plan"]["change"]["pruned"] == 250
    assert wire["compared"]["this plan"]["weights"] < 0.3 * wire["compared"]["float, one stage"]["weights"]
    assert wire["accuracy"]["inputs"] == 32 and kept.stat().st_size < model.stat().st_size / 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--memory", "lots"], "wanted a size"),
        (["--memory", "1GiB", "--dim", "x"], "--dim"),
        (["--memory", "1GiB", "--prune", "1"], "between 0 and 1"),
        (["--memory", "1GiB", "--labels", "y.npy"], "--calibrate"),
        (["--memory", "1GiB", "--save-model", "y.onnx"], "smaller model"),
        (["--memory", "1GiB", "--batch", "0"], "at least 1"),
    ],
)
def test_options_that_make_no_sense(model: Path, options: list[str], words: str, capsys: pytest.CaptureFixture[str]):
    assert main(["plan", str(model), *options]) == 2
    assert words in capsys.readouterr().err
