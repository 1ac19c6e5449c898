"""Pieces of a model, run in turn, give what the whole gives; and what is said of them is so."""

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from strongroom.errors import UsageError
from strongroom.serve.graph import load, optimise, stage_model, units
from strongroom.serve.graph.cuts import cut_places
from tests.serve.graph.world import (
    ALL,
    as_stage,
    assert_same,
    info,
    model,
    node,
    ones,
    run,
    run_stages,
    tied,
    transformer,
    weight,
)

MNIST = Path(__file__).parents[1] / "models/mnist-8"


def loaded(proto):
    return load(proto.SerializeToString())


@pytest.mark.parametrize("optimised", [False, True])
@pytest.mark.parametrize("name", ALL)
def test_units_run_in_turn_give_what_the_whole_gives(name, optimised):
    proto, inputs = ALL[name]()
    whole = run(proto, inputs)
    known = loaded(proto)
    chain = units(optimise(known) if optimised else known)
    assert len(chain) > 1
    for cuts in (range(len(chain) + 1), [0, len(chain)]):
        assert_same(whole, run_stages(chain, cuts, inputs))
    assert_same(whole, run_stages(chain, [0, len(chain) // 2, len(chain)], inputs, run_one=as_stage))


def test_a_published_model_and_its_answers():
    chain = units(optimise(load(MNIST / "model.onnx")))
    ends = [onnx.TensorProto.FromString((MNIST / f"{end}_0.pb").read_bytes()) for end in ("input", "output")]
    given, wanted = map(onnx.numpy_helper.to_array, ends)
    name = chain.frontier(0)[0].name
    got = run_stages(chain, range(len(chain) + 1), {name: given}, run_one=as_stage)
    assert_same({chain.frontier(len(chain))[0].name: wanted}, got)


def test_what_crosses_a_cut_has_its_type_and_the_sizes_that_the_model_names():
    proto, _ = transformer()
    chain = units(loaded(proto))
    last = chain.frontier(len(chain) - 1)
    assert {tensor.name: (tensor.datatype, tensor.shape) for tensor in chain.frontier(0)} == {
        "x": ("FP32", ("N", "T", 8)),
        "mask": ("FP32", ("T", "T")),
    }
    assert all(tensor.datatype in ("FP32", "INT64") for tensor in last)
    assert chain.frontier_bytes(0, {"N": 2, "T": 5}) == 4 * (2 * 5 * 8 + 5 * 5)
    assert chain.frontier_bytes(0) == 4 * (8 + 1)


def test_sizes_without_a_name_are_seen_to_follow_from_the_inputs():
    reshaped = [node("Shape", "x", "s"), node("Mul", "s two", "t"), node("Expand", "one t", "y"), node("Exp", "y", "z")]
    weights = [onnx.numpy_helper.from_array(np.array([2, 1], np.int64), "two"), weight("one", 1, 1)]
    chain = units(loaded(model(reshaped, [info("x", ("N", 3))], [info("z", None)], weights)))
    (answer,) = chain.frontier(len(chain))
    assert all(str(size).startswith("?") for size in answer.shape[:1])
    assert answer.bytes_of(chain.sizes({"N": 5})) == 4 * 10 * 3
    assert chain.frontier_bytes(len(chain), {"N": 7}) == 4 * 14 * 3


def test_a_weight_of_several_units_counts_once_a_stage_and_crosses_no_cut():
    proto, _ = tied()
    table = 3000 * 8 * 4
    chain = units(optimise(loaded(proto)))
    assert sum(table in unit.weights.values() for unit in chain) == 2
    assert chain.weight_bytes(0, len(chain)) < table + 1000
    assert chain[0].weight_bytes + chain[len(chain) - 1].weight_bytes == 2 * table
    for cut in range(1, len(chain)):
        assert chain.frontier_bytes(cut, {"N": 1, "T": 1}) < 1000
    for start in (0, len(chain) - 1):
        assert stage_model(chain, start, start + 1).ByteSize() > table


def test_folding_constants_does_not_double_a_tied_weight():
    known = loaded(tied()[0])
    optimised = optimise(known)
    assert optimised.proto.ByteSize() < known.proto.ByteSize() * 1.1
    assert any("constants are not folded" in note for note in optimised.notes)


def test_without_files_in_memory_the_model_is_left_as_it_is(monkeypatch):
    monkeypatch.delattr("os.memfd_create")
    known = loaded(ALL["residual"]()[0])
    assert optimise(known).proto is known.proto
    assert "no files in memory" in optimise(known).notes[0]


def test_stages_hold_their_own_weights_and_no_others():
    proto, _ = ALL["dense"]()
    chain = units(loaded(proto))
    held = [{each.name for each in stage_model(chain, n, n + 1).graph.initializer} for n in range(len(chain))]
    assert sorted(name for names in held for name in names) == [f"w{n}" for n in range(4)]


def test_the_same_model_gives_the_same_bytes():
    for make in (transformer, tied):
        data = make()[0].SerializeToString()
        made = [units(optimise(load(data))) for _ in range(2)]
        assert made[0].units == made[1].units
        stages = [stage_model(chain, 0, 2).SerializeToString(deterministic=True) for chain in made]
        assert stages[0] == stages[1]


def test_what_is_kept_whole_is_said():
    notes = {
        name: " ".join(units(loaded(ALL[name]()[0])).notes)
        for name in ("branching", "looping", "recurrent", "sequence")
    }
    assert "If is kept whole" in notes["branching"]
    assert "Loop is kept whole" in notes["looping"]
    assert "LSTM is kept whole" in notes["recurrent"]
    assert "'s' is alive, which is no tensor of numbers" in notes["sequence"]


def test_a_model_of_one_operator_is_one_unit():
    chain = units(loaded(model([node("Relu", "x", "y")], [info("x")], [info("y")])))
    assert (len(chain), chain.notes) == (1, ("one unit: there is one operator",))


def test_numbers_are_drawn_once_and_handed_on():
    nodes = [
        helper.make_node("RandomNormal", [], ["r"], shape=[2, 8]),
        node("Add", "x r", "a"),
        node("Sub", "a r", "y"),
    ]
    chain = units(loaded(model(nodes, [info("x")], [info("y")])))
    inputs = ones(x=(2, 8))
    got = run_stages(chain, range(len(chain) + 1), inputs)
    np.testing.assert_allclose(got["y"], inputs["x"], atol=1e-5)


@pytest.mark.parametrize("run_of_units", [(0, 0), (1, 0), (-1, 1), (0, 99)])
def test_there_is_no_such_run_of_units(run_of_units):
    chain = units(loaded(ALL["residual"]()[0]))
    with pytest.raises(UsageError, match="wanted a run of the"):
        stage_model(chain, *run_of_units)


def test_there_is_no_such_cut():
    chain = units(loaded(ALL["residual"]()[0]))
    with pytest.raises(UsageError, match="cut: got 99"):
        chain.frontier(99)


def test_long_rows_are_cut_in_no_more_units_than_asked_for():
    nodes = [node("MatMul", f"t{n} w{n}", f"t{n + 1}") for n in range(60)]
    proto = model(
        nodes, [info("t0", ("N", 4))], [info("t60", ("N", 4))], [weight(f"w{n}", 4, 4, seed=n) for n in range(60)]
    )
    known = loaded(proto)
    assert len(units(known)) == 60
    chain = units(known, most=7)
    assert len(chain) == 7
    assert_same(run(proto, ones(t0=(1, 4))), run_stages(chain, range(8), ones(t0=(1, 4))))


def test_light_operators_join_over_the_dearer_cut():
    # Weights 100, 0, 100, ...: each light one joins the side where more would cross.
    weights, work = [100, 0] * 20, [0] * 40
    costs = [None, *[50 if place % 2 else 5 for place in range(1, 40)]]
    places = cut_places(weights, work, costs, most=1000)
    assert places == list(range(0, 41, 2))
    assert cut_places(weights, work, [None] * 40, most=1000) == [0, 40]
    assert len(cut_places(weights, work, costs, most=3)) == 4


def test_a_long_row_of_light_operators_becomes_units_of_like_size():
    places = cut_places([1] * 8000, [1] * 8000, [7] * 8000, most=1000)
    sizes = np.diff(places)
    assert 250 <= len(sizes) <= 500
    assert sizes.max() <= 3 * sizes.min()
    falling = cut_places([1] * 8000, [1] * 8000, [20_000 - place for place in range(8000)], most=1000)
    assert np.diff(falling).max() <= 100


OPERATORS = ("Relu", "Sigmoid", "Add", "Mul", "Concat", "MatMul", "Split")


@st.composite
def graphs(draw):
    """A random graph: each operator takes what any before it made, and some of what is left over is an output too."""
    tensors, nodes, weights = {"x0": 4, "x1": 4}, [], []
    for n in range(draw(st.integers(2, 14))):
        op = draw(st.sampled_from(OPERATORS))
        name = draw(st.sampled_from(sorted(tensors)))
        width, out = tensors[name], f"t{n}"
        others = sorted(other for other, size in tensors.items() if size == width)
        if op in ("Relu", "Sigmoid"):
            nodes.append(node(op, name, out))
        elif op in ("Add", "Mul"):
            nodes.append(node(op, f"{name} {draw(st.sampled_from(others))}", out))
        elif op == "Concat" and width <= 16:
            other = draw(st.sampled_from(sorted(tensors)))
            nodes.append(node(op, f"{name} {other}", out, axis=1))
            width += tensors[other]
        elif op == "Split" and width % 2 == 0:
            nodes.append(node("Split", name, f"{out} {out}b", axis=1))
            width //= 2
            tensors[f"{out}b"] = width
        else:
            shared = draw(st.booleans()) and [each for each in weights if each.dims[0] == width]
            if shared:
                name_of, width = shared[0].name, shared[0].dims[1]
            else:
                name_of, wide = f"w{n}", draw(st.sampled_from([2, 4, 8]))
                weights.append(weight(name_of, width, wide, seed=n))
                width = wide
            nodes.append(node("MatMul", f"{name} {name_of}", out))
        tensors[out] = width
    made = [name for name in tensors if name.startswith("t")]
    outputs = sorted(set(draw(st.lists(st.sampled_from(made), max_size=2))) | {made[-1]})
    ends = [[info(name, ("N", tensors[name])) for name in names] for names in (("x0", "x1"), outputs)]
    return model(nodes, *ends, weights)


@settings(max_examples=60, deadline=None)
@given(proto=graphs(), optimised=st.booleans(), data=st.data())
def test_any_graph_cut_anywhere_gives_what_the_whole_gives(proto, optimised, data):
    inputs = ones(x0=(3, 4), x1=(3, 4))
    known = loaded(proto)
    chain = units(optimise(known) if optimised else known)
    assert len(chain) <= max(10, len(proto.graph.node))
    inner = data.draw(st.sets(st.integers(1, max(1, len(chain) - 1)))) if len(chain) > 1 else set()
    cuts = [0, *sorted(inner), len(chain)]
    assert_same(run(proto, inputs), run_stages(chain, cuts, inputs))


def test_a_unit_says_what_it_weighs_and_works():
    chain = units(loaded(ALL["residual"]()[0]))
    convolution = next(unit for unit in chain if "Conv" in unit.operators)
    assert convolution.weight_bytes == 4 * 4 * 3 * 3 * 4
    assert convolution.flops >= 2 * 4 * 36 * 4 * 9
    assert convolution.splits == {}  # too narrow
    assert dataclasses.replace(convolution, index=0) == convolution
