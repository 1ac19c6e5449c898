"""Files from elsewhere that lie, are broken, or hold code: each is refused, and says why."""

from __future__ import annotations

import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from strongroom import mpc
from strongroom.errors import FormatError, ModelFormatError, UsageError
from tests.mpc.imported import onnx_file

pytest.importorskip("onnx")
import onnx
from onnx import TensorProto, helper

node = helper.make_node


def _plain(path: Path, **changes: Any) -> Path:
    return onnx_file(path, [node("MatMul", ["x", "w"], ["y"])], {"x": [1, 2]}, ["y"], {"w": np.eye(2)}, **changes)


def _outside(path: Path, location: str, **more: str) -> Path:
    """A model whose weight lies in another file."""
    model = onnx.load(_plain(path))
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **more}.items():
        tensor.external_data.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())
    return path


def test_weights_beside_the_model(tmp_path: Path) -> None:
    weight = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)
    (tmp_path / "w.bin").write_bytes(b"pad." + weight.tobytes())
    path = _outside(tmp_path / "m.onnx", "w.bin", offset="4", length="16")
    assert torch.equal(mpc.load_model(path)(torch.tensor([[1.0, 1.0]])), torch.tensor([[4.0, 6.0]]))
    mpc.save_architecture(path, tmp_path / "a.onnx")
    (tmp_path / "w.bin").unlink()
    for architecture in (path, tmp_path / "a.onnx"):  # neither needs the weights' file
        assert mpc.load_architecture(architecture).state_dict()["weights.w"].shape == (2, 2)


@pytest.mark.parametrize("location", ["../w.bin", "/etc/passwd", "", "a/../../w.bin"])
def test_weights_elsewhere(tmp_path: Path, location: str) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(16))
    (tmp_path / "inner").mkdir()
    with pytest.raises(ModelFormatError, match="wanted a file beside the model"):
        mpc.load_model(_outside(tmp_path / "inner" / "m.onnx", location))


def test_weights_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(16))
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "w.bin").symlink_to(tmp_path / "w.bin")
    with pytest.raises(ModelFormatError, match="a link that leads elsewhere"):
        mpc.load_model(_outside(tmp_path / "inner" / "m.onnx", "w.bin"))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"offset": "8"}, "ends in 'w', wanted 16 bytes from 8 on"),
        ({"offset": "-1"}, "wanted a number of bytes"),
        ({"length": "12"}, "has 12 bytes, its shape has 16"),
    ],
)
def test_weights_that_are_not_there(tmp_path: Path, more: dict[str, str], message: str) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(16))
    with pytest.raises(ModelFormatError, match=message):
        mpc.load_model(_outside(tmp_path / "m.onnx", "w.bin", **more))


def test_a_file_that_is_cut_short_anywhere(tmp_path: Path) -> None:
    data = _plain(tmp_path / "m.onnx").read_bytes()
    whole = mpc.load_model(tmp_path / "m.onnx").state_dict()
    for end in range(0, len(data), 3):
        (tmp_path / "cut.onnx").write_bytes(data[:end])
        try:
            model = mpc.load_model(tmp_path / "cut.onnx")
        except (FormatError, UsageError):
            continue
        # Only what comes after the graph may be missing.
        assert model.state_dict().keys() == whole.keys()


def test_a_shape_that_would_fill_the_memory(tmp_path: Path) -> None:
    model = onnx.load(_plain(tmp_path / "m.onnx"))
    tensor = model.graph.initializer[0]
    tensor.ClearField("dims")
    tensor.dims.extend([1 << 31, 1 << 31])
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelFormatError, match="wanted at most"):
        mpc.load_architecture(tmp_path / "m.onnx")
    sizes = {"s": np.array([1 << 20, 1 << 20])}
    path = onnx_file(
        tmp_path / "n.onnx",
        [node("ConstantOfShape", ["s"], ["c"]), node("Add", ["x", "c"], ["y"])],
        {"x": [1]},
        ["y"],
        sizes,
    )
    with pytest.raises(UsageError, match="makes 1099511627776 elements"):
        mpc.load_model(path)


def test_what_cannot_be_run_is_named(tmp_path: Path) -> None:
    nodes = [
        node("Foo", ["x"], ["a"], name="first", domain="my.own"),
        node("NonMaxSuppression", ["a", "a"], ["y"], name="second"),
    ]
    path = onnx_file(tmp_path / "m.onnx", nodes, {"x": [1]}, ["y"])
    with pytest.raises(ModelFormatError, match=r"'first' \(Foo, my.own, version 1\), node 'second' \(NonMaxSup.*17\)"):
        mpc.load_model(path)
    with pytest.raises(ModelFormatError, match="opset 6, wanted 7"):
        mpc.load_model(_plain(tmp_path / "old.onnx", opset=6))
    trees = node("TreeEnsembleClassifier", ["x"], ["label", "y"], domain="ai.onnx.ml")
    with pytest.raises(ModelFormatError, match=r"TreeEnsembleClassifier, ai\.onnx\.ml"):
        mpc.load_model(onnx_file(tmp_path / "t.onnx", [trees], {"x": [1, 2]}, ["y"]))
    for name in ("m.bin", "m.txt"):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(FormatError, match="of no kind"):
            mpc.load_model(tmp_path / name)


# Exported programs


def _program(path: Path) -> Path:
    torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.zeros(1, 2),)), path)
    return path


def _changed(path: Path, change: Any) -> Path:
    """The archive with its members changed: a function of name and bytes."""
    made = io.BytesIO()
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(made, "w") as changed:
        for info in archive.infolist():
            name, data = change(info.filename, archive.read(info))
            changed.writestr(name, data)
    path.write_bytes(made.getvalue())
    return path


class _Runs:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path(os.environ["STRONGROOM_TEST_RAN"]),))


def test_a_program_with_a_pickle_does_not_run_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = tmp_path / "ran"
    monkeypatch.setenv("STRONGROOM_TEST_RAN", str(ran))
    pickled = io.BytesIO()
    torch.save(_Runs(), pickled)

    def as_inputs(name: str, data: bytes) -> tuple[str, bytes]:
        return name, pickled.getvalue() if "sample_inputs" in name else data

    model = mpc.load_model(_changed(_program(tmp_path / "m.pt2"), as_inputs))
    assert model(torch.zeros(1, 2)).shape == (1, 2)

    def as_weights(name: str, data: bytes) -> tuple[str, bytes]:
        if name.endswith("weights_config.json"):
            return name, data.replace(b'"use_pickle": false', b'"use_pickle": true').replace(
                b'"use_pickle":false', b'"use_pickle":true'
            )
        return name, pickled.getvalue() if "weights/weight_" in name else data

    with pytest.raises(ModelFormatError, match="pickled tensors"):
        mpc.load_model(_changed(_program(tmp_path / "n.pt2"), as_weights))
    assert not ran.exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("torch.ops.aten.linear.default", "torch.hub.load", "calls 'torch.hub.load'"),
        ("torch.ops.aten.linear.default", "_operator.methodcaller", "wanted operators of ATen"),
    ],
)
def test_a_program_that_calls_something_else(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = _changed(_program(tmp_path / "m.pt2"), lambda name, data: (name, data.replace(old.encode(), new.encode())))
    with pytest.raises(ModelFormatError, match=message):
        mpc.load_model(path)


def test_a_size_that_is_code(tmp_path: Path) -> None:
    path = tmp_path / "m.pt2"
    program = torch.export.export(nn.Linear(2, 2), (torch.zeros(3, 2),), dynamic_shapes=({0: torch.export.Dim("b")},))
    torch.export.save(program, path)
    assert mpc.load_model(path)(torch.zeros(5, 2)).shape == (5, 2)

    def change(name: str, data: bytes) -> tuple[str, bytes]:
        if "/models/" not in name:
            return name, data
        text = json.loads(data)
        for each in _expressions(text):
            each["expr_str"] = "Max(__import__('os').getpid(), 1)"
        return name, json.dumps(text).encode()

    with pytest.raises(ModelFormatError, match="wanted sums and products"):
        mpc.load_model(_changed(path, change))


def _expressions(value: Any) -> list[dict[str, Any]]:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    here = [value] if isinstance(value, dict) and "expr_str" in value else []
    return here + [found for each in inner for found in _expressions(each)]


def test_no_program_at_all(tmp_path: Path) -> None:
    (tmp_path / "m.pt2").write_bytes(b"PK nothing")
    with pytest.raises(ModelFormatError, match="is no exported program"):
        mpc.load_model(tmp_path / "m.pt2")
