"""The benchmarks of serving measure what they say: the same stages, under the limit that they name."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from benchmarks import (
    peers,
    pipeline_faults,
    serve_attest,
    serve_groups,
    serve_lite,
    serve_models,
    serve_paging,
    serve_plain,
    serve_runs,
)
from benchmarks.harness import Result
from benchmarks.serving import SMALL, image, network
from strongroom.serve.plan import Plan
from strongroom.serve.stage import Stage


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """A small network in two stages."""
    place = tmp_path_factory.mktemp("planned")
    model = place / "model.onnx"
    model.write_bytes(network(dataclasses.replace(SMALL, width=32)))
    path = serve_plain.cut_in(model, 2, place / "plan.json", 1)
    return model.read_bytes(), Plan.parse(path.read_bytes())


def test_a_pipeline_of_processes_answers_as_the_model_does(planned, tmp_path):
    raw, plan = planned
    inputs = {"image": image(SMALL)}
    with serve_groups.running(raw, plan, tmp_path, limit=None, rate=10**9) as served:
        assert served.infer(inputs)["scores"] == pytest.approx(
            Stage.load(raw, name="model").infer(inputs)["scores"], abs=1e-4
        )
    assert len(plan.stages) == 2


def test_a_part_that_cannot_load_is_an_error(planned, tmp_path, monkeypatch):
    raw, plan = planned
    monkeypatch.setattr(serve_groups, "cut", lambda model, plan: _Spoiled())
    with (
        pytest.raises(serve_groups.EndedError, match="part 1: ended with status"),
        serve_groups.running(raw, plan, tmp_path, limit=None),
    ):
        pass


class _Spoiled:
    models = (b"no model", b"no model")

    def pipeline(self, *args, **kwargs):
        return self

    def to_text(self):
        return "{}"


def test_descendants_of_a_process_are_its_children_and_theirs():
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'], stdin=sys.stdin)"
    with subprocess.Popen([sys.executable, "-c", child], stdin=subprocess.PIPE) as process:
        while not serve_runs.descendants(process.pid):
            pass
        assert process.pid in serve_runs.descendants(os.getpid())
        assert serve_runs.processor_seconds(process.pid) >= 0
        process.communicate(b"\n")


def test_a_network_that_is_not_exported_is_left_to_a_full_run(tmp_path, monkeypatch):
    monkeypatch.setattr(peers, "CACHE", tmp_path / "peers")
    with pytest.raises(peers.UnavailableError, match="not exported yet"):
        serve_models.exported("VGG19", make=False)


def test_the_seven_networks_have_a_goal_each():
    assert len(serve_models.NETWORKS) == 7
    assert {goal.name for goal in serve_paging.GOALS} >= set(serve_paging.LATENCY.values())
    assert set(serve_paging.FITS) <= set(serve_models.NETWORKS)


def test_bytes_of_a_runtime_are_those_of_its_packages():
    assert serve_lite.package_bytes("numpy") > 10_000_000
    assert serve_lite.package_bytes("onnxruntime") > serve_lite.package_bytes("numpy")


def test_what_a_model_takes_is_made_of_its_inputs(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(network(SMALL))
    [(name, array)] = serve_runs.inputs_of(path, 3).items()
    assert (name, array.shape, array.dtype) == ("image", (3, 3, 32, 32), np.float32)


def test_a_request_that_failed_is_lost_whatever_else_happened_meanwhile():
    run = pipeline_faults.Run(pipeline_faults.FAULTS[0], still=[(10.0, 70.0)])
    run.asked = [
        pipeline_faults.Asked(0.0, 0.1, False),
        pipeline_faults.Asked(9.0, 60.0, False, "UnansweredError: late"),
        pipeline_faults.Asked(80.0, 60.0, False, "UnansweredError: late"),
        pipeline_faults.Asked(81.0, 0.1, False, "ChannelError: answer: is to another request"),
    ]
    assert (run.lost, run.stopped, run.twice) == (2, 1, 1)


def test_what_was_measured_is_drawn(tmp_path):
    pytest.importorskip("matplotlib").use("agg")
    results = [Result(goal, "holds", 0.99) for goal in serve_plain.GOALS] + [Result(serve_plain.GOALS[0], "full run")]
    serve_plain.draw(results, tmp_path / "plain.png")
    row = serve_paging.Row("MobileNet", 16 << 20, 47 << 20, 1, 47 << 20, 14.0, 14.1, None, 13.9)
    serve_paging.draw([row], tmp_path / "paging.png")
    told = {way: {"server": 1.0, "user": 2.0, "whole": 3.0} for way in serve_attest.TEMPER}
    serve_attest.draw(told | {"naive": {"load": 100.0, "paging": 3.0}, "ours": 4.0}, tmp_path / "attest.png")
    serve_lite.draw({"litert": serve_lite.Row("LiteRT", 1, 1, 1, 1, 1, 2)}, tmp_path / "lite.png")
    for path in tmp_path.glob("*.png"):
        assert path.stat().st_size > 1000
    assert json.dumps(told)
