"""A wide network for handwritten digits, as ONNX: two layers of random features, and a last one that is solved for.

An ordinary script: it reads ``train.npz`` (``images``, N x H x W bytes, and ``labels``) in the directory DATA, and
writes ``wide.onnx`` in the directory OUT. It takes a second, and the network has 13 MB of weights or more.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

_WIDTHS = (2048, 1536)
_MOST = 5000  # images to learn from
_RIDGE = 30.0


def network(images: Any, labels: Any) -> bytes:
    """The ONNX file: takes ``image``, float32 N x 1 x H x W in [0, 1], and gives ``logits``, N x 10."""
    rng = np.random.default_rng(0)
    features = images[:_MOST].reshape(min(len(images), _MOST), -1).astype(np.float32) / np.float32(images.max())
    layers = []
    for width in _WIDTHS:
        weights = rng.standard_normal((features.shape[1], width), np.float32) * (2 / features.shape[1]) ** 0.5
        layers.append((weights.astype(np.float32), rng.standard_normal(width, np.float32) / 8))
        features = np.maximum(features @ layers[-1][0] + layers[-1][1], 0)
    wanted = np.eye(10, dtype=np.float32)[labels[: len(features)]]
    squares = features.T @ features + _RIDGE * np.eye(features.shape[1], dtype=np.float32)
    layers.append((np.linalg.solve(squares, features.T @ wanted).astype(np.float32), np.zeros(10, np.float32)))
    return _onnx(layers, images.shape[1:])


def _onnx(layers: Any, size: Any) -> bytes:
    nodes, constants, last = [helper.make_node("Flatten", ["image"], ["flat"])], [], "flat"
    for number, (weights, bias) in enumerate(layers, 1):
        name = f"layer{number}" if number < len(layers) else "logits"
        constants += [
            numpy_helper.from_array(weights, f"weights{number}"),
            numpy_helper.from_array(bias, f"bias{number}"),
        ]
        nodes.append(helper.make_node("Gemm", [last, f"weights{number}", f"bias{number}"], [name]))
        if number < len(layers):
            nodes.append(helper.make_node("Relu", [name], [f"features{number}"]))
            last = f"features{number}"
    takes = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, *size])
    gives = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 10])
    graph = helper.make_graph(nodes, "wide", [takes], [gives], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(model.SerializeToString())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("/data"), help="a directory with train.npz")
    parser.add_argument("--out", type=Path, default=Path("/out"), help="a directory for wide.onnx")
    args = parser.parse_args()
    with np.load(args.data / "train.npz") as found:
        (args.out / "wide.onnx").write_bytes(network(found["images"], found["labels"]))
