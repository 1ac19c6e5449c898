"""ONNX files for tests, and models of them run on secrets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from strongroom import mpc


def onnx_file(
    path: Path,
    nodes: Sequence[Any],
    inputs: Mapping[str, Sequence[int | str]],
    outputs: Sequence[str],
    weights: Mapping[str, np.ndarray] | None = None,
    opset: int = 17,
) -> Path:
    """A model of these nodes; a weight is float32 if it is a fraction of any kind, and has the name it is given."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape)) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [
            numpy_helper.from_array(value.astype(np.float32) if value.dtype == np.float64 else value, name)
            for name, value in (weights or {}).items()
        ],
    )
    domains = {node.domain for node in nodes} - {""}
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(name, 1) for name in domains)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


def reference(path: Path, *inputs: torch.Tensor) -> list[torch.Tensor]:
    """What ONNX's own evaluator gives."""
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(str(path))
    given = dict(zip(evaluator.input_names, (each.numpy() for each in inputs), strict=True))
    return [torch.from_numpy(np.array(each, order="C")) for each in evaluator.run(None, given)]


def on_secrets(
    model: Any, architecture: Any, *inputs: torch.Tensor, classes: int | None = None, owned: bool = True
) -> torch.Tensor:
    """What a model of P1 gives for inputs of P0, who know no more of each other than the architecture."""

    def program() -> Any:
        give: Any = mpc.own if owned else mpc.share
        net = give(lambda: model, source=1, like=architecture())
        kind: dict[str, Any] = {} if classes is None else {"dtype": torch.int64, "classes": classes}
        secrets = [mpc.share(lambda each=each: each, source=0, shape=each.shape, **kind) for each in inputs]
        result = net(*secrets)
        return mpc.reveal(getattr(result, "logits", result), to=0)

    with mpc.local_world() as world:
        found: torch.Tensor = world.run(program)[0]
    return found
