"""TensorFlow's graphs run on secrets. Bytes are made here as TensorFlow would; it is needed for a SavedModel alone."""

from __future__ import annotations

import struct
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from strongroom import mpc
from strongroom.errors import MissingDependencyError, ModelFormatError
from tests.mpc.imported import on_secrets

_KINDS = {"float32": 1, "int32": 3, "int64": 9}


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    made = b""
    while value > 0x7F:
        made, value = made + bytes([value & 0x7F | 0x80]), value >> 7
    return made + bytes([value])


def _field(number: int, value: int | bytes | str) -> bytes:
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    data = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _attribute(value: Any) -> bytes:
    if isinstance(value, bool):
        return _field(5, int(value))
    if isinstance(value, int):
        return _field(3, value)
    if isinstance(value, float):
        return _varint(4 << 3 | 5) + struct.pack("<f", value)
    if isinstance(value, str):
        return _field(2, value)
    if isinstance(value, list):
        return _field(1, _field(3, b"".join(map(_varint, value))))
    shape = b"".join(_field(2, _field(1, n)) for n in value.shape)
    return _field(8, _field(1, _KINDS[value.dtype.name]) + _field(2, shape) + _field(4, value.tobytes()))


def _node(op: str, name: str, *inputs: str, **attributes: Any) -> bytes:
    entries = b"".join(
        _field(5, _field(1, key) + _field(2, _attribute(value))) for key, value in sorted(attributes.items())
    )
    return _field(1, _field(1, name) + _field(2, op) + b"".join(_field(3, each) for each in inputs) + entries)


def _graph(path: Path, constants: Mapping[str, np.ndarray], *nodes: bytes) -> Path:
    given = b"".join(_node("Const", name, value=value) for name, value in constants.items())
    path.write_bytes(b"".join(nodes) + given + _node("Placeholder", "x"))  # an order in which it cannot run
    return path


def _array(*shape: int) -> np.ndarray:
    return np.random.default_rng(8).standard_normal(shape).astype(np.float32)


def test_a_network_with_channels_last(tmp_path: Path) -> None:
    constants = {
        "w": _array(3, 3, 2, 4),
        "b": _array(4),
        "deep": _array(3, 3, 4, 1),
        "gamma": _array(4),
        "beta": _array(4),
        "mean": _array(4),
        "var": np.abs(_array(4)) + 0.5,
        "axes": np.array([1, 2], np.int32),
        "last": _array(4, 3),
    }
    same = {"strides": [1, 2, 2, 1], "padding": "SAME", "data_format": "NHWC"}
    path = _graph(
        tmp_path / "m.pb",
        constants,
        _node("Softmax", "y", "product"),
        _node("Conv2D", "c", "x", "w", **same),
        _node("BiasAdd", "cb", "c", "b", data_format="NHWC"),
        _node("Relu", "r", "cb", "^x"),
        _node("DepthwiseConv2dNative", "d", "r", "deep", **{**same, "strides": [1, 1, 1, 1]}),
        _node("FusedBatchNormV3", "n", "d", "gamma", "beta", "mean", "var", epsilon=0.001, is_training=False),
        _node("MaxPool", "p", "n:0", ksize=[1, 2, 2, 1], **same),
        _node("Mean", "g", "p", "axes", keep_dims=False),
        _node("MatMul", "product", "g", "last", transpose_a=False, transpose_b=False),
    )
    model, x = mpc.load_model(path), torch.randn(2, 7, 7, 2)
    parts = {name: torch.from_numpy(value) for name, value in constants.items()}
    y = functional.pad(x.permute(0, 3, 1, 2), (1, 1, 1, 1))
    y = functional.relu(functional.conv2d(y, parts["w"].permute(3, 2, 0, 1), parts["b"], stride=2))
    y = functional.conv2d(y, parts["deep"].permute(2, 3, 0, 1), padding=1, groups=4)
    y = functional.batch_norm(y, parts["mean"], parts["var"], parts["gamma"], parts["beta"], eps=0.001)
    wanted = (functional.max_pool2d(y, 2).mean((2, 3)) @ parts["last"]).softmax(-1)
    torch.testing.assert_close(model(x), wanted)
    torch.testing.assert_close(on_secrets(model, lambda: mpc.load_architecture(path), x), wanted, rtol=0, atol=1e-3)


def test_slices_by_masks_and_shapes_of_inputs(tmp_path: Path) -> None:
    ints = {name: np.array(value, np.int32) for name, value in {"b": [0], "e": [1], "s": [1], "three": 3}.items()}
    path = _graph(
        tmp_path / "m.pb",
        ints,
        _node("Shape", "shape", "x"),
        _node("StridedSlice", "batch", "shape", "b", "e", "s", shrink_axis_mask=1),
        _node("Pack", "size", "batch", "three", axis=0),
        _node("Reshape", "y", "x", "size"),
    )
    assert mpc.load_model(path)(torch.zeros(4, 3, 1)).shape == (4, 3)


def test_bytes_that_are_no_graph(tmp_path: Path) -> None:
    path = _graph(tmp_path / "m.pb", {"w": _array(2, 2)}, _node("MatMul", "y", "x", "w"))
    data = path.read_bytes()
    assert mpc.load_model(path)(torch.zeros(1, 2)).shape == (1, 2)
    for end in range(0, len(data), 7):
        path.write_bytes(data[:end])
        try:
            mpc.load_model(path)
        except ModelFormatError:
            continue
    for junk in (b"\xff" * 40, b"hello"):
        path.write_bytes(junk)
        with pytest.raises(ModelFormatError, match="no TensorFlow graph"):
            mpc.load_model(path)


def test_an_operator_that_cannot_be_run_is_named(tmp_path: Path) -> None:
    path = _graph(tmp_path / "m.pb", {}, _node("ReadFile", "y", "x"))
    with pytest.raises(ModelFormatError, match=r"node 'y' \(ReadFile, tensorflow"):
        mpc.load_model(path)


def test_a_saved_model_needs_tensorflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    (tmp_path / "saved_model.pb").write_bytes(b"")
    with pytest.raises(MissingDependencyError, match="tensorflow"):
        mpc.load_model(tmp_path)


@pytest.mark.skipif(find_spec("tensorflow") is None, reason="TensorFlow is not installed")
def test_a_saved_model(tmp_path: Path) -> None:
    import tensorflow

    class Model(tensorflow.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.w = tensorflow.Variable(_array(3, 2))

        @tensorflow.function(input_signature=[tensorflow.TensorSpec([None, 3])])  # type: ignore[untyped-decorator]
        def __call__(self, x: Any) -> Any:
            return tensorflow.nn.gelu(x @ self.w)

    net = Model()
    tensorflow.saved_model.save(net, str(tmp_path))
    model, x = mpc.load_model(tmp_path), torch.randn(2, 3)
    torch.testing.assert_close(model(x), functional.gelu(x @ torch.from_numpy(net.w.numpy())), rtol=1e-5, atol=1e-6)
