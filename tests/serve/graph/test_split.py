"""Operators in pieces: by output channels equal to the bit, by rows within rounding."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from strongroom.errors import UsageError
from strongroom.serve.graph import Split, load, optimise, split, splits, units
from tests.serve.graph.world import ALL, FLOAT, as_stage, assert_same, info, model, node, ones, run, run_stages, weight

# By name: an operator that makes `a` of `x`, the shapes of `x` and of its weights, and into how many at most.
CASES = {
    "gemm": ("Gemm", {"alpha": 0.5, "beta": 2.0}, (3, 24), [(24, 80), (80,)], 5),
    "gemm turned": ("Gemm", {"transB": 1}, (3, 24), [(80, 24), (1, 80)], 5),
    "gemm both turned": ("Gemm", {"transA": 1, "transB": 1}, (24, 3), [(80, 24)], 5),
    "gemm with one bias for all": ("Gemm", {}, (3, 24), [(24, 80), (1,)], 5),
    "matmul": ("MatMul", {}, (3, 24), [(24, 80)], 5),
    "matmul of many": ("MatMul", {}, (2, 3, 24), [(24, 80)], 5),
    "matmul of a vector": ("MatMul", {}, (24,), [(24, 80)], 5),
    "batched matmul": ("MatMul", {}, (2, 3, 24), [(2, 24, 80)], 5),
    "conv": ("Conv", {"pads": [1, 1, 1, 1]}, (1, 8, 6, 6), [(80, 8, 3, 3), (80,)], 5),
    "conv without a bias": ("Conv", {"strides": [2, 2]}, (1, 8, 6, 6), [(80, 8, 3, 3)], 5),
    "conv of one dimension": ("Conv", {}, (1, 8, 9), [(80, 8, 3)], 5),
    "grouped conv": ("Conv", {"group": 6}, (1, 12, 6, 6), [(48, 2, 3, 3), (48,)], 3),
    "depthwise conv": ("Conv", {"group": 64}, (1, 64, 6, 6), [(64, 1, 3, 3), (64,)], 4),
    "transposed conv": ("ConvTranspose", {"strides": [2, 2]}, (1, 8, 6, 6), [(8, 80, 3, 3), (80,)], 5),
}
BY_ROWS = {"gemm": 24, "gemm turned": 24, "matmul": 24, "matmul of many": 24, "conv": 8}


def case(name, opset=17):
    op, attributes, shape, weights, most = CASES[name]
    names = [f"w{n}" for n in range(len(weights))]
    nodes = [node("Tanh", "x", "t"), node(op, " ".join(["t", *names]), "a", **attributes), node("Relu", "a", "y")]
    values = [weight(each, *sizes, seed=n) for n, (each, sizes) in enumerate(zip(names, weights, strict=True))]
    return model(nodes, [info("x", shape)], [info("y", None)], values, opset=opset), ones(x=shape), most


def cut(made, how=None, **more):
    return split(load(made.SerializeToString()), how, **more)


def same_bits(wanted, got):
    assert set(wanted) == set(got)
    for name, array in wanted.items():
        assert array.tobytes() == got[name].tobytes(), name


@pytest.mark.parametrize("pieces", [2, 3, "most"])
@pytest.mark.parametrize("name", CASES)
def test_pieces_by_output_channels_are_equal_to_the_bit(name, pieces):
    made, inputs, most = case(name)
    assert splits(load(made.SerializeToString()))["a"] == most
    known = cut(made, {"a": Split(most if pieces == "most" else pieces)})
    wanted = run(made, inputs)
    same_bits(wanted, run(known.proto, inputs))
    chain = units(known)
    assert len(chain) > 2
    same_bits(wanted, run_stages(chain, range(len(chain) + 1), inputs))


@pytest.mark.parametrize("opset", [9, 17])
@pytest.mark.parametrize("name", BY_ROWS)
def test_pieces_by_rows_are_equal_within_rounding(name, opset):
    made, inputs, _ = case(name, opset)
    known = cut(made, {"a": Split(3, rows=True)})
    chain = units(known)
    assert_same(run(made, inputs), run_stages(chain, range(len(chain) + 1), inputs))
    assert max(unit.weight_bytes for unit in chain) < sum(each.ByteSize() for each in made.graph.initializer)
    with pytest.raises(UsageError, match=f"by rows, wanted 2 to {BY_ROWS[name]}"):
        cut(made, {"a": Split(1000, rows=True)})


@pytest.mark.parametrize("activation", ["Relu", "Tanh", "Sigmoid"])
def test_what_the_optimiser_fused_is_cut_too(activation):
    nodes = [
        node("Gemm", "x w b", "a"), node(activation, "a", "c"), node("Reshape", "c s", "d"),
        node("Conv", "d k", "e"), node("Relu", "e", "y"),
    ]  # fmt: skip
    weights = [weight("w", 24, 64), weight("b", 64), weight("k", 64, 4, 3, 3)]
    weights.append(onnx.numpy_helper.from_array(np.array([-1, 4, 4, 4], np.int64), "s"))
    made, inputs = model(nodes, [info("x", ("N", 24))], [info("y", None)], weights), ones(x=(2, 24))
    known = optimise(load(made.SerializeToString()))
    assert {each.op_type for each in known.proto.graph.node} == {"FusedGemm", "FusedConv", "Reshape"}
    for how in (Split(4), Split(4, rows=True)):
        chain = units(split(known, dict.fromkeys(splits(known), how)))
        got = run_stages(chain, range(len(chain) + 1), inputs)
        assert_same(run(made, inputs), got)
        if not how.rows:
            same_bits(run(known.proto, inputs), got)


def test_a_classifier_larger_than_an_enclave_is_cut_until_it_fits():
    made = model(
        [node("Flatten", "x", "f"), node("Gemm", "f w b", "a"), node("Relu", "a", "y")],
        [info("x", ("N", 16, 8, 8))], [info("y", ("N", 512))], [weight("w", 1024, 512), weight("b", 512)],
    )  # fmt: skip
    inputs, largest = ones(x=(2, 16, 8, 8)), 300_000
    assert max(unit.weight_bytes for unit in units(load(made.SerializeToString()))) > 2_000_000
    known = cut(made, largest=largest)
    assert known.notes == ("Gemm 'a' is cut by output channels in 8",)
    chain = units(known)
    assert max(unit.weight_bytes for unit in chain) <= largest + 4096
    assert chain.weight_bytes(0, len(chain)) == 1024 * 512 * 4 + 512 * 4
    same_bits(run(made, inputs), run_stages(chain, range(len(chain) + 1), inputs))


def test_tables_and_weights_on_the_left():
    ids = {"i": np.array([[1, 3], [0, 9]], np.int64)}
    nodes = [node("Gather", "t i", "e"), node("Transpose", "e", "u", perm=[0, 2, 1]), node("MatMul", "w u", "y")]
    made = model(
        nodes, [info("i", ("N", "T"), TensorProto.INT64)], [info("y", None)], [weight("t", 10, 32), weight("w", 48, 32)]
    )
    known = load(made.SerializeToString())
    assert splits(known) == {"e": 32, "y": 3}
    chain = units(split(known, {"e": Split(4), "y": Split(3)}))
    same_bits(run(made, ids), run_stages(chain, range(len(chain) + 1), ids))


def test_quantised_operators_take_their_scales_along():
    weights = [
        onnx.numpy_helper.from_array(np.random.default_rng(0).integers(-99, 99, (24, 48)).astype(np.int8), "w"),
        onnx.numpy_helper.from_array(np.zeros(48, np.int8), "z"),
    ]
    nodes = [
        node("DynamicQuantizeLinear", "x", "q s p"),
        node("MatMulInteger", "q w p z", "a"),
        node("Cast", "a", "y", to=1),
    ]
    made = model(nodes, [info("x", ("N", 24))], [info("y", ("N", 48))], weights)
    chain = units(cut(made, {"a": Split(3)}))
    same_bits(run(made, ones(x=(2, 24))), run_stages(chain, range(len(chain) + 1), ones(x=(2, 24))))


@pytest.mark.parametrize(("scales", "can"), [((48,), {"a": 3, "y": 4}), ((), {"y": 4})])
def test_weights_that_are_stored_narrower_are_cut_where_they_are_stored(scales, can):
    table = np.random.default_rng(0).integers(-99, 99, (24, 48)).astype(np.int8)
    weights = [onnx.numpy_helper.from_array(table, "w8"), weight("h", 48, 64, kind=np.float16)]
    scale = np.abs(np.random.default_rng(1).standard_normal(scales)).astype(np.float32) + 0.1
    weights.append(onnx.numpy_helper.from_array(np.asarray(scale), "s"))
    nodes = [
        node("DequantizeLinear", "w8 s", "w", axis=1), node("MatMul", "x w", "a"), node("Relu", "a", "b"),
        node("Cast", "h", "v", to=FLOAT), node("MatMul", "b v", "y"),
    ]  # fmt: skip
    made, inputs = model(nodes, [info("x", ("N", 24))], [info("y", ("N", 64))], weights), ones(x=(2, 24))
    assert splits(load(made.SerializeToString())) == can
    known = cut(made, {name: Split(pieces) for name, pieces in can.items()})
    assert known.proto.ByteSize() < made.ByteSize() + 2000
    chain = units(known)
    same_bits(run(made, inputs), run_stages(chain, range(len(chain) + 1), inputs, run_one=as_stage))
    assert chain.weight_bytes(0, len(chain)) < 24 * 48 + 48 * 64 * 2 + 1000


def test_a_weight_that_others_use_stays_whole_for_them():
    nodes = [node("MatMul", "x w", "a"), node("MatMul", "a w", "b"), node("Add", "a b", "y")]
    made, inputs = model(nodes, [info("x", ("N", 32))], [info("y", ("N", 32))], [weight("w", 32, 32)]), ones(x=(2, 32))
    known = cut(made, {"a": Split(2)})
    assert "w" in {each.name for each in known.proto.graph.initializer}
    same_bits(run(made, inputs), run(known.proto, inputs))


def test_a_bias_that_is_computed_keeps_an_operator_whole():
    nodes = [node("Exp", "x", "c"), node("Gemm", "x w c", "y")]
    made = model(nodes, [info("x", (2, 32))], [info("y", (2, 32))], [weight("w", 32, 32)])
    assert splits(load(made.SerializeToString())) == {}
    with pytest.raises(UsageError, match="no operator that can be cut makes a tensor of that name"):
        cut(made, {"y": Split(2)})


def test_pieces_that_there_cannot_be():
    made = case("conv")[0]
    for pieces in (0, 1, 6):
        with pytest.raises(UsageError, match="by output channels, wanted 2 to 5"):
            cut(made, {"a": Split(pieces)})
    with pytest.raises(UsageError, match="'nothing'"):
        cut(made, {"nothing": Split(2)})
    with pytest.raises(UsageError, match="a Conv like this cannot be cut so"):
        cut(case("grouped conv")[0], {"a": Split(2, rows=True)})


def test_new_names_are_nobody_elses():
    nodes = [node("MatMul", "x w", "a"), node("Relu", "a", "a/0"), node("Add", "a a/0", "y")]
    made, inputs = model(nodes, [info("x", ("N", 64))], [info("y", ("N", 64))], [weight("w", 64, 64)]), ones(x=(1, 64))
    same_bits(run(made, inputs), run(cut(made, {"a": Split(4)}).proto, inputs))


def test_nothing_to_cut_leaves_the_model_as_it_is():
    known = load(ALL["residual"]()[0].SerializeToString())
    assert split(known) is known
    assert split(known, largest=1 << 30) is known


def test_sums_with_another_tensor_in_a_fused_convolution_stay_whole():
    fused = helper.make_node(
        "FusedConv", ["x", "w", "", "x"], ["y"], domain="com.microsoft", activation="Relu", pads=[1] * 4
    )
    made = model([fused], [info("x", (1, 32, 6, 6))], [info("y", (1, 32, 6, 6))], [weight("w", 32, 32, 3, 3)])
    made.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    assert splits(load(made.SerializeToString())) == {}
