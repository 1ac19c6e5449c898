"""A front door that finds its parts in a model whose lineage is as required, or does not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from strongroom.errors import FormatError, IntegrityError, UsageError
from strongroom.lineage.requirement import Requirement
from strongroom.serve.pipeline import origin as origins
from strongroom.serve.pipeline.origin import Origin
from tests.serve.pipeline.world import model, pipeline, plan
from tests.serve.plan.world import network

pytest.importorskip("onnxruntime")

REQUIRED = Requirement("sha256:" + 64 * "a", ("acme/train",))


def test_parts_of_the_model_by_the_plan_pass():
    Origin(REQUIRED, plan(2, batch=4), "m.onnx").check(pipeline(2, batch=4, delay=7, tick=9), model())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"plan": plan(3).digest}, "which was measured"),
        ({"parts": (replace(pipeline().parts[0], digest=64 * "0"), pipeline().parts[1])}, "part 1: is none of"),
        ({"parts": (pipeline().parts[0], replace(pipeline().parts[1], digest=64 * "0"))}, "part 2: is none of"),
        ({"parts": pipeline().parts[:1]}, "got 1 parts, wanted 2"),
        ({"model": 64 * "0"}, "pipeline: is not of"),
        ({"times": 1 << 30}, "pipeline: is not of"),
    ],
    ids=["plan", "part", "last part", "missing part", "model", "times"],
)
def test_other_parts_do_not(change, words):
    with pytest.raises(IntegrityError, match=words):
        Origin(REQUIRED, plan(), "m.onnx").check(replace(pipeline(), **change), model())


def test_parts_of_another_model_do_not():
    with pytest.raises(UsageError, match="is of model"):
        Origin(REQUIRED, plan(), "m.onnx").check(pipeline(), network(64, 5).SerializeToString())


def test_the_words_of_a_command(monkeypatch):
    ours = Origin(REQUIRED, plan(), "nets/m.onnx")
    assert Origin.of_words(REQUIRED, ours.to_words()) == ours
    for words in ((), ours.to_words()[:1], ("{}", "m.onnx")):
        with pytest.raises(FormatError):
            Origin.of_words(REQUIRED, words)
    monkeypatch.setattr(origins, "MAX_PLAN", 100)
    with pytest.raises(FormatError, match="wanted at most 100 with lineage"):
        ours.to_words()
