"""What is peculiar to scikit-learn's models in ONNX: they give labels, and have weights among their attributes."""

from __future__ import annotations

import torch

from strongroom.errors import ModelFormatError
from strongroom.mpc.imports.graph import ONNX, ONNX_ML, Graph, Node

LEARNED = {
    "LinearRegressor": ("coefficients", "intercepts"),
    "LinearClassifier": ("coefficients", "intercepts"),
    "Scaler": ("offset", "scale"),
}  # the attributes that are weights
_LABELS = {"LabelEncoder", "CategoryMapper", "DictVectorizer", "LinearClassifier"}
_TEXT = 8  # ONNX's type of strings


def leave_out_labels(graph: Graph) -> None:
    """Drop outputs that are names of classes; a map from names to probabilities becomes the probabilities.

    Raises:
        ModelFormatError: there is no other output.
    """
    labels: dict[str, str] = {}
    made = {*graph.inputs, *graph.producers()}
    for node in graph.nodes:
        first = node.outputs[0]
        if node.domain == ONNX_ML and node.op == "ZipMap":
            graph.rename(first, node.inputs[0])
        elif _gives_label(node, made, graph):
            labels[first] = f"{node}: a label, looked up by a secret class"
        elif found := next((labels[name] for name in node.inputs if name in labels), None):
            labels.update(dict.fromkeys(node.outputs, found))
        labels.pop("", None)
    left = [name for name in graph.outputs if name in labels]
    if left and len(left) == len(graph.outputs):
        raise ModelFormatError(
            f"model: gives nothing but {labels[left[0]]}",
            hint="export it with its probabilities: whoever they are revealed to looks the label up",
        )
    graph.leaves_out.update({name: labels[name] for name in left})
    graph.outputs = [name for name in graph.outputs if name not in labels]


def _gives_label(node: Node, made: set[str], graph: Graph) -> bool:
    if node.domain == ONNX:
        return node.op == "Cast" and node.get("to") == _TEXT
    if node.domain == ONNX_ML and node.op == "ArrayFeatureExtractor":
        # A table of names, which may be text, and so no constant here. Columns that are chosen from data are data.
        table, *index = node.inputs
        return table not in made and any(name not in graph.constants for name in (table, *index))
    return node.domain == ONNX_ML and node.op in _LABELS


def learned_name(output: str, attribute: str) -> str:
    """The name that an attribute has as a weight."""
    return f"{output}.{attribute}"


def classical_weights(graph: Graph) -> set[str]:
    """Make the coefficients of scikit-learn's models, which are attributes, constants. Returns their names."""
    nodes, before = [], set(graph.constants)
    for node in graph.nodes:
        if node.domain == ONNX_ML and node.op in ("LinearRegressor", "LinearClassifier"):
            nodes.append(_linear(graph, node))
        elif node.domain == ONNX_ML and node.op == "Scaler":
            offset, scale = (_constant(graph, node, name, node.get(name) or [0.0]) for name in LEARNED["Scaler"])
            centred = graph.fresh(f"{node.outputs[0]}.centred")
            nodes.append(Node("Sub", [node.inputs[0], offset], [centred], name=node.name))
            nodes.append(Node("Mul", [centred, scale], [node.outputs[0]], name=node.name))
        else:
            nodes.append(node)
    graph.nodes = nodes
    return graph.constants.keys() - before


def _linear(graph: Graph, node: Node) -> Node:
    coefficients, intercepts = node.get("coefficients") or [], node.get("intercepts") or []
    classes = node.get("targets", 1) if node.op == "LinearRegressor" else len(intercepts) or 1
    if not coefficients or classes < 1 or len(coefficients) % classes:
        raise node.refuse(f"{len(coefficients)} coefficients for {classes} results")
    if node.op == "LinearClassifier" and classes == 1:
        raise node.refuse("one result for two classes", hint="export it with both classes' scores")
    inputs = [node.inputs[0], _constant(graph, node, "coefficients", coefficients, (classes, -1))]
    if intercepts:
        inputs.append(_constant(graph, node, "intercepts", intercepts))
    after = {"post_transform": node.get("post_transform", "NONE")}
    return Node("Linear", inputs, node.outputs[-1:], after, ONNX_ML, node.version, node.name)


def _constant(graph: Graph, node: Node, attribute: str, values: list[float], shape: tuple[int, ...] = (-1,)) -> str:
    name = learned_name(node.outputs[-1], attribute)
    if graph.fresh(name) != name:
        raise node.refuse(f"its {attribute} would be {name!r:.120}, which something else is")
    graph.constants[name] = torch.tensor(values, dtype=torch.float64).reshape(shape)
    return name
