"""Models that exporters and people make and that are unlike most: each is cut everywhere and answers as the whole."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from strongroom.serve.graph import load, optimise, units
from tests.serve.graph.world import FLOAT, INT64, assert_same, constant, info, model, node, run, run_stages, weight

X = np.random.default_rng(0).standard_normal((2, 8)).astype(np.float32)
W = [weight(f"w{n}", 8, 8, seed=n) for n in range(4)]


def sequence():
    nodes = [
        node("MatMul", "x w0", "a"), node("SplitToSequence", "a", "s", axis=1),
        node("ConcatFromSequence", "s", "c", axis=1), node("MatMul", "c w1", "y"),
    ]  # fmt: skip
    return model(nodes, [info("x")], [info("y")], W[:2])


def optional():
    nodes = [
        node("MatMul", "x w0", "a"), node("Optional", "a", "o"), node("OptionalGetElement", "o", "b"),
        node("MatMul", "b w1", "y"),
    ]  # fmt: skip
    return model(nodes, [info("x")], [info("y")], W[:2], opset=18)


def text():
    """Numbers that are words in between, where nothing can be cut."""
    nodes = [
        node("Cast", "x", "i", to=INT64), node("Cast", "i", "s", to=TensorProto.STRING),
        node("Cast", "s", "f", to=FLOAT), node("MatMul", "f w0", "y"),
    ]  # fmt: skip
    return model(nodes, [info("x")], [info("y")], W[:1])


def narrow():
    """Numbers that no request can hold in between."""
    nodes = [
        node("MatMul", "x w0", "a"), node("Cast", "a", "b", to=TensorProto.BFLOAT16), node("Cast", "b", "c", to=FLOAT),
        node("MatMul", "c w1", "y"),
    ]  # fmt: skip
    return model(nodes, [info("x")], [info("y")], W[:2])


def scan():
    body = helper.make_graph(
        [node("Add", "state row", "next"), node("MatMul", "next w0", "made")],
        "body", [info("state", (8,)), info("row", (8,))], [info("next", (8,)), info("made", (8,))],
    )  # fmt: skip
    nodes = [
        node("ReduceMean", "x", "first", axes=[0], keepdims=0), node("Scan", "first x", "last rows", body=body,
        num_scan_inputs=1), node("MatMul", "rows w1", "y"),
    ]  # fmt: skip
    return model(nodes, [info("x")], [info("y"), info("last", (8,))], W[:2])


def ends():
    """An input that is an answer, one that nothing takes, weights and sums of weights that are answers."""
    nodes = [node("MatMul", "x w0", "a"), node("Relu", "a", "y"), node("Add", "w1 w2", "sum")]
    outputs = [info("x"), info("y"), info("a"), info("w0", (8, 8)), info("sum", (8, 8))]
    return model(nodes, [info("x"), info("unused", (3,), INT64)], outputs, W[:3])


def old():
    """Weights that are inputs too, as format version 3 wanted it."""
    inputs = [info("x"), *(info(f"w{n}", (8, 8)) for n in range(3))]
    nodes = [
        node("MatMul", "x w0", "a"),
        node("MatMul", "a w1", "b"),
        node("Tanh", "b", "c"),
        node("MatMul", "c w2", "y"),
    ]
    return model(nodes, inputs, [info("y")], W[:3], opset=7, ir_version=3)


def empty_places():
    """Operands that are left out in the middle, and a mask that is an answer."""
    nodes = [
        node("Dropout", "x", "a mask"), helper.make_node("Resize", ["a", "", "scales"], ["b"], mode="nearest"),
        helper.make_node("Clip", ["b", "", "most"], ["y"]),
    ]  # fmt: skip
    weights = [constant("scales", [1, 2], np.float32), constant("most", 0.5, np.float32)]
    return model(nodes, [info("x")], [info("y", ("N", "M")), info("mask", ("N", 8), TensorProto.BOOL)], weights)


def wide():
    """More tensors alive than may cross a cut."""
    nodes = [node("MatMul", f"x w{n % 4}", f"t{n}") for n in range(80)]
    nodes += [node("Sum", " ".join(f"t{n}" for n in range(80)), "s"), node("MatMul", "s w0", "y")]
    return model(nodes, [info("x")], [info("y")], W)


def names():
    nodes = [
        helper.make_node("MatMul", ["x", "w 0"], ["a/b:c\n"]), helper.make_node("Relu", ["a/b:c\n"], ["é"]),
        node("MatMul", "é w1", "y"),
    ]  # fmt: skip
    spaced = onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(W[0]), "w 0")
    return model(nodes, [info("x")], [info("y")], [spaced, W[1]])


@pytest.mark.parametrize("rows", [2, 0])
@pytest.mark.parametrize("make", [sequence, optional, text, narrow, scan, ends, old, empty_places, wide, names])
def test_it_is_cut_and_answers_as_the_whole(make, rows):
    if make is scan and not rows:
        pytest.skip("the mean of no rows is no number")
    given = {each.name: onnx.numpy_helper.to_array(each) for each in W}
    proto, inputs = make(), {"x": X[:rows], "unused": np.zeros(3, np.int64), **given}
    wanted = run(proto, inputs)
    chain = units(optimise(load(proto.SerializeToString())))
    for cuts in ({0, len(chain)}, {0, len(chain) // 2, len(chain)}, set(range(len(chain) + 1))):
        assert_same(wanted, run_stages(chain, sorted(cuts), inputs))


@pytest.mark.parametrize(("make", "name"), [(sequence, "'s'"), (optional, "'o'"), (text, "'s'"), (narrow, "'b'")])
def test_where_it_is_not_cut_it_says_why(make, name):
    chain = units(optimise(load(make().SerializeToString())))
    assert any(name in note and "no tensor of numbers" in note for note in chain.notes)
