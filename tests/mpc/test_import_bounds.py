"""Files that would run code when they are loaded, or take far more memory than they have bytes."""

from __future__ import annotations

import json
import resource
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from strongroom import mpc
from strongroom.errors import ModelFormatError
from strongroom.mpc.imports import room
from strongroom.mpc.imports.graph_def import read_graph_def
from strongroom.mpc.imports.program_file import is_size
from tests.mpc.imported import onnx_file

pytest.importorskip("onnx")
from onnx import TensorProto, helper, numpy_helper

node = helper.make_node
Change = Callable[[dict[str, Any]], object]


# Exported programs


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("program") / "m.pt2"
    torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.zeros(1, 2),)), path)
    return path


def _changed(
    saved: Path, to: Path, change: Change, *, config: Change = lambda _: None, more: dict[str, bytes] | None = None
) -> Path:
    with zipfile.ZipFile(saved) as archive, zipfile.ZipFile(to, "w") as made:
        root = archive.namelist()[0].split("/")[0]
        for name in archive.namelist():
            data = archive.read(name)
            for end, how in (("models/model.json", change), ("model_weights_config.json", config)):
                if name.endswith(end):
                    value = json.loads(data)
                    how(value)
                    data = json.dumps(value).encode()
            made.writestr(name, data)
        for name, data in (more or {}).items():
            made.writestr(name.replace("ROOT", root), data)
    return to


def _renamed(old: str, new: str) -> Change:
    def change(value: dict[str, Any]) -> None:
        whole = json.loads(json.dumps(value).replace(json.dumps(old), json.dumps(new)))
        value.clear()
        value.update(whole)

    return change


def _module(change: Change) -> Change:
    return lambda value: change(value["graph_module"])


def _signature(value: dict[str, Any]) -> Any:
    return value["graph_module"]["module_call_graph"][0]["signature"]


def _keyword(key: object) -> Change:
    def change(value: dict[str, Any]) -> None:
        spec = json.loads(_signature(value)["in_spec"])
        spec[1]["children_spec"][1]["context"] = json.dumps(key)
        _signature(value)["in_spec"] = json.dumps(spec)

    return change


def _calls(target: str) -> Change:
    return lambda value: value["graph_module"]["graph"]["nodes"][0].update(target=target)


def _argument(**arg: Any) -> Change:
    return lambda value: value["graph_module"]["graph"]["nodes"][0]["inputs"][0].update(arg=arg)


_CODE = "x=open('ran','w').write('')"
_QUOTE = """w", exec("open('ran','w')") or self) or getattr(self, "w"""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_renamed("input", _CODE), 'calls something "x=open'),
        (_renamed("linear", _CODE), 'calls something "x=open'),
        (_renamed("input", "lambda"), "calls something 'lambda'"),
        (lambda value: _signature(value).update(forward_arg_names=[_CODE]), 'calls something "x=open'),
        (_keyword(["a':open('ran','w'),'b"]), "calls something"),
        (_keyword({"__enum__": True, "fqn": "this:Zen", "name": "x"}), "wanted tuples, lists"),
        (_renamed("weight", _QUOTE), "calls something"),
        (_calls("torch.ops.aten.from_file.default"), "wanted operators of ATen"),
        (_calls("torch.ops.aten.set_.source_Tensor"), "wanted operators of ATen"),
        (_calls("torch.ops.aten.empty_like.default"), "wanted operators of ATen"),
        (_calls("torch.ops.aten.add.__module__"), "wanted operators of ATen"),
        (_argument(as_operator="torch.hub.load"), "has a as_operator"),
        (_argument(as_graph={"name": "g", "graph": {}}), "has a as_graph"),
    ],
)
def test_a_program_that_is_written_with_code(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Change, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelFormatError, match=message):
        mpc.load_model(_changed(saved, tmp_path / "m.pt2", change))(torch.zeros(1, 2))
    assert not (tmp_path / "ran").exists()


def test_a_parameter_whose_name_is_code(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def named(value: dict[str, Any]) -> None:
        for spec in value["graph_module"]["signature"]["input_specs"]:
            if spec.get("parameter", {}).get("parameter_name") == "weight":
                spec["parameter"]["parameter_name"] = _QUOTE

    def held(value: dict[str, Any]) -> None:
        value["config"][_QUOTE] = value["config"].pop("weight")

    for change in (named, lambda _: None):
        with pytest.raises(ModelFormatError, match="calls something"):
            mpc.load_model(_changed(saved, tmp_path / "m.pt2", change, config=held))
    assert not (tmp_path / "ran").exists()


def test_what_a_program_does_not_need_is_left_out(saved: Path, tmp_path: Path) -> None:
    def change(value: dict[str, Any]) -> None:
        value["guards_code"] = ["open('ran','w')"]
        for each in value["graph_module"]["graph"]["nodes"]:
            each["metadata"] = {"stack_trace": "x\n    raise SystemExit", "source_fn_stack": "a,torch.hub.load"}

    path = _changed(saved, tmp_path / "m.pt2", change, more={"ROOT/extra/note.txt": b"none"})
    assert mpc.load_model(path)(torch.zeros(1, 2)).shape == (1, 2)


@pytest.mark.parametrize(
    "member",
    [
        "ROOT/data/constants/custom_obj_0",
        "ROOT/models/other.json",
        "serialized_state_dict.pt",
        "ROOT/data/aotinductor/m/a.so",
    ],
)
def test_a_program_with_other_files(saved: Path, tmp_path: Path, member: str) -> None:
    with pytest.raises(ModelFormatError, match=r"save it again|no archive|has '"):
        mpc.load_model(_changed(saved, tmp_path / "m.pt2", lambda _: None, more={member: b"{}"}))


def test_a_program_that_is_larger_than_its_file(saved: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(saved) as archive, zipfile.ZipFile(tmp_path / "z.pt2", "w", zipfile.ZIP_DEFLATED) as made:
        for name in archive.namelist():
            made.writestr(name, archive.read(name) + bytes(1 << 16 if "weight_0" in name else 0))
    with pytest.raises(ModelFormatError, match="holds more than its"):
        mpc.load_model(tmp_path / "z.pt2")

    def spread(value: dict[str, Any]) -> None:
        meta = value["config"]["weight"]["tensor_meta"]
        meta["sizes"], meta["strides"] = [{"as_int": 1 << 20}] * 2, [{"as_int": 0}] * 2

    with pytest.raises(ModelFormatError, match="bytes of what it holds"):
        mpc.load_architecture(_changed(saved, tmp_path / "s.pt2", lambda _: None, config=spread))


def test_sizes() -> None:
    for fine in ("s0", "2*s0 + 1", "s0**2", "Symbol('s0', positive=True, integer=True)", "Mul(Integer(2), s77)",
                 "Pow(s0, Integer(2))", "Max(1, s0//2)", "-s0 + 3", "s0 <= 5"):  # fmt: skip
        assert is_size(fine), fine
    for code in ("9**9**9", "Pow(Integer(9), Pow(9, 9))", "(((((9**8)**8)**8)**8)**8)", "s0.is_integer", "s0[0]",
                 "lambda: 1", "'s0'", "Symbol('x')", "exec('s0')", "9" * 5000, "(" * 3000):  # fmt: skip
        assert not is_size(code), code[:40]


# Memory


def _ones(name: str, *shape: int) -> dict[str, np.ndarray[Any, Any]]:
    return {name: np.ones(shape, np.float32)}


def _made(path: Path, nodes: list[Any], **held: Any) -> Path:
    nodes = [*nodes, node("ReduceSum", ["c"], ["d"], keepdims=0), node("Add", ["x", "d"], ["y"])]
    return onnx_file(path, nodes, {"x": [1, 1]}, ["y"], {name: np.asarray(value) for name, value in held.items()})


def _ones_of(size: str, to: str) -> Any:
    return node("ConstantOfShape", [size], [to], value=numpy_helper.from_array(np.ones(1, np.float32), "v"))


def test_constants_that_would_fill_the_memory(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    outer = [_ones_of("s", "a"), _ones_of("t", "b"), node("MatMul", ["a", "b"], ["c"])]
    for made, held in (
        (outer, {"s": [1 << 16, 1], "t": [1, 1 << 13]}),
        ([node("Pad", ["o", "p"], ["c"])], {**_ones("o", 1, 1), "p": [0, 0, 1 << 14, 1 << 15]}),
        ([node("Tile", ["o", "p"], ["c"])], {**_ones("o", 1, 1), "p": [1 << 14, 1 << 15]}),
        (
            [node("OneHot", ["i", "n", "v"], ["c"])],
            {"i": range(1024), "n": [1 << 19], "v": np.array([0, 1], np.float32)},
        ),
        ([node("Resize", ["o", "", "", "p"], ["c"])], {**_ones("o", 1, 1, 1, 1), "p": [1, 1, 1 << 14, 1 << 15]}),
    ):
        with pytest.raises(ModelFormatError, match=r"makes \d+ bytes of constants, wanted at most 1073"):
            mpc.load_model(_made(path, made, **held))


def test_many_small_constants_leave_what_has_no_room_for_when_the_model_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "MAX_MADE", 1 << 22)
    many = [_ones_of("s", "c"), *(node("Add", ["c", "c"], [f"n{i}"]) for i in range(300))]
    nodes = [*many, node("Sum", ["x", *(f"n{i}" for i in range(300))], ["y"])]
    path = onnx_file(tmp_path / "m.onnx", nodes, {"x": [1]}, ["y"], {"s": np.array([1 << 14])})
    model: Any = mpc.load_model(path)
    assert sum(8 * each.numel() for each in model._constants.values()) <= 1 << 22
    assert float(model(torch.zeros(1))[0]) == 600


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_withheld_weights_take_no_memory_until_they_are_written_to(tmp_path: Path) -> None:
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1 << 14, 1 << 15])
    graph = helper.make_graph(
        [node("Neg", ["w"], ["n"]), node("MatMul", ["x", "n"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1 << 14])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    before = _peak()
    loaded = mpc.load_architecture(tmp_path / "m.onnx")
    assert _peak() - before < 2**29
    (found,) = loaded.parameters()
    found[0, 0] = 1
    assert found[0, 1] == 0


def test_constants_of_a_tensorflow_graph_in_all(tmp_path: Path) -> None:
    def field(number: int, data: bytes) -> bytes:
        return bytes([number << 3 | 2]) + _varint(len(data)) + data

    def constant(name: str, size: int) -> bytes:
        tensor = b"\x08\x01" + field(2, field(2, b"\x08" + _varint(size))) + field(5, np.float32(1).tobytes())
        value = field(5, field(1, b"value") + field(2, field(8, tensor)))
        return field(1, field(1, name.encode()) + field(2, b"Const") + value)

    fine = read_graph_def(constant("a", 1 << 10))
    assert fine.constants["a:0"].shape == (1 << 10,)
    with pytest.raises(ModelFormatError, match=r"constant 'c1?[0-9]' .* beyond what the file holds"):
        read_graph_def(b"".join(constant(f"c{i}", 1 << 24) for i in range(20)))


def _varint(value: int) -> bytes:
    made = b""
    while value > 127:
        made, value = made + bytes([value & 127 | 128]), value >> 7
    return made + bytes([value])


# Errors that say which file, and none of another class


def test_a_message_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "junk.pb").write_bytes(b"junk")
    with pytest.raises(ModelFormatError, match=r"junk\.pb is no TensorFlow graph"):
        mpc.load_model(tmp_path / "junk.pb")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelFormatError, match=f"{tmp_path.name} has no saved_model"):
        mpc.load_model(".")
