"""How large a request may be, by what a plan is for and what its enclaves have room for."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from strongroom.errors import TooLargeError
from strongroom.serve.graph import load, units
from strongroom.serve.pipeline.cut import Pieces, open_sizes
from strongroom.serve.pipeline.room import OpenSize, require_room
from strongroom.serve.plan import Enclaves, StagePlan
from strongroom.serve.tensors import TensorInfo
from tests.serve.graph.world import constant, info, model, node
from tests.serve.pipeline import world

pytest.importorskip("onnxruntime")

TEXT = (TensorInfo("x", "FP32", (-1, -1, 4)), TensorInfo("mask", "FP32", (-1, -1)))
ROWS, LENGTH = OpenSize(((0, 0), (1, 0)), 2), OpenSize(((0, 1), (1, 1)), 8, power=2)


@pytest.mark.parametrize(
    ("rows", "length", "any_rows", "fits"),
    [
        (1, 1, False, True),
        (2, 8, False, True),
        (8, 8, False, True),
        (9, 8, False, False),
        (2, 16, False, True),  # the square of twice
        (2, 17, False, False),
        (3, 16, False, False),
        (900, 16, True, True),  # in batches
        (900, 17, True, False),
    ],
)
def test_there_is_room_for_some_times_what_is_planned(rows, length, any_rows, fits):
    """Four times: of rows, or of the square of a length, or of both together."""
    inputs = {"x": np.zeros((rows, length, 4)), "mask": np.zeros((rows, length))}
    if fits:
        require_room(TEXT, [ROWS, LENGTH], 4, inputs, any_rows=any_rows)
        return
    said = rf"got \[{rows}, {length}, 4\], \[{rows}, {length}\], the plan is for \[2, 8, 4\], \[2, 8\] .* 4 times"
    with pytest.raises(TooLargeError, match=said) as refused:
        require_room(TEXT, [ROWS, LENGTH], 4, inputs, any_rows=any_rows)
    assert refused.value.hint and "--dim" in refused.value.hint


def test_the_largest_of_what_should_be_equal_counts():
    inputs = {"x": np.zeros((1, 1, 4)), "mask": np.zeros((9, 8))}
    with pytest.raises(TooLargeError):
        require_room(TEXT, [ROWS, LENGTH], 4, inputs)


def attention():
    """Scores of each place of a text with each: their tensor grows with the square of its length."""
    nodes = [
        node("Transpose", "x", "turned", perm=[0, 2, 1]),
        node("MatMul", "x turned", "scores"),
        node("Softmax", "scores", "weights"),
        node("MatMul", "weights x", "mixed"),
        node("ReduceSum", "mixed axes", "y", keepdims=0),
    ]
    proto = model(nodes, [info("x", ("N", "T", 8))], [info("y", ("N", 8))], [constant("axes", [1])])
    return units(load(proto.SerializeToString()))


def stem():
    """As networks for images begin: half as wide and high after a convolution, a quarter after a pool."""
    nodes = [
        node("Conv", "x w", "seen", kernel_shape=[7, 7], strides=[2, 2], pads=[3, 3, 3, 3]),
        node("Relu", "seen", "rising"),
        node("MaxPool", "rising", "pooled", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
        node("GlobalAveragePool", "pooled", "y"),
    ]
    weights = constant("w", np.ones((64, 3, 7, 7)), np.float32)
    proto = model(nodes, [info("x", ("N", 3, "H", "W"))], [info("y", ("N", 64, 1, 1))], [weights])
    return units(load(proto.SerializeToString()))


@pytest.mark.parametrize("side", [31, 224, 1000])
def test_tensors_behind_a_stride_grow_with_the_image(side):
    alive = stem().alive_bytes(0, len(stem()), {"H": side, "W": side})
    half = math.ceil(side / 2)
    assert 4 * 64 * half**2 <= alive <= 4.4 * 64 * (2 * half**2 + half**2 / 4) + 4 * 3 * side**2


def pieces(chain, *, memory, taken, batch=1, dims):
    """A plan of one stage, which is predicted to take so much of so much memory."""
    plan = dataclasses.replace(
        world.plan(1),
        batch=batch,
        dims=dims,
        enclaves=(Enclaves(memory),),
        stages=(StagePlan(0, len(chain), 0, 1, 0, taken, 1, 1),),
    )
    return Pieces(plan, chain, (b"",))


def test_what_grows_with_the_square_of_a_size_is_found_in_the_model():
    ours = pieces(attention(), memory=1 << 20, taken=1 << 19, dims={"T": 16})
    pipeline = ours.pipeline("text", front="acme/front", policies=("acme/part",))
    assert pipeline.sizes == (OpenSize(((0, 0),), 1, power=1), OpenSize(((0, 1),), 16, power=2))
    alive = ours.chain.alive_bytes(0, len(ours.chain), {"T": 16})
    assert 2 * 4 * 16 * 16 <= alive <= 4 * (2 * 16 * 16 + 3 * 16 * 8)
    assert pipeline.times == 1 + (1 << 19) // alive


def test_where_enclaves_are_full_requests_are_as_planned():
    full = pieces(attention(), memory=1 << 20, taken=1 << 20, batch=4, dims={"T": 16})
    pipeline = full.pipeline("text", front="acme/front", policies=("acme/part",))
    assert pipeline.times == 1 and pipeline.sizes[0].planned == 4


def test_sizes_that_a_plan_does_not_say_are_named():
    [said] = open_sizes(attention(), {})
    assert "size 'T' of input 'x' is open" in said and "--dim T=N" in said
    assert not list(open_sizes(attention(), {"T": 16})) and not list(open_sizes(world.chain(), {}))
