"""Models of scikit-learn, as skl2onnx writes them, give what scikit-learn gives, in the clear and on secrets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from strongroom import mpc
from strongroom.errors import ModelFormatError
from tests.mpc.imported import on_secrets, onnx_file

pytest.importorskip("onnx")
from onnx import helper

_VECTORS = Path(__file__).parents[1] / "vectors" / "onnx-ml"
_RESULTS = json.loads((_VECTORS / "results.json").read_text())
node = helper.make_node


@pytest.mark.parametrize("name", sorted(_RESULTS.keys() - {"x"}))
def test_what_skl2onnx_writes(tmp_path: Path, name: str) -> None:
    path, x, wanted = _VECTORS / f"{name}.onnx", torch.tensor(_RESULTS["x"]), torch.tensor(_RESULTS[name])
    model: Any = mpc.load_model(path)
    torch.testing.assert_close(model(x), wanted, rtol=1e-4, atol=1e-5)
    assert list(model.leaves_out) == ([] if name in ("scaled_linear", "polynomial_network") else ["output_label"])
    mpc.save_architecture(path, tmp_path / "a.onnx")
    found = on_secrets(model, lambda: mpc.load_architecture(tmp_path / "a.onnx"), x)
    torch.testing.assert_close(found, wanted, rtol=2e-3, atol=2e-3)


def test_columns_are_chosen_by_public_numbers_only(tmp_path: Path) -> None:
    columns = node("ArrayFeatureExtractor", ["x", "i"], ["y"], domain="ai.onnx.ml")
    path = onnx_file(tmp_path / "m.onnx", [columns], {"x": [2, 3]}, ["y"], {"i": np.array([2, 0])})
    assert torch.equal(mpc.load_model(path)(torch.arange(6.0).reshape(2, 3)), torch.tensor([[2.0, 0.0], [5.0, 3.0]]))
    label = node("ArrayFeatureExtractor", ["classes", "x"], ["y"], domain="ai.onnx.ml")
    path = onnx_file(tmp_path / "l.onnx", [label], {"x": [1]}, ["y"], {"classes": np.array([7, 9])})
    with pytest.raises(ModelFormatError, match=r"nothing but.*a label, looked up by a secret class"):
        mpc.load_model(path)


def test_what_nothing_gives(tmp_path: Path) -> None:
    relu = node("Relu", ["x"], ["y"], name="act")
    with pytest.raises(ModelFormatError, match="nothing gives its output 'z'"):
        mpc.load_model(onnx_file(tmp_path / "m.onnx", [relu], {"x": [1]}, ["y", "z"]))
    late = [node("Add", ["x", "a"], ["y"], name="sum"), node("Relu", ["x"], ["a"])]
    with pytest.raises(ModelFormatError, match=r"'sum' \(Add.*takes 'a', which nothing before it gives"):
        mpc.load_model(onnx_file(tmp_path / "n.onnx", late, {"x": [1]}, ["y"]))
