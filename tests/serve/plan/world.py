"""A small network that is cut, profiled and made smaller in these tests."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper


def network(width: int = 64, layers: int = 4, batch: int | str = "N", idle: int = 0) -> Any:
    """Products with ReLU between them; `idle` channels of each hidden layer are zero."""
    rng = np.random.default_rng(0)
    nodes, weights, last = [], [], "x"
    for layer in range(layers):
        matrix = (rng.standard_normal((width, width)) / 8).astype(np.float32)
        bias = (rng.standard_normal(width) / 8).astype(np.float32)
        if layer < layers - 1:
            matrix[:, :idle] = bias[:idle] = 0
        weights += [numpy_helper.from_array(matrix, f"w{layer}"), numpy_helper.from_array(bias, f"b{layer}")]
        nodes.append(helper.make_node("Gemm", [last, f"w{layer}", f"b{layer}"], [f"h{layer}"]))
        last = f"h{layer}"
        if layer < layers - 1:
            nodes.append(helper.make_node("Relu", [last], [f"r{layer}"]))
            last = f"r{layer}"
    return _model(nodes, [batch, width], last, [batch, width], weights)


def convolutions(idle: int) -> Any:
    """Two convolutions with a normalisation and pooling between them, and a product; `idle` channels are zero."""
    rng = np.random.default_rng(0)
    first, second = (rng.standard_normal(shape).astype(np.float32) for shape in ((8, 3, 3, 3), (6, 8, 3, 3)))
    final = rng.standard_normal((6, 4)).astype(np.float32)
    first[:idle] = 0
    second[: idle // 2] = 0
    norm = [np.abs(rng.standard_normal(8)).astype(np.float32) for _ in range(4)]
    norm[1][:idle] = norm[2][:idle] = 0  # what it adds, and the mean
    named = {"c1": first, "c2": second, "w": final} | {f"n{i}": each for i, each in enumerate(norm)}
    nodes = [
        helper.make_node("Conv", ["x", "c1"], ["a"], pads=[1] * 4),
        helper.make_node("BatchNormalization", ["a", "n0", "n1", "n2", "n3"], ["b"]),
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("MaxPool", ["c"], ["d"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["d", "c2"], ["e"]),
        helper.make_node("GlobalAveragePool", ["e"], ["f"]),
        helper.make_node("Flatten", ["f"], ["g"]),
        helper.make_node("Gemm", ["g", "w"], ["y"]),
    ]
    weights = [numpy_helper.from_array(value, name) for name, value in named.items()]
    return _model(nodes, ["N", 3, 12, 12], "y", ["N", 4], weights)


def _model(nodes: list[Any], shape: list[Any], output: str, given: list[Any], weights: list[Any]) -> Any:
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, size) for name, size in (("x", shape), (output, given))
    ]
    graph = helper.make_graph(nodes, "network", ends[:1], ends[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
