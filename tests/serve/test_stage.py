"""A stage: what is accepted as a model, what it says of itself, and what it refuses to run."""

import hashlib
import io
import pickle
import sys
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from strongroom.errors import MissingDependencyError, ModelFormatError, ServeError, UnansweredError, UsageError
from strongroom.serve import Stage
from strongroom.serve.ending import Ending
from strongroom.serve.onnx_file import require_self_contained_onnx
from strongroom.serve.runtime import _cores
from strongroom.serve.tensors import DATATYPES, TensorInfo
from tests.serve.world import ENDLESS, double, echo, model, turning, two_by_two

MNIST = Path(__file__).parent / "models" / "mnist-8"


def load(raw, **options):
    return Stage.load(raw, **{"name": "m", "threads": 1} | options)


def tensor(path):
    return numpy_helper.to_array(onnx.load_tensor(path))


def test_a_real_model_gives_its_reference_output():
    stage = load((MNIST / "model.onnx").read_bytes(), threads=None)
    assert stage.inputs == [TensorInfo("Input3", "FP32", (1, 1, 28, 28))]
    scores = stage.infer({"Input3": tensor(MNIST / "input_0.pb")})["Plus214_Output_0"]
    np.testing.assert_allclose(scores, tensor(MNIST / "output_0.pb"), rtol=1e-4, atol=1e-3)


def test_what_a_stage_says_of_itself():
    stage = load(double())
    assert stage.digest == hashlib.sha256(double()).hexdigest()
    assert stage.metadata() == {
        "name": "m",
        "versions": ["1"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 3]}],
    }


@pytest.mark.parametrize("datatype", DATATYPES)
def test_every_datatype_goes_through(datatype):
    names = {"BOOL": "BOOL", "FP16": "FLOAT16", "FP32": "FLOAT", "FP64": "DOUBLE"}
    stage = load(echo(getattr(TensorProto, names.get(datatype, datatype))))
    x = np.array([0, 1, 1], DATATYPES[datatype])
    y = stage.infer({"x": x})["y"]
    assert y.dtype == x.dtype
    assert y.tolist() == x.tolist()


def test_only_the_outputs_wanted():
    stage = load(two_by_two())
    inputs = {"a": np.array([2, 3]), "b": np.array([5, 7])}
    assert {name: y.tolist() for name, y in stage.infer(inputs).items()} == {"total": [7, 10], "product": [10, 21]}
    assert {name: y.tolist() for name, y in stage.infer(inputs, ["product"]).items()} == {"product": [10, 21]}
    with pytest.raises(ServeError, match="output 'sum': unknown, wanted some of total, product"):
        stage.infer(inputs, ["sum"])


def test_a_run_that_nobody_waits_for_ends():
    stage, ending = load(turning()), Ending()
    x = np.zeros(2, np.float32)
    assert stage.infer({"x": x, "turns": np.array(3)}, ending=ending)["y"].tolist() == [3, 3]

    def ask():
        with pytest.raises(UnansweredError, match="nobody waits"):
            stage.infer({"x": x, "turns": np.array(ENDLESS)}, ending=ending)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    ending.end()
    asking.join(60)
    assert not asking.is_alive()
    ask()  # what is over does not begin
    assert stage.infer({"x": x, "turns": np.array(3)}, ending=Ending())["y"].tolist() == [3, 3]


def test_while_one_runs_others_are_answered_refused_and_ended():
    stage, x = load(turning(), threads=2), np.zeros(2, np.float32)
    endings, ended = [Ending(), Ending()], []

    def ask(ending):
        with pytest.raises(UnansweredError, match="nobody waits"):
            stage.infer({"x": x, "turns": np.array(ENDLESS)}, ending=ending)
        ended.append(ending)

    first, second = (threading.Thread(target=ask, args=(ending,)) for ending in endings)
    first.start()
    for turns in (1, 2, 3):
        assert stage.infer({"x": x, "turns": np.array(turns)})["y"].tolist() == [turns, turns]
    pair = load(two_by_two(), threads=2)
    with pytest.raises(ServeError, match="model m: fails on these inputs"):
        pair.infer({"a": np.array([2, 3]), "b": np.array([5, 7, 11])})
    second.start()
    endings[1].end()
    second.join()
    assert ended == endings[1:]  # it was the one that was meant
    endings[0].end()
    first.join()


def test_two_processors_of_one_core_count_once():
    text = "".join(
        f"processor\t: {number}\nphysical id\t: {number // 4}\ncore id\t: {number // 2 % 2}\n\n" for number in range(8)
    )
    assert [_cores(text, usable) for usable in (set(range(8)), {0, 1}, {0, 2}, {1, 5})] == [4, 1, 2, 2]
    assert _cores("processor\t: 0\n\nprocessor\t: 1\n", {0, 1}) == 2  # where it tells no more
    assert _cores("Hardware\t: unknown\n", {0, 1}) == 0


def test_read_only_and_strided_inputs():
    x = np.arange(12, dtype=np.float32).reshape(2, 6)[:, ::2]
    assert load(double()).infer({"x": x})["y"].tolist() == (x + x).tolist()
    fixed = np.frombuffer(np.float32([1, 2, 3]).tobytes(), np.float32).reshape(1, 3)
    assert load(double()).infer({"x": fixed})["y"].tolist() == [[2, 4, 6]]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, r"input 'x': missing, wanted FP32\[-1, 3\]"),
        ({"x": np.zeros((1, 3), np.float32), "z": np.zeros(1)}, "input 'z': unknown, wanted x"),
        ({"x": np.zeros((1, 3))}, "got datatype FP64, wanted FP32"),
        ({"x": np.zeros((1, 4), np.float32)}, r"got shape \[1, 4\], wanted \[-1, 3\]"),
    ],
)
def test_inputs_that_do_not_fit(inputs, message):
    with pytest.raises(ServeError, match=message):
        load(double()).infer(inputs)


def test_what_only_onnx_runtime_can_tell_is_refused_in_our_words(capfd):
    inputs = {"a": np.array([1, 2]), "b": np.array([1, 2, 3])}
    with pytest.raises(ServeError, match="model m: fails on these inputs") as caught:
        load(two_by_two()).infer(inputs)
    assert caught.value.__cause__ is None
    assert capfd.readouterr() == ("", "")


def test_many_threads_share_a_stage():
    stage = load(double())

    def run(i):
        x = np.full((4, 3), i, np.float32)
        return np.array_equal(stage.infer({"x": x})["y"], 2 * x)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(run, range(200)))


def zipped():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", b"x")
    return buffer.getvalue()


NOT_ONNX = {
    "empty": (b"", "is empty"),
    "pytorch": (zipped(), "a zip archive, as of torch.save"),
    "pickle": (pickle.dumps({"w": 1}), "a Python pickle"),
    "keras_h5": (b"\x89HDF\r\n\x1a\n" + bytes(100), "HDF5"),
    "gguf": (b"GGUF" + bytes(100), "GGUF"),
    "tflite": (bytes(4) + b"TFL3" + bytes(100), "TensorFlow Lite"),
    "ort": (bytes(4) + b"ORTM" + bytes(100), "own format"),
    "safetensors": (b"\x40" + bytes(7) + b'{"w":{}}', "safetensors"),
    "lfs_pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "Git LFS pointer"),
    "html": (b"<!DOCTYPE html>", "HTML"),
    "json": (b'{"a": 1}', "JSON"),
    "text": (b"hello, this is no model", "not ONNX"),
    "zeros": (bytes(1000), "not ONNX"),
    "protobuf_without_a_graph": (b"\x08\x09", "not ONNX"),
    "cut_short": (double()[:-1], "not ONNX, or were cut short"),
    "trailing": (double() + b"\x07", "not ONNX"),
}


@pytest.mark.parametrize("name", NOT_ONNX)
def test_what_is_not_onnx(name):
    raw, message = NOT_ONNX[name]
    with pytest.raises(ModelFormatError, match=message) as caught:
        load(raw)
    assert caught.value.hint or not raw


@pytest.mark.parametrize("cut", range(0, len(double()), 7))
def test_a_model_cut_anywhere_is_a_format_error(cut):
    with pytest.raises(ModelFormatError):
        load(double()[:cut])


def external(where):
    """A model with one tensor whose data lie in another file, at one of the places where tensors can be."""
    weights = numpy_helper.from_array(np.ones(3, np.float32), "w")
    weights.ClearField("raw_data")
    weights.data_location = TensorProto.EXTERNAL
    weights.external_data.add(key="location", value="/etc/passwd")
    ones = numpy_helper.from_array(np.ones(1, np.float32), "v")
    io_infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [3]) for name in ("x", "y")]
    constant = helper.make_node("Constant", [], ["w"], value=weights)
    add = helper.make_node("Add", ["x", "w"], ["y"])
    if where == "initializer":
        graph = helper.make_graph([add], "g", io_infos[:1], io_infos[1:], [weights])
    elif where == "constant":
        graph = helper.make_graph([constant, add], "g", io_infos[:1], io_infos[1:])
    elif where == "branch":
        branch = helper.make_graph([constant], "b", [], [helper.make_tensor_value_info("w", TensorProto.FLOAT, [3])])
        choose = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
        graph = helper.make_graph([choose], "g", io_infos[:1], io_infos[1:])
    elif where == "sparse":
        sparse = helper.make_sparse_tensor(ones, numpy_helper.from_array(np.array([0]), "i"), [3])
        sparse.values.CopyFrom(weights)
        graph = helper.make_graph([add], "g", io_infos[:1], io_infos[1:], sparse_initializer=[sparse])
    else:
        graph = helper.make_graph([add], "g", io_infos[:1], io_infos[1:])
    made = helper.make_model(graph)
    if where == "function":
        made.functions.append(helper.make_function("d", "f", [], ["w"], [constant], made.opset_import))
    return made.SerializeToString()


@pytest.mark.parametrize("where", ["initializer", "constant", "branch", "sparse", "function"])
def test_a_model_that_names_files_is_refused_before_anything_opens_them(where):
    with pytest.raises(ModelFormatError, match="keeps weights in other files") as caught:
        load(external(where))
    assert "onnx.save" in str(caught.value.hint)


def test_a_model_without_files_passes_the_same_walk():
    require_self_contained_onnx(external("nowhere"))


def test_a_model_that_nests_without_end_is_refused():
    graph = b"\x0a\x00"
    for _ in range(200):  # a node's attribute's graph, within a graph
        attribute = b"\x32" + varint(len(graph)) + graph
        node = b"\x2a" + varint(len(attribute)) + attribute
        graph = b"\x0a" + varint(len(node)) + node
    with pytest.raises(ModelFormatError, match="not ONNX"):
        require_self_contained_onnx(b"\x08\x09\x3a" + varint(len(graph)) + graph)


def varint(value):
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(out) + bytes([value])


def test_a_model_that_onnx_runtime_cannot_load_says_why(capfd):
    unknown = helper.make_node("Frobnicate", ["x"], ["y"], domain="acme")
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [3]) for name in "xy"]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("acme", 1)]
    raw = helper.make_model(helper.make_graph([unknown], "g", infos[:1], infos[1:]), opset_imports=opsets, ir_version=9)
    with pytest.raises(ModelFormatError, match=r"cannot load it: .*Frobnicate"):
        load(raw.SerializeToString())
    assert capfd.readouterr() == ("", "")


def test_text_tensors_are_refused_at_load():
    with pytest.raises(ModelFormatError, match=r"input 'x': is a tensor\(string\)"):
        load(echo(TensorProto.STRING))


def test_a_model_that_dislikes_zeros_still_loads():
    nodes = [helper.make_node("Reshape", ["x", "s"], ["y"])]
    inputs = [("x", TensorProto.FLOAT, [6]), ("s", TensorProto.INT64, [2])]
    raw = model(nodes, inputs, [("y", TensorProto.FLOAT, ["p", "q"])])
    y = load(raw).infer({"x": np.arange(6, dtype=np.float32), "s": np.array([2, 3])})["y"]
    assert y.shape == (2, 3)


@pytest.mark.parametrize("name", ["", "a/b", "a b", "ü", "x" * 129, "a\n"])
def test_names_that_cannot_be_part_of_a_path(name):
    with pytest.raises(UsageError, match="model name"):
        load(double(), name=name)


def test_threads_are_counted_from_one():
    with pytest.raises(UsageError, match="threads: got 0"):
        load(double(), threads=0)


def test_without_onnx_runtime(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependencyError, match="onnxruntime") as caught:
        load(double())
    assert caught.value.hint == "pip install 'strongroom[serve]'"
