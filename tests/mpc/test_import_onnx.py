"""ONNX files become modules that give what ONNX says, in the clear and on secrets."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from strongroom import mpc
from strongroom.errors import ModelFormatError, UsageError
from tests.mpc.imported import on_secrets, onnx_file, reference

pytest.importorskip("onnx")
from onnx import helper

_RNG = np.random.default_rng(7)
node = helper.make_node


def _array(*shape: int) -> np.ndarray:
    return _RNG.standard_normal(shape)


def _agrees(path: Path, *inputs: torch.Tensor, secret: bool = True, tolerance: float = 2e-3, **how: Any) -> nn.Module:
    """That a file's module gives the reference's first result, on secrets too."""
    model, wanted = mpc.load_model(path, **how), reference(path, *inputs)[0]
    found = model(*inputs)
    torch.testing.assert_close(found[0] if isinstance(found, tuple) else found, wanted, rtol=1e-4, atol=1e-5)
    if secret:
        revealed = on_secrets(model, lambda: mpc.load_architecture(path, **how), *inputs)
        torch.testing.assert_close(revealed, wanted, rtol=2e-3, atol=tolerance)
    return model


def _folded(path: Path) -> list[str]:
    """The operators that a file's module runs."""
    return [step.op for step, _ in mpc.load_model(path)._nodes]  # type: ignore[union-attr]


def test_a_convolutional_network_with_its_batch_normalisations_folded(tmp_path: Path) -> None:
    path = onnx_file(
        tmp_path / "m.onnx",
        [
            node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1], strides=[2, 2]),
            node("BatchNormalization", ["c", "gamma", "beta", "mean", "var"], ["n"]),
            node("Relu", ["n"], ["r"]),
            node("BatchNormalization", ["r", "gamma", "beta", "mean", "var"], ["n2"]),
            node("MaxPool", ["n2"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
            node("Shape", ["p"], ["s"]),
            node("Gather", ["s", "zero"], ["batch"], axis=0),
            node("Unsqueeze", ["batch", "first"], ["row"]),
            node("Concat", ["row", "rest"], ["flat"], axis=0),
            node("Reshape", ["p", "flat"], ["f"]),
            node("Gemm", ["f", "v", "b"], ["y"], transB=1, alpha=0.5),
        ],
        {"x": ["N", 3, 8, 8]},
        ["y"],
        {
            "w": _array(4, 3, 3, 3),
            "gamma": _array(4),
            "beta": _array(4),
            "mean": _array(4),
            "var": _RNG.random(4) + 0.5,
            "zero": np.array(0),
            "first": np.array([0]),
            "rest": np.array([-1]),
            "v": _array(5, 16),
            "b": _array(5),
        },
    )
    _agrees(path, torch.randn(2, 3, 8, 8))
    assert "BatchNormalization" not in _folded(path)


def _norm(*, root_mean_square: bool) -> list[Any]:
    centred = ["x"] if root_mean_square else ["d"]
    nodes = [] if root_mean_square else [node("ReduceMean", ["x"], ["m"], axes=[-1]), node("Sub", ["x", "m"], ["d"])]
    return [
        *nodes,
        node("Pow", [*centred, "two"], ["q"]),
        node("ReduceMean", ["q"], ["v"], axes=[-1]),
        node("Add", ["v", "eps"], ["e"]),
        node("Sqrt", ["e"], ["s"]),
        node("Div", [*centred, "s"], ["n"]),
        node("Mul", ["n", "w"], ["y"]),
    ]


_GELU = [
    node("Div", ["x", "root"], ["a"]),
    node("Erf", ["a"], ["b"]),
    node("Add", ["b", "one"], ["c"]),
    node("Mul", ["x", "c"], ["d"]),
    node("Mul", ["d", "half"], ["y"]),
]
_SOFTMAX = [
    node("ReduceMax", ["x"], ["m"], axes=[-1]),
    node("Sub", ["x", "m"], ["d"]),
    node("Exp", ["d"], ["e"]),
    node("ReduceSum", ["e", "last"], ["t"], keepdims=1),
    node("Div", ["e", "t"], ["y"]),
]
_FLAX = [  # a variance as a difference of means, which are sums times 1/n
    node("ReduceSum", ["x", "last"], ["t"], keepdims=0),
    node("Mul", ["t", "eighth"], ["m"]),
    node("Mul", ["x", "x"], ["xx"]),
    node("ReduceSum", ["xx", "last"], ["tt"], keepdims=0),
    node("Mul", ["tt", "eighth"], ["mm"]),
    node("Mul", ["m", "m"], ["m2"]),
    node("Sub", ["mm", "m2"], ["v"]),
    node("Max", ["nought", "v"], ["v0"]),
    node("Unsqueeze", ["v0", "last"], ["v1"]),
    node("Unsqueeze", ["m", "last"], ["m1"]),
    node("Add", ["v1", "eps"], ["e"]),
    node("Sqrt", ["e"], ["s"]),
    node("Reciprocal", ["s"], ["r"]),
    node("Mul", ["r", "w"], ["rw"]),
    node("Sub", ["x", "m1"], ["d"]),
    node("Mul", ["d", "rw"], ["y"]),
]


@pytest.mark.parametrize(
    ("nodes", "kind", "runs"),
    [
        (_norm(root_mean_square=False), "LayerNorm", 2),
        (_norm(root_mean_square=True), "RmsNorm", 2),
        (_GELU, "Gelu", 1),
        (_SOFTMAX, "Softmax", 1),
        (_FLAX, "MomentNorm", 1),
        ([node("Sigmoid", ["x"], ["s"]), node("Mul", ["s", "x"], ["y"])], "Silu", 1),
    ],
)
def test_a_function_that_is_spelled_out_runs_as_one(tmp_path: Path, nodes: list[Any], kind: str, runs: int) -> None:
    numbers = {"two": 2.0, "eps": 1e-5, "root": 2**0.5, "one": 1.0, "half": 0.5, "eighth": 0.125, "nought": 0.0}
    constants = {name: np.array(value) for name, value in numbers.items()}
    constants |= {"w": _array(8), "last": np.array([-1])}
    used = {name for each in nodes for name in each.input}
    path = onnx_file(
        tmp_path / "m.onnx", nodes, {"x": [2, 8]}, ["y"], {k: v for k, v in constants.items() if k in used}
    )
    _agrees(path, torch.randn(2, 8))
    assert kind in _folded(path)
    assert len(_folded(path)) == runs


def test_a_value_between_is_kept_where_something_else_takes_it(tmp_path: Path) -> None:
    nodes = [*_GELU[:-1], node("Mul", ["d", "half"], ["g"]), node("Add", ["g", "c"], ["y"])]
    numbers = {"root": np.array(2**0.5), "one": np.array(1.0), "half": np.array(0.5)}
    path = onnx_file(tmp_path / "m.onnx", nodes, {"x": [2, 4]}, ["y"], numbers)
    _agrees(path, torch.randn(2, 4))


@pytest.mark.parametrize(
    ("op", "shape", "attributes", "more"),
    [
        ("Conv", [1, 4, 9, 9], {"group": 2, "dilations": [2, 1], "pads": [0, 1, 2, 0]}, [_array(6, 2, 2, 3)]),
        ("ConvTranspose", [1, 3, 4, 4], {"strides": [2, 2], "pads": [1, 0, 0, 1]}, [_array(3, 2, 3, 3)]),
        ("MaxPool", [1, 2, 5, 5], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [0, 0, 1, 1]}, []),
        ("MaxPool", [1, 2, 6, 6], {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}, []),
        ("AveragePool", [1, 2, 5, 5], {"kernel_shape": [3, 3], "pads": [1, 1, 0, 0]}, []),
        ("GlobalMaxPool", [1, 2, 3, 3], {}, []),
        ("Resize", [1, 1, 3, 3], {"mode": "linear"}, ["", np.array([1, 1, 2, 2], np.float32)]),
        ("Resize", [1, 1, 3, 3], {"mode": "cubic"}, ["", np.array([1, 1, 2, 2], np.float32)]),
        ("DepthToSpace", [1, 8, 2, 2], {"blocksize": 2, "mode": "CRD"}, []),
        ("InstanceNormalization", [1, 2, 3, 3], {}, [_array(2), _array(2)]),
        ("PRelu", [2, 5], {}, [_array(5)]),
        ("HardSigmoid", [2, 5], {}, []),
        ("Pad", [2, 3], {"mode": "reflect"}, [np.array([0, 1, 0, 2])]),
        ("ReduceL2", [2, 5], {"axes": [1]}, []),
        ("LSTM", [3, 1, 2], {"hidden_size": 3}, [_array(1, 12, 2), _array(1, 12, 3), _array(1, 24)]),
        ("GRU", [3, 1, 2], {"hidden_size": 3, "linear_before_reset": 1}, [_array(1, 9, 2), _array(1, 9, 3)]),
        ("Slice", [4, 5], {}, [np.array([3, -1]), np.array([0, -4]), np.array([0, 1]), np.array([-1, -2])]),
        ("Einsum", [2, 3], {"equation": "ij,jk->ki"}, [_array(3, 4)]),
    ],
)
def test_an_operator(tmp_path: Path, op: str, shape: list[int], attributes: dict[str, Any], more: list[Any]) -> None:
    weights = {f"w{i}": each for i, each in enumerate(more) if not isinstance(each, str)}
    names = [f"w{i}" if f"w{i}" in weights else "" for i in range(len(more))]
    path = onnx_file(tmp_path / "m.onnx", [node(op, ["x", *names], ["y"], **attributes)], {"x": shape}, ["y"], weights)
    _agrees(path, torch.randn(shape))


def test_normalisation_over_neighbouring_channels(tmp_path: Path) -> None:
    lrn = node("LRN", ["x"], ["y"], size=3, alpha=0.3, bias=2.0)
    path, x = onnx_file(tmp_path / "m.onnx", [lrn], {"x": [1, 5, 2, 2]}, ["y"]), torch.randn(1, 5, 2, 2)
    wanted = nn.functional.local_response_norm(x, 3, alpha=0.3, k=2.0)
    torch.testing.assert_close(mpc.load_model(path)(x), wanted, rtol=1e-5, atol=1e-6)
    found = on_secrets(mpc.load_model(path), lambda: mpc.load_architecture(path), x)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


def test_the_border_of_a_window_is_below_every_value(tmp_path: Path) -> None:
    pool = node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2], strides=[2, 2], pads=[0, 0, 1, 1])
    path = onnx_file(tmp_path / "m.onnx", [pool], {"x": [1, 1, 3, 3]}, ["y"])
    x = -30_000.0 + torch.arange(9.0).reshape(1, 1, 3, 3)
    found = on_secrets(mpc.load_model(path), lambda: mpc.load_architecture(path), x)
    torch.testing.assert_close(found, mpc.load_model(path)(x), rtol=0, atol=1e-3)


def test_a_border_that_is_said_by_its_result(tmp_path: Path) -> None:
    conv = node("Conv", ["x", "w"], ["y"], auto_pad="SAME_LOWER", strides=[2])
    weights = {"w": _array(2, 3, 4)}
    path, x = onnx_file(tmp_path / "m.onnx", [conv], {"x": [1, 3, 11]}, ["y"], weights), torch.randn(1, 3, 11)
    padded = nn.functional.pad(x, (2, 1))  # of an odd border the larger part before
    wanted = nn.functional.conv1d(padded, torch.from_numpy(weights["w"]).float(), stride=2)
    torch.testing.assert_close(mpc.load_model(path)(x), wanted)


@pytest.mark.parametrize("dynamo", [False, True])
def test_what_torch_exports(tmp_path: Path, dynamo: bool) -> None:
    if dynamo:
        pytest.importorskip("onnxscript")
    torch.manual_seed(1)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.GELU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.LayerNorm(16),
    ).eval()
    x = torch.randn(1, 1, 6, 6)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(net, (x,), str(tmp_path / "m.onnx"), dynamo=dynamo, verbose=False)
        wanted = net(x)
    model = mpc.load_model(tmp_path / "m.onnx")
    torch.testing.assert_close(model(x), wanted, rtol=1e-4, atol=1e-5)
    revealed = on_secrets(model, lambda: mpc.load_architecture(tmp_path / "m.onnx"), x, owned=False)
    torch.testing.assert_close(revealed, wanted, rtol=2e-3, atol=2e-3)


def test_a_classifier_of_scikit_learn_gives_probabilities_and_leaves_labels_out(tmp_path: Path) -> None:
    nodes = [
        node("Scaler", ["x"], ["s"], domain="ai.onnx.ml", offset=[0.5, -0.5], scale=[2.0, 1.0]),
        node("MatMul", ["s", "w"], ["m"]),
        node("Add", ["m", "b"], ["a"]),
        node("Softmax", ["a"], ["p"], axis=-1),
        node("ArgMax", ["p"], ["i"], axis=1),
        node("ArrayFeatureExtractor", ["classes", "i"], ["label"], domain="ai.onnx.ml"),
        node("ZipMap", ["p"], ["probabilities"], domain="ai.onnx.ml", classlabels_int64s=[7, 9, 11]),
    ]
    weights = {"w": _array(2, 3), "b": _array(3), "classes": np.array([7, 9, 11])}
    path = onnx_file(tmp_path / "m.onnx", nodes, {"x": ["N", 2]}, ["label", "probabilities"], weights)
    model, x = mpc.load_model(path), torch.randn(2, 2)
    assert list(model.leaves_out) == ["label"]
    scaled = (x.numpy() - [0.5, -0.5]) * [2.0, 1.0]
    wanted = torch.softmax(torch.from_numpy(scaled @ weights["w"] + weights["b"]), -1).float()
    torch.testing.assert_close(model(x), wanted, rtol=1e-4, atol=1e-5)
    assert len(model.state_dict()) == 4  # what the scaler learned of the data is a weight too
    torch.testing.assert_close(on_secrets(model, lambda: mpc.load_architecture(path), x), wanted, rtol=0, atol=1e-3)


def test_an_architecture_file_has_shapes_and_no_weight(tmp_path: Path) -> None:
    nodes = [
        node("Constant", [], ["c"], value=_tensor("c", _array(4, 2))),
        node("MatMul", ["x", "c"], ["m"]),
        node("Add", ["m", "b"], ["y0"]),
        node("Mul", ["y0", "scale"], ["y1"]),
        node("Add", ["y1", "mask"], ["y"]),
    ]
    weights = {"b": _array(2), "scale": np.array([0.125]), "mask": np.array([[0.0, -1e9]])}
    path = onnx_file(tmp_path / "m.onnx", nodes, {"x": [1, 4]}, ["y"], weights)
    mpc.save_architecture(path, tmp_path / "a.onnx")
    data = (tmp_path / "a.onnx").read_bytes()
    for each in (weights["b"], helper.get_attribute_value(nodes[0].attribute[0])):
        raw = each.astype(np.float32).tobytes() if isinstance(each, np.ndarray) else each.raw_data
        assert raw[:4] not in data
    public, whole = mpc.load_architecture(tmp_path / "a.onnx"), mpc.load_model(path)
    shapes = {name: value.shape for name, value in whole.state_dict().items()}
    assert (
        {name: value.shape for name, value in public.state_dict().items()}
        == shapes
        == {
            "weights.b": (2,),
            "weights.c": (4, 2),
        }
    )
    with pytest.raises(ModelFormatError, match="withheld"):
        mpc.load_model(tmp_path / "a.onnx")


def _tensor(name: str, value: np.ndarray) -> Any:
    from onnx import numpy_helper

    return numpy_helper.from_array(value.astype(np.float32), name)


def test_what_is_secret_of_small_and_of_whole_numbers(tmp_path: Path) -> None:
    nodes = [
        node("MatMul", ["x", "w"], ["m"]),
        node("Add", ["m", "bias"], ["a"]),
        node("Mul", ["a", "scale"], ["s"]),
        node("DequantizeLinear", ["q", "step"], ["d"]),
        node("Add", ["s", "d"], ["y"]),
    ]
    weights = {
        "w": _array(3, 1),
        "bias": np.array([0.25]),
        "scale": np.array([0.5]),
        "q": np.array([3, -4], np.int8),
        "step": np.array(0.1),
    }
    path = onnx_file(tmp_path / "m.onnx", nodes, {"x": [1, 3]}, ["y"], weights)
    assert sorted(mpc.load_model(path).state_dict()) == ["weights.bias", "weights.d", "weights.w"]
    shown = mpc.load_model(path, public=["w"])
    assert sorted(shown.state_dict()) == ["weights.bias", "weights.d"]
    with pytest.raises(UsageError, match="no constant 'v'"):
        mpc.load_model(path, public=["v"])


def test_an_error_names_the_node(tmp_path: Path) -> None:
    path = onnx_file(
        tmp_path / "m.onnx",
        [node("MatMul", ["x", "w"], ["y"], name="/fc/MatMul")],
        {"x": [1, 4]},
        ["y"],
        {"w": _array(4, 2)},
    )
    with pytest.raises(UsageError, match=r"node '/fc/MatMul' \(MatMul.*shapes \(1, 3\), \(4, 2\)"):
        mpc.load_model(path)(torch.zeros(1, 3))
    with pytest.raises(UsageError, match="got 2 inputs, wanted x"):
        mpc.load_model(path)(torch.zeros(1, 4), torch.zeros(1))
