"""The ONNX model of a run of units."""

from __future__ import annotations

from typing import Any

from strongroom.serve.graph.chain import Chain
from strongroom.serve.graph.nodes import uses
from strongroom.serve.graph.shapes import Tensor
from strongroom.serve.runtime import onnx
from strongroom.serve.tensors import DATATYPES


def stage_model(chain: Chain, start: int, end: int) -> Any:
    """Units ``start`` to ``end - 1`` as an `onnx.ModelProto` of its own.

    Its weights are in it, and no others; its inputs and outputs are `Chain.inputs` and `Chain.outputs`. It is whole
    where the run is: then it takes all inputs and gives all outputs of the model, in their order.

    Raises:
        UsageError: there is no such run of units.
    """
    chain.run(start, end)
    whole, row = chain.model.proto, chain.row
    stage = type(whole)()
    stage.ir_version = whole.ir_version
    stage.opset_import.extend(whole.opset_import)
    stage.producer_name = "strongroom"
    graph = stage.graph
    graph.name = f"units {start} to {end}"
    places = range(chain.places[start], chain.places[end])
    before = sorted({node for place in places for node in row.behind(place)})
    graph.node.extend(row.nodes[node] for node in [*before, *(row.order[place] for place in places)])
    needed = {name for node in graph.node for name in uses(node)}
    graph.initializer.extend(each for each in whole.graph.initializer if each.name in needed)
    graph.sparse_initializer.extend(each for each in whole.graph.sparse_initializer if each.values.name in needed)
    if end - start == len(chain):
        graph.input.extend(whole.graph.input)
        graph.output.extend(whole.graph.output)
    else:
        graph.input.extend(map(_info, chain.inputs(start, end)))
        graph.output.extend(map(_info, chain.outputs(start, end)))
    return stage


def _info(tensor: Tensor) -> Any:
    helper = onnx().helper
    kind = helper.np_dtype_to_tensor_dtype(DATATYPES[tensor.datatype])
    # Sizes without a name in the model get none here: two of them would be said to be equal.
    shape = [None if isinstance(size, str) and size.startswith("?") else size for size in tensor.shape]
    return helper.make_tensor_value_info(tensor.name, kind, shape)
