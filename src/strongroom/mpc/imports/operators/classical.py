"""What scikit-learn's linear models become in ONNX. Trees, neighbours and kernels have no operators here."""

from __future__ import annotations

import torch

from strongroom.mpc.imports.graph import ONNX_ML, Node, operator
from strongroom.mpc.imports.operators.common import Tensor, plain


@operator("Normalizer", domain=ONNX_ML)
def _normalizer(node: Node, x: Tensor) -> Tensor:
    norm = node.get("norm", "MAX")
    if norm == "L2":
        return x * torch.rsqrt(torch.sum(x * x, -1, keepdim=True))
    if norm == "L1":
        return x * torch.reciprocal(torch.sum(torch.abs(x), -1, keepdim=True))
    return x * torch.reciprocal(torch.amax(x, -1, keepdim=True))


@operator("ArrayFeatureExtractor", domain=ONNX_ML)
def _columns(node: Node, x: Tensor, index: Tensor) -> Tensor:
    return torch.index_select(x if x.ndim > 1 else x.unsqueeze(0), -1, plain(node, index, "index").reshape(-1))


@operator("Linear", domain=ONNX_ML)
def _linear(node: Node, x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
    """What `LinearRegressor` and `LinearClassifier` are, with coefficients as weights."""
    y = torch.matmul(x, w.t())
    y = y if bias is None else y + bias
    after = node.get("post_transform", "NONE")
    if after == "NONE":
        return y
    if after in ("SOFTMAX", "LOGISTIC"):
        return torch.softmax(y, -1) if after == "SOFTMAX" else torch.sigmoid(y)
    raise node.refuse(f"post_transform {after}, wanted NONE, SOFTMAX or LOGISTIC")
