"""Smaller models, and what they still answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from strongroom.errors import FormatError, UnsupportedPlatformError, UsageError
from strongroom.serve.graph import Model, load
from strongroom.serve.plan import choices
from strongroom.serve.plan.choices import Data, accuracy, read_data, smaller
from strongroom.serve.stage import Stage
from tests.serve.plan.world import convolutions, network

X = np.random.default_rng(1).standard_normal((64, 64)).astype(np.float32)


def answers(model: Model, x: np.ndarray) -> np.ndarray:
    stage = Stage.load(model.proto.SerializeToString(), name="tried", threads=1)
    return next(iter(stage.infer({"x": x}).values()))


def weight_bytes(model: Model) -> int:
    return sum(len(each.raw_data) for each in model.proto.graph.initializer)


@pytest.mark.parametrize("data", [None, Data({"": X}, None)], ids=["dynamic", "static"])
def test_weights_of_eight_bits_are_a_quarter_and_answer_nearly_the_same(data: Data | None):
    model = load(network().SerializeToString())
    made, change = smaller(model, quantize=True, prune=0, data=data)
    assert change.quantized == ("dynamic" if data is None else "static") and change.source == model.digest
    assert made.digest != model.digest
    assert weight_bytes(made) < 0.35 * weight_bytes(model)
    found = accuracy(model, made, Data({"x": X}, answers(model, X).argmax(1)), threads=1)
    assert found.inputs == 64 and found.before == 1.0 and found.after == found.agreement > 0.8
    assert 0 < found.difference < 0.1


def test_channels_that_do_nothing_can_be_pruned_without_a_trace():
    for proto, x, share in (
        (network(idle=16), X, 0.25),
        (convolutions(2), np.random.default_rng(2).standard_normal((2, 3, 12, 12)).astype(np.float32), 0.25),
    ):
        model = load(proto.SerializeToString())
        made, change = smaller(model, quantize=False, prune=share, data=None)
        assert change.pruned == 250 and weight_bytes(made) < 0.9 * weight_bytes(model)
        assert np.allclose(answers(made, x), answers(model, x), rtol=1e-4, atol=1e-5)


def test_a_model_of_one_layer_has_nothing_to_prune():
    with pytest.raises(UsageError, match="no channels of this model"):
        smaller(load(network(layers=1).SerializeToString()), quantize=False, prune=0.5, data=None)


def test_data_that_do_not_fit_are_refused(tmp_path: Path):
    x, labels, objects = (tmp_path / f"{name}.npy" for name in ("x", "labels", "objects"))
    np.save(x, X)
    np.save(labels, np.zeros(3, np.int64))
    np.save(objects, np.array([{}]), allow_pickle=True)
    with pytest.raises(FormatError, match=r"labels.npy: 3 of int64, wanted 64"):
        read_data(x, labels)
    for hostile in (objects, Path(__file__)):
        with pytest.raises(FormatError, match="of numbers"):
            read_data(hostile, None)
    with pytest.raises(UsageError, match="wanted x"):
        model = load(network().SerializeToString())
        accuracy(model, model, Data({"z": X}, None), threads=1)


def test_a_sealed_model_is_quantised_in_memory_or_not_at_all(monkeypatch: pytest.MonkeyPatch):
    model = load(network().SerializeToString())
    if choices._in_memory() is not None:
        assert smaller(model, quantize=True, prune=0, data=None, secret=True)[0].digest != model.digest
    monkeypatch.setattr(choices, "_in_memory", lambda: None)
    with pytest.raises(UnsupportedPlatformError, match="the model is sealed"):
        smaller(model, quantize=True, prune=0, data=None, secret=True)
