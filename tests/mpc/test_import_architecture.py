"""What is given away of a model: an architecture file holds no weight, wherever the whole file holds them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from strongroom import mpc
from strongroom.errors import ModelFormatError
from tests.mpc.imported import onnx_file

pytest.importorskip("onnx")
import onnx
from onnx import TensorProto, helper, numpy_helper

node = helper.make_node
_VECTORS = Path(__file__).parents[1] / "vectors" / "onnx-ml"
_W = np.array([[0.7390851, -1.6180339], [2.7182818, 0.5772156]], np.float32)  # what no file may show
_B = np.array([1.2020569, -0.9159655], np.float32)


def _named(name: str, value: np.ndarray) -> Any:
    return numpy_helper.from_array(value, name)


def _model(path: Path, nodes: list[Any], weights: dict[str, np.ndarray], **domains: int) -> Any:
    model = onnx.load(onnx_file(path, nodes, {"x": [1, 2]}, ["y"], weights))
    for domain, version in domains.items():
        model.opset_import.add(domain=domain, version=version)
    return model


def _initialisers(path: Path) -> Any:
    w = helper.make_tensor("w", TensorProto.FLOAT, [2, 2], _W.reshape(-1).tolist())  # in float_data, not raw
    model = _model(path, [node("Gemm", ["x", "w", "b"], ["y"])], {"b": _B})
    model.graph.initializer.append(w)
    return model


def _halves_and_doubles(path: Path) -> Any:
    nodes = [node("Cast", ["w"], ["c"], to=1), node("Cast", ["b"], ["d"], to=1), node("Gemm", ["x", "c", "d"], ["y"])]
    model = _model(path, nodes, {})
    model.graph.initializer.extend([_named("w", _W.astype(np.float16)), _named("b", _B.astype(np.float64))])
    return model


def _constants(path: Path) -> Any:
    nodes = [
        node("Constant", [], ["w"], value=_named("", _W)),
        node("Constant", [], ["b"], value_floats=_B.tolist()),
        node("Constant", [], ["c"], value_float=float(_B[0])),
        node("Gemm", ["x", "w", "b"], ["m"]),
        node("MatMul", ["m", "w"], ["n"]),
        node("Add", ["n", "c"], ["y"]),
    ]
    return _model(path, nodes, {})


def _moved_single_number(path: Path) -> Any:
    nodes = [
        node("MatMul", ["x", "w"], ["m"]),
        node("Unsqueeze", ["b", "axis"], ["c"]),
        node("Add", ["m", "c"], ["y"]),
    ]
    return _model(path, nodes, {"w": _W, "b": _B[:1], "axis": np.array([0])})


def _branches(path: Path) -> Any:
    """Weights in a branch, and one outside that only a branch takes; the other branch holds them too."""
    y, z = (helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "yz")
    inner = [
        node("Constant", [], ["v"], value=_named("", _W)),
        node("MatMul", ["x", "w"], ["m"]),
        node("MatMul", ["m", "v"], ["n"]),
        node("Add", ["n", "b"], ["y"]),
    ]
    then = helper.make_graph(inner, "then", [], [y], [_named("b", _B)])
    other = helper.make_graph([node("Gemm", ["x", "u", "a"], ["z"])], "else", [], [z], [_named("u", _W)])
    nodes = [node("If", ["true"], ["y0"], then_branch=then, else_branch=other), node("Relu", ["y0"], ["y"])]
    return _model(path, nodes, {"true": np.array(True), "w": _W, "a": _B})


def _functions(path: Path) -> Any:
    body = [node("Constant", [], ["w"], value=_named("", _W)), node("MatMul", ["a", "w"], ["r"])]
    opsets = [helper.make_opsetid("", 17)]
    model = _model(path, [node("Layer", ["x"], ["y"], domain="own")], {})
    for name in ("Layer", "Unused"):
        model.functions.append(helper.make_function("own", name, ["a"], ["r"], body, opsets))
    return model


def _quantised(path: Path) -> Any:
    nodes = [
        node("DequantizeLinear", ["q", "step", "zero"], ["w"]),
        node("MatMul", ["x", "w"], ["m"]),
        node("Cast", ["p"], ["c"], to=1),
        node("Mul", ["c", "steps"], ["v"]),
        node("MatMul", ["m", "v"], ["y"]),
    ]
    weights = {
        "q": np.array([[101, -77], [53, 19]], np.int8),
        "step": np.array(_B[0]),
        "zero": np.array(3, np.int8),
        "p": np.array([[-101, 77], [59, 11]], np.int8),
        "steps": _B,
    }
    return _model(path, nodes, weights)


def _normalised(path: Path) -> Any:
    """Statistics of data that are large, as a mask is."""
    names = ["scale", "shift", "mean", "variance"]
    nodes = [node("BatchNormalization", ["x", *names], ["n"]), node("Sub", ["n", "large"], ["y"])]
    large = np.array([54321.125, 60123.75], np.float32)
    weights = {"scale": _B, "shift": _B, "mean": _W[0], "variance": large, "large": large + 7}
    return _model(path, nodes, weights)


def _elsewhere(path: Path) -> Any:
    (path.parent / "weights.bin").write_bytes(_W.tobytes())
    model = _model(path, [node("Gemm", ["x", "w", "b"], ["y"])], {"w": _W, "b": _B})
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")
    return model


def _hidden(path: Path) -> Any:
    """Weights where no operator takes them."""
    model = _initialisers(path)
    text = f"w = {_W.tolist()}"
    model.doc_string = model.graph.doc_string = model.producer_name = text
    model.graph.node[0].doc_string = model.graph.initializer[0].doc_string = text
    model.graph.input[0].doc_string = model.graph.output[0].doc_string = text
    model.metadata_props.add(key="w", value=text)
    model.graph.metadata_props.add(key="w", value=text)
    model.graph.node[0].metadata_props.add(key="w", value=text)
    model.training_info.add().algorithm.initializer.append(_named("w", _W))
    model.graph.initializer.extend([_named("old", _W), _named("labels", np.array(["a secret"], object))])
    tree = node("TreeEnsembleRegressor", ["x"], ["t"], domain="ai.onnx.ml", nodes_values=_B.tolist())
    model.graph.node.extend([tree, node("Add", ["x", "old"], ["unused"])])
    return model


def _scikit(name: str) -> Callable[[Path], Any]:
    return lambda path: onnx.load(_VECTORS / f"{name}.onnx")


_KINDS: dict[str, Callable[[Path], Any]] = {
    "initialisers": _initialisers,
    "halves and doubles": _halves_and_doubles,
    "constants": _constants,
    "single number": _moved_single_number,
    "branches": _branches,
    "functions": _functions,
    "quantised": _quantised,
    "normalised": _normalised,
    "elsewhere": _elsewhere,
    "hidden": _hidden,
    **{path.stem: _scikit(path.stem) for path in sorted(_VECTORS.glob("*.onnx"))},
}


def _numbers(message: Any) -> list[np.ndarray]:
    """All fractions and 8-bit tensors that are anywhere in a file, but for those of settings."""
    found = []
    for field, value in message.ListFields():
        values = [value] if not isinstance(value, str) and hasattr(value, "ListFields") else value
        if isinstance(message, onnx.TensorProto) and message.data_type in (1, 3, 10, 11):
            return [] if message.external_data else [numpy_helper.to_array(message)]
        if field.name == "floats" or (field.name == "f" and message.name not in ("alpha", "beta", "epsilon")):
            found.append(np.array(value, np.float32))
        elif field.message_type is not None:
            found += [each for inner in values for each in _numbers(inner)]
    return found


@pytest.mark.parametrize("kind", _KINDS)
def test_no_weight_is_in_an_architecture_file(tmp_path: Path, kind: str) -> None:
    path, to = tmp_path / "m.onnx", tmp_path / "a.onnx"
    model = _KINDS[kind](path)
    path.write_bytes(model.SerializeToString())
    mpc.save_architecture(path, to)
    data = to.read_bytes()
    weights = [*_numbers(model), _W, _B]
    assert len(weights) > 2 or kind == "elsewhere"
    for each in weights:
        if each.dtype == np.int8:
            assert each.size == 1 or each.tobytes() not in data
            continue
        for number in each.reshape(-1)[each.reshape(-1) != 0]:
            for width in ("<f4", "<f8") if each.dtype != np.float16 else ("<f2", "<f4", "<f8"):
                raw = number.astype(width).tobytes()
                assert len(raw) == 2 or number == np.round(number) or raw not in data, f"{number} as {width}"
        assert each.size == 1 or each.tobytes() not in data
    assert b"secret" not in data
    assert b"w = [" not in data
    onnx.load_model_from_string(data)
    whole, given = mpc.load_model(path), mpc.load_architecture(to)
    shapes = {name: value.shape for name, value in whole.state_dict().items()}
    assert {name: value.shape for name, value in given.state_dict().items()} == shapes
    assert not any(value.any() for value in given.state_dict().values())
    assert given(torch.ones(1, 2)).shape == whole(torch.ones(1, 2)).shape
    with pytest.raises(ModelFormatError, match="are withheld"):
        mpc.load_model(to)


def test_what_is_named_public_is_kept(tmp_path: Path) -> None:
    path, to = _VECTORS / "scaled_linear.onnx", tmp_path / "a.onnx"
    names = ["variable1.offset", "variable.intercepts"]
    mpc.save_architecture(path, to, public=names)
    whole, given = mpc.load_model(path, public=names), mpc.load_architecture(to, public=names)
    assert sorted(given.state_dict()) == ["weights.variable.coefficients", "weights.variable1.scale"]
    assert torch.equal(given._constants[names[0]], whole._constants[names[0]])  # type: ignore[index]
    assert given._constants[names[0]].any()  # type: ignore[index]


def test_a_branch_gives_what_it_says(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(_branches(path).SerializeToString())
    x = np.array([[1.0, -2.0]], np.float32)
    wanted = np.maximum(x @ _W @ _W + _B, 0)
    torch.testing.assert_close(mpc.load_model(path)(torch.from_numpy(x)), torch.from_numpy(wanted))
    with_public = mpc.load_model(path, public=["b", "w"])
    assert sorted(with_public.state_dict()) == ["weights.v"]
    torch.testing.assert_close(with_public(torch.from_numpy(x)), torch.from_numpy(wanted))


def test_what_may_be_a_weight_is_not_given_away(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    model = _model(path, [node("Relu", ["x"], ["y"], table=_B.tolist())], {})
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelFormatError, match="its attribute 'table' holds what may be a weight"):
        mpc.save_architecture(path, tmp_path / "a.onnx")
    sparse = _initialisers(path)
    sparse.graph.sparse_initializer.add().values.CopyFrom(_named("s", _B))
    path.write_bytes(sparse.SerializeToString())
    with pytest.raises(ModelFormatError, match="is sparse"):
        mpc.save_architecture(path, tmp_path / "a.onnx")
    forest = node("TreeEnsembleRegressor", ["x"], ["y"], domain="ai.onnx.ml", nodes_values=_B.tolist())
    path.write_bytes(_model(path, [forest], {}).SerializeToString())
    with pytest.raises(ModelFormatError, match="cannot run"):
        mpc.save_architecture(path, tmp_path / "a.onnx")
    assert not (tmp_path / "a.onnx").exists()
