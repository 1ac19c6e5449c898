"""An ONNX file without its weights' values, to give away.

It is made anew, of what is known to be architecture, and not from the file with parts taken out: whatever else a file
may hold (text, metadata, labels, functions, names of other files, nodes that nothing needs) has no way into it.

- A tensor that is no weight is written from its value as it was loaded; a weight has a shape and no values.
- Attributes of ONNX's own operators are settings. One that could hold a table of numbers is known by name, or refused.
- Attributes of scikit-learn's operators are left out, but for settings; coefficients are zeros.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from strongroom.mpc.imports.classical import LEARNED, learned_name
from strongroom.mpc.imports.graph import ONNX, ONNX_ML, Graph, Node, printable
from strongroom.mpc.imports.onnx_file import WITHOUT_WEIGHTS, graph_of, parsed

_TABLES = {"scales", "activation_alpha", "activation_beta"}  # settings that are lists of fractions
_CLASSICAL = {"post_transform", "multi_class", "targets", "norm"}


def write_architecture(path: Path, to: Path, *, public: Collection[str]) -> None:
    """Write the file without its weights' values.

    Raises:
        ModelFormatError: it is no ONNX, or has numbers of which it is not known what they are.
    """
    import onnx

    model = parsed(path)
    graph = graph_of(model, path.parent, weights=True, public=public)
    made = onnx.ModelProto(ir_version=model.ir_version, producer_name="strongroom")
    for each in model.opset_import:
        made.opset_import.add(domain=each.domain, version=each.version)
    made.metadata_props.add(key=WITHOUT_WEIGHTS, value="")
    _copy(model.graph, made.graph, graph)
    to.write_bytes(made.SerializeToString())


def _copy(proto: Any, made: Any, graph: Graph) -> None:
    """What a graph's outputs need of it, without weights."""
    needed, kept = set(graph.outputs), []
    for node in reversed(proto.node):
        if needed.intersection(node.output):
            kept.append(node)
            needed |= _taken(node)
    nodes = {name: node for node in graph.nodes for name in node.outputs if name}
    made.name = proto.name
    for node in reversed(kept):
        _copy_node(node, made.node.add(), graph, next((nodes[name] for name in node.output if name in nodes), None))
    for each in proto.initializer:
        if each.name in needed and each.name in graph.constants:
            _copy_tensor(each.name, each.data_type, made.initializer.add(), graph)
    for each in proto.input:
        if each.name in needed or each.name in graph.inputs:
            made.input.add(name=each.name, type=each.type)
    types = {each.name: each.type for each in proto.output}
    for name in graph.outputs:
        made.output.add(name=name, type=types.get(name))


def _taken(node: Any) -> set[str]:
    """Names that a node takes, and more that are in its branches."""
    inner = (each.g for each in node.attribute if each.HasField("g"))
    return set(node.input).union(*({each.name for each in g.output}.union(*map(_taken, g.node)) for g in inner))


def _copy_tensor(name: str, kind: int, made: Any, graph: Graph) -> None:
    from onnx import helper, numpy_helper

    value = graph.constants[name]
    if name in graph.weights:
        made.name, made.data_type = name, kind
        made.dims.extend(value.shape)
    else:
        array = np.asarray(value.numpy().astype(helper.tensor_dtype_to_np_dtype(kind)), order="C")
        made.CopyFrom(numpy_helper.from_array(array, name))


def _copy_node(node: Any, made: Any, graph: Graph, loaded: Node | None) -> None:
    from onnx import AttributeProto, TensorProto

    made.op_type, made.domain, made.name = node.op_type, node.domain, node.name
    made.input.extend(node.input)
    made.output.extend(node.output)
    domain = "" if node.domain == "ai.onnx" else node.domain
    if domain == ONNX and node.op_type == "Constant" and node.output[0] in graph.constants:
        kinds = {"value_float": TensorProto.FLOAT, "value_floats": TensorProto.FLOAT}
        kinds |= {"value_int": TensorProto.INT64, "value_ints": TensorProto.INT64}
        given = node.attribute[0]
        attribute = made.attribute.add(name="value", type=AttributeProto.TENSOR)
        _copy_tensor(node.output[0], kinds.get(given.name, given.t.data_type), attribute.t, graph)
        return
    for each in node.attribute:
        if domain == ONNX_ML and each.name in LEARNED.get(node.op_type, ()):
            name = learned_name(node.output[-1], each.name)
            values = list(each.floats) if name in graph.constants.keys() - graph.weights else [0.0] * len(each.floats)
            made.attribute.add(name=each.name, type=each.type, floats=values)
        elif domain != ONNX_ML or each.name in _CLASSICAL:
            _copy_attribute(each, made.attribute.add(name=each.name, type=each.type), loaded)


def _copy_attribute(given: Any, made: Any, node: Node | None) -> None:
    from onnx import numpy_helper

    value = None if node is None else node.attributes.get(given.name)
    kinds = type(given)
    if given.type == kinds.FLOAT:
        made.f = given.f
    elif given.type == kinds.INT:
        made.i = given.i
    elif given.type == kinds.INTS:
        made.ints.extend(given.ints)
    elif given.type == kinds.STRING:
        made.s = given.s
    elif given.type == kinds.STRINGS:
        made.strings.extend(given.strings)
    elif given.type == kinds.FLOATS and given.name in _TABLES:
        made.floats.extend(given.floats)
    elif given.type == kinds.GRAPH and isinstance(value, Graph):
        _copy(given.g, made.g, value)
    elif given.type == kinds.TENSOR and given.name == "value" and value is not None and value.numel() == 1:
        made.t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(given.t)))  # ConstantOfShape's
    else:
        refused = node or Node("", [], [given.name])
        raise refused.refuse(f"its attribute {printable(given.name)!r} holds what may be a weight")
