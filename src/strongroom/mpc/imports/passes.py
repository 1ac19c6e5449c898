"""What a graph is made into before it runs. No pass looks at a weight's value: every party gets the same graph."""

from __future__ import annotations

import torch

from strongroom.mpc.imports.fusions import fuse
from strongroom.mpc.imports.graph import ONNX, OWN, Graph, Node, function_of, require_known
from strongroom.mpc.imports.module import evaluate
from strongroom.mpc.imports.operators.layers import folded
from strongroom.mpc.imports.room import Room, as_parameter

_AS_THEY_ARE = {"Identity", "Dropout", "StopGradient"}
_SHAPES = {"Shape", "Size"}
_FOLDED_ELEMENTS = 1 << 26  # a constant larger than its inputs and than this is made anew at each run


def simplify(graph: Graph) -> Graph:
    """The graph, with what can be done once done, and what several nodes mean said in one.

    Raises:
        ModelFormatError: it has operators that cannot be run.
    """
    _skip_identities(graph)
    graph.prune()
    require_known(node for node in graph.all_nodes() if node.op != "If")
    with Room(graph.constants.values()) as room:
        _fold_constants(graph, room)
        graph.require_given()
        _fold_batch_norms(graph)
        fuse(graph)
        _fold_constants(graph, room)
    graph.prune()
    for name, value in graph.constants.items():
        if value.dtype == torch.float64:
            graph.constants[name] = as_parameter(value) if name in graph.weights else value.to(torch.float32)
        elif name in graph.weights and not value.is_floating_point():
            node = next((node for node in graph.nodes if name in node.inputs), Node("", [], [name]))
            raise node.refuse(
                "takes a quantised weight as whole numbers",
                hint="export the model without quantisation, or name in public= what is no weight of it",
            )
    return graph


# Constants


def _skip_identities(graph: Graph) -> None:
    kept = []
    for node in graph.nodes:
        if node.domain != OWN and node.op in _AS_THEY_ARE and node.outputs[0] not in graph.outputs:
            graph.rename(node.outputs[0], node.inputs[0])
        else:
            kept.append(node)
    graph.nodes = kept


def _fold_constants(graph: Graph, room: Room) -> None:
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
            _fold(graph, node, given, kept, room)
    graph.nodes = kept


def _fold(graph: Graph, node: Node, given: list[str], kept: list[Node], room: Room) -> None:
    results = evaluate(node, [graph.constants[name] if name else None for name in node.inputs])
    held = sum(graph.constants[name].numel() for name in given)
    made = sum(each.numel() for each in results if isinstance(each, torch.Tensor))
    if made > max(held, _FOLDED_ELEMENTS) or not room.has_for(results, [graph.constants[name] for name in given]):
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
