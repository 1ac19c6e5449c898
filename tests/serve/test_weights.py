"""Weights in other files: put together wherever the model keeps them, or refused before they fill the memory."""

import onnx
import pytest
from onnx import TensorProto, helper

from strongroom.errors import ModelFormatError
from strongroom.serve import weights
from strongroom.serve.onnx_file import has_outside_weights
from strongroom.serve.weights import inline_weights

W = bytes(range(16))


def outside(name, count=4, **said):
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[count], data_location=TensorProto.EXTERNAL)
    for key, value in said.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def made_of(*tensors, nodes=(), functions=()):
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "xy"]
    nodes = [*nodes, helper.make_node("Identity", ["x"], ["y"])]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], list(tensors))
    return helper.make_model(graph, functions=list(functions)).SerializeToString()


def branches(then_tensor, else_tensor):
    graphs = []
    for tensor in (then_tensor, else_tensor):
        end = helper.make_tensor_value_info("b", TensorProto.FLOAT, [4])
        graphs.append(helper.make_graph([helper.make_node("Identity", ["w"], ["b"])], "b", [], [end], [tensor]))
    return helper.make_node("If", ["c"], ["b"], then_branch=graphs[0], else_branch=graphs[1])


def test_tensors_of_branches_functions_and_attributes_are_put_in_too():
    constant = helper.make_node("Constant", [], ["k"], value=outside("", location="k"))
    in_function = helper.make_node("Constant", [], ["o"], value=outside("", location="f"))
    function = helper.make_function("d", "f", [], ["o"], [in_function], [helper.make_opsetid("", 17)])
    branch = branches(outside("w", location="t"), outside("w", location="e", offset="4", length="8"))
    made = made_of(outside("w", location="w"), nodes=[branch, constant], functions=[function])
    read = []

    def file(path):
        read.append(path)
        return W + path.encode() if path == "e" else W[:-1] + path.encode()

    whole = inline_weights(made, file)
    assert sorted(read) == ["e", "f", "k", "t", "w"]
    assert not has_outside_weights(whole)
    proto = onnx.load_model_from_string(whole)
    then_branch, else_branch = sorted(proto.graph.node[0].attribute, key=lambda one: one.name, reverse=True)
    assert then_branch.g.initializer[0].raw_data == W[:-1] + b"t"
    assert else_branch.g.initializer[0].raw_data == W[4:12]
    assert proto.functions[0].node[0].attribute[0].t.raw_data == W[:-1] + b"f"


def test_what_is_left_outside_is_refused():
    half = outside("w", location="w")
    half.data_location = TensorProto.DEFAULT  # names a file, and says that it does not mean it
    with pytest.raises(ModelFormatError, match="keeps weights in other files"):
        inline_weights(made_of(half), lambda path: W)


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ({"location": "w", "offset": "abc"}, "offset of weights is 'abc', wanted a number"),
        ({"location": "w", "offset": "9" * 5000}, "offset of weights is '999"),
        ({"location": "w", "offset": "17"}, "has 16 bytes, wanted at least 17"),
        ({"location": "w", "length": "-5"}, "length of weights is '-5', wanted a number"),
        ({"location": "w", "length": "17"}, "has 16 bytes, wanted at least 17"),
        ({"location": "a\0b"}, "wanted a file beside the model"),
        ({"location": "."}, "wanted a file beside the model"),
        ({"location": "../w"}, "wanted a file beside the model"),
        ({"location": "/w"}, "wanted a file beside the model"),
        ({"offset": "0"}, "wanted a file beside the model"),
    ],
)
def test_places_that_are_none_are_refused(said, text):
    with pytest.raises(ModelFormatError, match=text):
        inline_weights(made_of(outside("w", **said)), lambda path: W)


def test_a_file_is_read_once_however_it_is_spelt():
    read = []
    made = made_of(outside("v", location="d/w"), outside("w", location="./d//w"))
    inline_weights(made, lambda path: read.append(path) or W)
    assert read == ["d/w"]


def test_a_few_bytes_named_again_and_again_do_not_fill_the_memory():
    tied = [outside(f"w{i}", location="w") for i in range(2)]
    assert inline_weights(made_of(*tied), lambda path: W).count(W) == 2
    many = [outside(f"w{i}", location="w") for i in range(3)]
    with pytest.raises(ModelFormatError, match="48 bytes of weights out of files of 16, wanted at most 2 times"):
        inline_weights(made_of(*many), lambda path: W)


def test_the_limit_counts_before_anything_is_copied(monkeypatch):
    made = made_of(outside("v", location="v"), outside("w", location="w"), outside("u", location="u"))
    monkeypatch.setattr(weights, "_MAX_MODEL", len(made) + 47)
    with pytest.raises(ModelFormatError, match=f"{len(made) + 48} bytes with its weights, the limit is"):
        inline_weights(made, lambda path: W)
    read = []
    monkeypatch.setattr(weights, "_MAX_MODEL", 31)
    with pytest.raises(ModelFormatError, match="more files than make 31 bytes"):
        inline_weights(made, lambda path: read.append(path) or W)
    assert read == ["v", "w"]
