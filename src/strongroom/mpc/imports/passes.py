"""What a graph is made into before it runs. No pass looks at a weight's value: every party gets the same graph."""

from __future__ import annotations

import torch

from strongroom.errors import ModelFormatError
from strongroom.mpc.imports.fusions import fuse
from strongroom.mpc.imports.graph import ONNX, ONNX_ML, OWN, Graph, Node, function_of, require_known
from strongroom.mpc.imports.module import evaluate
from strongroom.mpc.imports.operators.layers import folded

_AS_THEY_ARE = {"Identity", "Dropout", "StopGradient"}
_SHAPES = {"Shape", "Size"}
_FOLDED_ELEMENTS = 1 << 26  # a constant larger than its inputs and than this is made anew at each run
_LABELS = {"ArrayFeatureExtractor", "LabelEncoder", "CategoryMapper", "DictVectorizer"}
_TEXT = 8  # ONNX's type of strings


def simplify(graph: Graph) -> Graph:
    """The graph, with what can be done once done, and what several nodes mean said in one.

    Raises:
        ModelFormatError: it has operators that cannot be run.
    """
    _leave_out_labels(graph)
    _skip_identities(graph)
    graph.prune()
    require_known(_all_nodes(graph))
    _fold_constants(graph)
    _fold_batch_norms(graph)
    fuse(graph)
    _fold_constants(graph)
    graph.prune()
    for name, value in graph.constants.items():
        if value.dtype == torch.float64:
            graph.constants[name] = value.to(torch.float32)
        elif name in graph.weights and not value.is_floating_point():
            node = next(node for node in graph.nodes if name in node.inputs)
            raise node.refuse("takes a quantised weight as whole numbers", hint="export the model without quantisation")
    return graph


def _all_nodes(graph: Graph) -> list[Node]:
    nodes = []
    for node in graph.nodes:
        branches = [value for value in node.attributes.values() if isinstance(value, Graph)]
        nodes += [inner for branch in branches for inner in _all_nodes(branch)] if node.op == "If" else [node]
    return nodes


# Labels


def _leave_out_labels(graph: Graph) -> None:
    """Drop outputs that are names of classes; a map from names to probabilities becomes the probabilities."""
    labels: dict[str, str] = {}
    for node in graph.nodes:
        first = node.outputs[0]
        if node.domain == ONNX_ML and node.op == "ZipMap":
            graph.rename(first, node.inputs[0])
        elif (
            (node.domain == ONNX_ML and node.op in _LABELS)
            or (node.op == "Cast" and node.get("to") == _TEXT)
            or (node.domain == ONNX_ML and node.op == "LinearClassifier")
        ):
            labels[first] = f"{node}: a label, looked up by a secret class"
        elif found := next((labels[name] for name in node.inputs if name in labels), None):
            labels.update(dict.fromkeys(node.outputs, found))
    left = [name for name in graph.outputs if name in labels]
    if left and len(left) == len(graph.outputs):
        raise ModelFormatError(
            f"model: gives nothing but {labels[left[0]]}",
            hint="export it with its probabilities: whoever they are revealed to looks the label up",
        )
    graph.leaves_out.update({name: labels[name] for name in left})
    graph.outputs = [name for name in graph.outputs if name not in labels]


def classical_weights(graph: Graph) -> None:
    """Make the coefficients of scikit-learn's models, which are attributes, weights like any others."""
    nodes = []
    for node in graph.nodes:
        if node.domain == ONNX_ML and node.op in ("LinearRegressor", "LinearClassifier"):
            nodes.append(_linear(graph, node))
        elif node.domain == ONNX_ML and node.op == "Scaler":
            offset, scale = (_constant(graph, f"{node.outputs[0]}.{name}", node.get(name)) for name in _SCALER)
            centred = graph.fresh(f"{node.outputs[0]}.centred")
            nodes.append(Node("Sub", [node.inputs[0], offset], [centred], name=node.name))
            nodes.append(Node("Mul", [centred, scale], [node.outputs[0]], name=node.name))
        else:
            nodes.append(node)
    graph.nodes = nodes


_SCALER = ("offset", "scale")


def _linear(graph: Graph, node: Node) -> Node:
    coefficients, intercepts = node.get("coefficients") or [], node.get("intercepts") or []
    classes = node.get("targets", 1) if node.op == "LinearRegressor" else len(intercepts) or 1
    if not coefficients or len(coefficients) % classes:
        raise node.refuse(f"{len(coefficients)} coefficients for {classes} results")
    if node.op == "LinearClassifier" and classes == 1:
        raise node.refuse("one result for two classes", hint="export it with both classes' scores")
    name = node.outputs[-1]
    inputs = [node.inputs[0], _constant(graph, f"{name}.coefficients", coefficients, (classes, -1))]
    if intercepts:
        inputs.append(_constant(graph, f"{name}.intercepts", intercepts))
    after = {"post_transform": node.get("post_transform", "NONE")}
    return Node("Linear", inputs, [name], after, ONNX_ML, node.version, node.name)


def _constant(graph: Graph, name: str, values: list[float], shape: tuple[int, ...] = (-1,)) -> str:
    name = graph.fresh(name)
    graph.constants[name] = torch.tensor(values or [0.0], dtype=torch.float64).reshape(shape)
    graph.weights.add(name)
    return name


# Constants


def _skip_identities(graph: Graph) -> None:
    kept = []
    for node in graph.nodes:
        if node.domain != OWN and node.op in _AS_THEY_ARE and node.outputs[0] not in graph.outputs:
            graph.rename(node.outputs[0], node.inputs[0])
        else:
            kept.append(node)
    graph.nodes = kept


def _fold_constants(graph: Graph) -> None:
    """Compute what depends on no input. What is computed of a weight is one."""
    waiting, kept = graph.nodes[::-1], []
    while waiting:
        node = waiting.pop()
        given = [name for name in node.inputs if name]
        if not all(name in graph.constants for name in given):
            if node.op == "If":
                raise node.refuse("a branch that depends on an input", hint="export it for inputs of one shape")
            kept.append(node)
        elif node.op == "If":
            waiting += _branch(graph, node)[::-1]
        else:
            _fold(graph, node, given, kept)
    graph.nodes = kept


def _fold(graph: Graph, node: Node, given: list[str], kept: list[Node]) -> None:
    results = evaluate(node, [graph.constants[name] if name else None for name in node.inputs])
    held = sum(graph.constants[name].numel() for name in given)
    made = sum(each.numel() for each in results if isinstance(each, torch.Tensor))
    if made > max(held, _FOLDED_ELEMENTS):
        kept.append(node)
        return
    secret = node.op not in _SHAPES and not graph.weights.isdisjoint(given)
    for name, result in zip(node.outputs, results, strict=False):
        if name and isinstance(result, torch.Tensor):
            graph.constants[name] = result
            if secret:
                graph.weights.add(name)


def _branch(graph: Graph, node: Node) -> list[Node]:
    condition = graph.public(node.inputs[0])
    if condition is None or condition.numel() != 1:
        raise node.refuse("a branch that depends on a weight")
    branch: Graph = node.get("then_branch" if bool(condition) else "else_branch")
    graph.constants.update({**branch.constants, **graph.constants})
    graph.weights |= branch.weights & branch.constants.keys()
    pairs = zip(branch.outputs, node.outputs, strict=True)
    return [*branch.nodes, *(Node("Identity", [inner], [outer]) for inner, outer in pairs)]


# Batch normalisation


def _fold_batch_norms(graph: Graph) -> None:
    """Put a batch normalisation into the layer before it, or make it a factor and a summand for each channel."""
    producers, users = graph.producers(), graph.users()
    kept = []
    for node in graph.nodes:
        parts = node.inputs[1:5]
        if node.op != "BatchNormalization" or node.domain != ONNX or any(name not in graph.constants for name in parts):
            kept.append(node)
            continue
        weight, bias, mean, variance = (graph.constants[name].to(torch.float64) for name in parts)
        if node.get("training_mode", 0):
            function_of(node)(node, mean, weight, bias, mean, variance)  # which refuses
        scale, shift = folded(weight, bias, mean, variance, node.get("epsilon", 1e-5))
        source, before = node.inputs[0], producers.get(node.inputs[0])
        alone = len(users.get(source, [])) == 1 and source not in graph.outputs
        if before is not None and alone and _scaled(graph, before, scale, shift):
            before.outputs[0] = node.outputs[0]
            producers[node.outputs[0]] = before
            continue
        names = [graph.fresh(f"{parts[i]}.folded") for i in (0, 1)]
        for name, value in zip(names, (scale, shift), strict=True):
            graph.constants[name] = value
            graph.weights.add(name)
        kept.append(Node("ChannelAffine", [source, *names], node.outputs[:1], {}, OWN, 0, node.name))
    graph.nodes = kept


def _scaled(graph: Graph, layer: Node, scale: torch.Tensor, shift: torch.Tensor) -> bool:
    """Whether a layer could take up a factor and a summand of each of its channels."""
    if layer.domain != ONNX or layer.op not in ("Conv", "ConvTranspose", "Gemm"):
        return False
    kernel, bias = graph.constants.get(layer.inputs[1]), None
    if kernel is None or (layer.op == "ConvTranspose" and layer.get("group", 1) != 1):
        return False
    if len(layer.inputs) > 2 and layer.inputs[2]:
        bias = graph.constants.get(layer.inputs[2])
        if bias is None or bias.numel() != scale.numel():
            return False
    if layer.op == "Gemm" and (layer.get("alpha", 1.0) != 1 or layer.get("beta", 1.0) != 1):
        return False
    axis = {"Conv": 0, "ConvTranspose": 1, "Gemm": 0 if layer.get("transB", 0) else 1}[layer.op]
    shape = [1] * kernel.ndim
    shape[axis] = -1
    stem = layer.inputs[1]
    names = [graph.fresh(f"{stem}.folded"), graph.fresh(f"{stem}.shift")]
    summand = shift if bias is None else bias.reshape(-1) * scale + shift
    for name, value in zip(names, (kernel * scale.reshape(shape), summand), strict=True):
        graph.constants[name] = value
        graph.weights.add(name)
    layer.inputs = [layer.inputs[0], *names]
    return True
