"""What others made: old and new, in pieces, float16, and made to do harm."""

import contextlib

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from strongroom.errors import FormatError, ModelFormatError, UsageError
from strongroom.serve.graph import load, optimise, units
from tests.serve.graph.world import (
    ALL,
    FLOAT,
    assert_same,
    constant,
    info,
    model,
    node,
    ones,
    residual,
    run,
    run_stages,
    tied,
    weight,
)


def refused(proto, match):
    with pytest.raises(ModelFormatError, match=match):
        units(load(proto if isinstance(proto, bytes) else proto.SerializeToString()))


@pytest.mark.parametrize("opset", [7, 8, 9, 10, 11, 13, 15, 18, 21])
def test_opsets_that_the_runtime_takes_are_left_as_they_are(opset):
    nodes = [node("Conv", "x w", "a"), node("Relu", "a", "b"), node("Flatten", "b", "c"), node("Gemm", "c v z", "y")]
    weights = [weight("w", 4, 4, 3, 3), weight("v", 64, 5), weight("z", 5)]
    made = model(nodes, [info("x", ("N", 4, 6, 6))], [info("y", ("N", 5))], weights, opset=opset, ir_version=4)
    if opset < 9:  # weights were inputs then
        made.ir_version = 3
        made.graph.input.extend(info(each.name, list(each.dims)) for each in weights)
    inputs, known = ones(x=(2, 4, 6, 6)), load(made.SerializeToString())
    chain = units(optimise(known))
    assert [tensor.name for tensor in chain.frontier(0)] == ["x"]
    assert known.notes == ()
    assert_same(run(made, inputs), run_stages(chain, range(len(chain) + 1), inputs))


@pytest.mark.parametrize(("opset", "newest"), [(6, False), (onnx.defs.onnx_opset_version(), True)])
def test_other_opsets_are_converted(opset, newest):
    made = model([node("Relu", "x", "a"), node("Exp", "a", "y")], [info("x")], [info("y")], opset=opset, ir_version=8)
    known = load(made.SerializeToString())
    if not newest or known.notes:
        assert known.notes[0].startswith(f"converted from opset {opset} to ")
    chain, inputs = units(known), ones(x=(2, 8))
    assert_same({"y": np.exp(np.maximum(inputs["x"], 0))}, run_stages(chain, range(len(chain) + 1), inputs))


def test_what_cannot_be_converted_is_refused():
    made = model([node("Softmax", "x", "y", axis=7)], [info("x")], [info("y")], opset=1, ir_version=3)
    refused(made, "opset 1, wanted 7 to .*cannot be converted|cannot load it")


def test_functions_of_the_models_own_are_put_in_their_places():
    function = helper.make_function(
        "own", "twice", ["a"], ["b"], [node("Add", "a a", "b")], [helper.make_opsetid("", 17)]
    )
    call = helper.make_node("twice", ["x"], ["m"], domain="own")
    made = model([call, node("Relu", "m", "y")], [info("x")], [info("y")], functions=[function])
    made.opset_import.append(helper.make_opsetid("own", 1))
    inputs = ones(x=(2, 8))
    chain = units(load(made.SerializeToString()))
    assert "Add" in chain[0].operators + chain[1].operators
    assert_same({"y": np.maximum(2 * inputs["x"], 0)}, run_stages(chain, range(len(chain) + 1), inputs))


def test_operators_out_of_order_and_of_one_name_are_put_right():
    nodes = [
        helper.make_node("Exp", ["b"], ["y"], name="same"),
        helper.make_node("Relu", ["a"], ["b"], name="same"),
        helper.make_node("Neg", ["x"], ["a"], name="same"),
    ]
    chain, inputs = units(load(model(nodes, [info("x")], [info("y")]).SerializeToString())), ones(x=(2, 8))
    assert [name for unit in chain for name in unit.operators] == ["Neg", "Relu", "Exp"]
    assert_same({"y": np.exp(np.maximum(-inputs["x"], 0))}, run_stages(chain, range(len(chain) + 1), inputs))


def test_float16_and_whole_numbers():
    nodes = [node("Gather", "t i", "e"), node("MatMul", "e w", "m"), node("Relu", "m", "r"), node("MatMul", "r v", "y")]
    weights = [
        weight("t", 50, 16, kind=np.float16),
        weight("w", 16, 32, kind=np.float16),
        weight("v", 32, 4, kind=np.float16),
    ]
    half = TensorProto.FLOAT16
    made = model(nodes, [info("i", ("N",), TensorProto.INT32)], [info("y", ("N", 4), half)], weights)
    inputs = {"i": np.array([3, 49], np.int32)}
    for known in (load(made.SerializeToString()), optimise(load(made.SerializeToString()))):
        chain = units(known)
        assert chain.frontier(0)[0].datatype == "INT32"
        assert_same(run(made, inputs), run_stages(chain, range(len(chain) + 1), inputs), within=1e-2)


def test_weights_in_files_beside_a_model_are_read_and_no_others(tmp_path):
    made, inputs = residual()
    whole = run(made, inputs)
    (tmp_path / "in").mkdir()
    path = tmp_path / "in/model.onnx"
    onnx.save(made, path, save_as_external_data=True, location="weights", size_threshold=0)
    chain = units(load(path))
    assert_same(whole, run_stages(chain, range(len(chain) + 1), inputs))
    with pytest.raises(ModelFormatError, match="keeps weights in other files"):
        load(path.read_bytes())
    assert load(path.read_bytes(), external=lambda name: (path.parent / name).read_bytes()).digest == load(path).digest
    (path.parent / "weights").rename(tmp_path / "weights")
    (path.parent / "weights").symlink_to(tmp_path / "weights")
    with pytest.raises(ModelFormatError, match="a link that leads elsewhere"):
        load(path)
    (path.parent / "weights").unlink()
    with pytest.raises(ModelFormatError, match="'weights'"):
        load(path)


@pytest.mark.parametrize("location", ["../weights", "/etc/passwd", "", "a/../../b"])
def test_weights_that_lie_elsewhere_are_refused(tmp_path, location):
    made = residual()[0]
    for each in made.graph.initializer[:1]:
        each.ClearField("raw_data")
        each.data_location = TensorProto.EXTERNAL
        each.external_data.add(key="location", value=location)
    (tmp_path / "model.onnx").write_bytes(made.SerializeToString())
    with pytest.raises(ModelFormatError, match="wanted a file beside the model"):
        load(tmp_path / "model.onnx")


def test_there_is_no_such_file(tmp_path):
    with pytest.raises(UsageError, match="no such file"):
        load(tmp_path / "model.onnx")


def test_what_is_no_onnx_is_refused():
    for data, match in (
        (b"", "empty"),
        (b"PK\x03\x04", "zip archive"),
        (b"\x08", "not ONNX"),
        (b"hello world", "not ONNX"),
    ):
        refused(data, match)


def test_graphs_that_make_no_sense_are_refused():
    ends = [info("x")], [info("y")]
    refused(model([node("Relu", "z", "y")], *ends), "'z' is taken and never made")
    refused(model([node("Relu", "x", "a")], *ends), "'y' is taken and never made")
    refused(model([node("Add", "x y", "y")], *ends), "'y' is made of itself")
    refused(model([node("Add", "x b", "a"), node("Exp", "a", "b"), node("Exp", "b", "y")], *ends), "is made of itself")
    refused(model([node("Relu", "x", "y"), node("Exp", "x", "y")], *ends), "'y' is made twice")
    refused(model([node("Relu", "x", "x")], *ends), "'x' is made twice")
    refused(model([node("Relu", "x", "y")], [info("x"), info("x")], [info("y")]), "two of this name")
    refused(model([node("Relu", "x", "y")], [info("x")], [info("y"), info("y")]), "two outputs have one name")
    refused(model([node("Relu", "x", "y")], [info("x")], [info("y")], [weight("w", 2), weight("w", 3)]), "of one name")
    refused(model([node("Relu", "x", "y")], [info("x")], []), "gives no answer")
    refused(model([node("NoSuchOperator", "x", "y")], *ends), "cannot load it")
    refused(model([helper.make_node("Mine", ["x"], ["y"], domain="of.others")], *ends), "cannot load it")


def test_weights_that_are_not_what_they_say_are_refused():
    for change in (
        {"dims": [4, -4]},
        {"dims": [1 << 40, 1 << 40]},
        {"dims": [1 << 62, 4]},
        {"dims": [5, 5]},
        {"data_type": 99},
        {"raw_data": b"123"},
        {"raw_data": b""},
    ):
        made = model([node("MatMul", "x w", "y")], [info("x", ("N", 4))], [info("y", ("N", 4))], [weight("w", 4, 4)])
        for name, value in change.items():
            if name == "dims":
                del made.graph.initializer[0].dims[:]
                made.graph.initializer[0].dims.extend(value)
            else:
                setattr(made.graph.initializer[0], name, value)
        refused(made, "'w' ")


@pytest.mark.parametrize("kind", ["sequence", "text", "odd"])
def test_what_a_request_cannot_hold_is_no_input(kind):
    text = helper.make_tensor_value_info("x", TensorProto.STRING, ["N"])
    many = helper.make_tensor_sequence_value_info("x", FLOAT, ["N"])
    odd = helper.make_tensor_value_info("x", TensorProto.BFLOAT16, ["N"])
    made = model([node("Identity", "x", "y")], [{"sequence": many, "text": text, "odd": odd}[kind]], [info("y")])
    refused(made, "input 'x': is a")


def test_deep_bodies_end():
    graph = helper.make_graph([node("Identity", "x", "out")], "g", [], [info("out")])
    for _ in range(60):
        graph = helper.make_graph(
            [node("If", "c", "out", then_branch=graph, else_branch=graph)], "g", [], [info("out")]
        )
        if graph.ByteSize() > 1 << 20:
            break
    inner = helper.make_graph([node("Identity", "x", "out")], "g", [], [info("out")])
    for _ in range(30):
        inner = helper.make_graph([node("If", "c", "out", then_branch=inner)], "g", [], [info("out")])
    made = model([node("If", "c", "y", then_branch=inner)], [info("x"), info("c", (), TensorProto.BOOL)], [info("y")])
    refused(made, ".*")


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(ALL)), st.data())
def test_bytes_that_were_changed_raise_nothing_else(name, data):
    whole = bytearray(SERIAL[name])
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.sampled_from([len(whole), len(whole) // 2]))
    with contextlib.suppress(FormatError):
        units(load(bytes(whole[:cut])))


SERIAL = {name: make()[0].SerializeToString() for name, make in ALL.items() if make is not tied}
SERIAL["tied"] = model(
    [node("Constant", "", "k", value=constant("k", [1.0] * 8, np.float32)), node("Add", "x k", "y")],
    [info("x")],
    [info("y")],
).SerializeToString()


def test_operators_that_nobody_has_are_named():
    proto = model([node("Mine", "x", "y", domain="example.ops")], [info("x")], [info("y")])
    proto.opset_import.append(onnx.helper.make_opsetid("example.ops", 1))
    with pytest.raises(ModelFormatError, match=r"example\.ops:Mine") as caught:
        units(load(proto.SerializeToString()))
    assert "those of ONNX alone" in str(caught.value.hint)
