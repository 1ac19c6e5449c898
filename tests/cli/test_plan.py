"""`strongroom plan` measures, plans, compares and draws."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from strongroom import vault
from strongroom.cli.main import main
from strongroom.sealed import FileAnchor
from strongroom.serve.plan import Plan
from strongroom.vault.keys import KeyFile
from tests.serve.graph.world import INT64, info, node, weight
from tests.serve.graph.world import model as proto_of
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
        (["--memory", "1GiB", "--threads", "0"], "at least 1"),
        (["--memory", "1GiB", "--output", "nowhere/plan.json"], "--output: there is no directory nowhere"),
        (["--memory", "1GiB", "--output", "."], "--output: . cannot be written"),
        (["--memory", "1GiB", "--draw", "plan.gif"], "ends in .svg or .png"),
        (["--memory", "1GiB", "--compare", "nowhere.json"], "--compare: nowhere.json"),
    ],
)
def test_options_that_make_no_sense(model: Path, options: list[str], words: str, capsys: pytest.CaptureFixture[str]):
    assert main(["plan", str(model), *options]) == 2
    assert words in capsys.readouterr().err


def test_a_model_whose_inputs_are_shapes_is_run_on_an_example(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    nodes = [node("Reshape", "x shape", "turned"), node("MatMul", "turned w", "y")]
    inputs = [info("x", (4, 6)), info("shape", (2,), INT64)]
    place = tmp_path / "shapes.onnx"
    place.write_bytes(proto_of(nodes, inputs, [info("y", ("A", 2))], [weight("w", 8, 2)]).SerializeToString())
    words = ["plan", str(place), "--threads", "1", "--memory", "1GiB"]
    assert main(words) == 70
    assert "--example" in " ".join(capsys.readouterr().err.split())
    (tmp_path / "request.json").write_text('{"shape": [3, 8]}')
    assert main([*words, "--example", str(tmp_path / "request.json"), "--json"]) == 0
    capsys.readouterr()
    for wrong, said in (('{"shape": [3, 8, 1]}', "shape [3], and planned is [2]"), ('{"size": [3]}', "has size")):
        (tmp_path / "request.json").write_text(wrong)
        assert main([*words, "--example", str(tmp_path / "request.json")]) == 2
        assert said in " ".join(capsys.readouterr().err.split())


def test_what_is_compared_must_be_a_plan(model: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["plan", str(model), "--memory", "1GiB", "--compare", str(model)]) == 10
    assert f"--compare: {model} is no plan" in capsys.readouterr().err


def test_a_cache_that_cannot_be_written_stops_nothing(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(model))
    assert main(["plan", str(model), "--threads", "1", "--memory", "1GiB"]) == 0
    assert "not remembered" in capsys.readouterr().err


def test_a_sealed_model_is_planned_and_stays_sealed(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    folder = model.with_name("models")
    (folder / "nets").mkdir(parents=True)
    marker = np.full(4096, 0.31415927, np.float32)
    proto = network(64, 2)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(marker, "more"))
    proto.graph.node.append(onnx.helper.make_node("ReduceSum", ["more"], ["sum"], keepdims=0))
    proto.graph.node.append(onnx.helper.make_node("Add", [proto.graph.output[0].name, "sum"], ["y"]))
    proto.graph.output[0].name = "y"
    plain = proto.SerializeToString()
    onnx.save(proto, folder / "nets" / "net.onnx", save_as_external_data=True, location="net.data", size_threshold=0)
    sealed, key = model.with_name("models.vault"), model.with_name("my.key")
    assert main(["seal", str(folder), str(sealed), "--key", str(key)]) == 0
    shutil.rmtree(folder)
    capsys.readouterr()

    options = ["--threads", "1", "--memory", "1GiB", "--key", str(key), "--json"]
    assert main(["plan", f"{sealed}:nets/net.onnx", *options]) == 0
    of_vault = json.loads(capsys.readouterr().out)
    model.write_bytes(plain)
    assert main(["plan", str(model), *options[:4], "--json"]) == 0
    of_file = json.loads(capsys.readouterr().out)
    assert of_file["plan"]["stages"][0]["weights"] == of_vault["plan"]["stages"][0]["weights"] > marker.nbytes
    model.unlink()

    smaller = ["--quantize", "int8", "--save-model", "small/net.onnx"]
    assert main(["plan", str(sealed), *options, *smaller]) == 0
    capsys.readouterr()
    with vault.open(sealed, "r", key=KeyFile.load(key), anchor=FileAnchor(Path(f"{sealed}.anchor"))) as opened:
        kept = onnx.load_model_from_string(opened.read_bytes("small/net.onnx"))
    assert any(each.data_type == onnx.TensorProto.INT8 for each in kept.graph.initializer)
    # In no file that is left, not in the cache either.
    left = [*model.parent.rglob("*"), *Path(os.environ["XDG_CACHE_HOME"]).rglob("*")]
    assert not [path for path in left if path.is_file() and marker[:16].tobytes() in path.read_bytes()]

    for place, more, words in (
        (sealed, [], "key file"),
        (sealed, ["--key", str(key)], "holds 2 .onnx files, wanted one"),
        (f"{sealed}:other.onnx", ["--key", str(key)], "other.onnx is not in"),
        (f"{sealed}:nets/net.onnx", [*options[4:6], *smaller[:3], "/small.onnx"], "wanted a path in models.vault"),
        (f"{sealed}:nets/net.onnx", [*options[4:6], *smaller], "has a small/net.onnx"),
        (f"{model}:net.onnx", [], "does not exist"),
    ):
        assert main(["plan", str(place), *options[:4], *more]) == 2
        assert words in capsys.readouterr().err
