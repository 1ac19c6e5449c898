"""Functions that files spell out, as the one node that has a protocol of its own.

A pattern is a tuple of an operator and what it takes: other patterns, a letter for any value, a number for a public
constant of that value (within a thousandth), or `EPS` or `SCALE` for any public number. Sums, products and maxima match
in either order; `SPREAD` is a value whatever its axes of one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from strongroom.mpc.imports.graph import ONNX, OWN, Graph, Node

Pattern = Any
EPS, SCALE, SPREAD = "EPS", "SCALE", "SPREAD"
_COMMUTATIVE = {"Add", "Mul", "Max"}
_SPREADING = {"Reshape", "Expand", "Unsqueeze", "Squeeze", "Cast"}
_FLOATS = (1, 10, 11, 16)


@dataclass
class Found:
    """What letters stand for, and the nodes that take part."""

    names: dict[str, str] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)


class _Finder:
    def __init__(self, graph: Graph) -> None:
        self.graph, self.producers, self.users = graph, graph.producers(), graph.users()

    def matches(self, pattern: Pattern, name: str, found: Found) -> Iterator[Found]:
        """The ways in which the value of a name is what a pattern says."""
        if pattern in (EPS, SCALE):
            if self.number(name) is not None and found.names.get(pattern, name) == name:
                yield Found({**found.names, pattern: name}, found.nodes)
        elif isinstance(pattern, (int, float)):
            value = self.number(name)
            if value is not None and (value == pattern or math.isclose(value, pattern, rel_tol=1e-3)):
                yield found
        elif isinstance(pattern, str):
            name = self.through_casts(name)
            if found.names.get(pattern, name) == name:
                yield Found({**found.names, pattern: name}, found.nodes)
        elif pattern[0] == SPREAD:
            yield from self._spread(pattern[1], name, found)
        else:
            yield from self._of_node(pattern, self.producers.get(self.through_casts(name)), found)

    def _spread(self, pattern: Pattern, name: str, found: Found) -> Iterator[Found]:
        yield from self.matches(pattern, name, found)
        node = self.producers.get(name)
        if node is not None and (node.op in _SPREADING or self._bounds_nothing(node)):
            inner = next(each for each in node.inputs if each not in self.graph.constants)
            yield from self._spread(pattern, inner, Found(found.names, [*found.nodes, node]))

    def _bounds_nothing(self, node: Node) -> bool:
        """Whether it is the larger of a value and minus infinity."""
        return (
            node.op == "Max" and any(self.number(name) == -math.inf for name in node.inputs) and len(node.inputs) == 2
        )

    def _of_node(self, pattern: Pattern, node: Node | None, found: Found) -> Iterator[Found]:
        op, *wanted = pattern
        if node is None or node.op != op or node.domain not in (ONNX, OWN) or len(node.inputs) < len(wanted):
            return
        here = Found(found.names, [*found.nodes, node])
        orders = [wanted, wanted[::-1]] if op in _COMMUTATIVE else [wanted]
        for order in orders:
            yield from self._all(order, node.inputs, here)

    def _all(self, wanted: list[Pattern], names: list[str], found: Found) -> Iterator[Found]:
        if not wanted:
            yield found
            return
        for each in self.matches(wanted[0], names[0], found):
            yield from self._all(wanted[1:], names[1:], each)

    def through_casts(self, name: str) -> str:
        while (node := self.producers.get(name)) is not None and node.op == "Cast" and node.get("to") in _FLOATS:
            name = node.inputs[0]
        return name

    def number(self, name: str) -> float | None:
        value = self.graph.public(name)
        return float(value) if value is not None and value.numel() == 1 else None


def _any(*parts: list[Pattern]) -> list[Pattern]:
    return [each for part in parts for each in part]


def _square(x: Pattern) -> list[Pattern]:
    return [("Mul", x, x), ("Pow", x, 2)]


def _over_root(x: Pattern, inner: Pattern) -> list[Pattern]:
    """x / sqrt(inner + epsilon)."""
    root = ("Sqrt", ("Add", inner, EPS))
    return [("Div", x, root), ("Mul", x, ("Reciprocal", root)), ("Mul", x, ("Div", 1, root))]


_CENTRED: Pattern = ("Sub", "x", ("ReduceMean", "x"))
_LAYER_NORM = [each for square in _square(_CENTRED) for each in _over_root(_CENTRED, ("ReduceMean", square))]
_RMS_NORM = [each for square in _square("x") for each in _over_root("x", ("ReduceMean", square))]
_ERF: list[Pattern] = [
    ("Add", ("Erf", inner), 1) for inner in (("Div", "x", math.sqrt(2)), ("Mul", "x", math.sqrt(0.5)))
]
_ERF += [("Erfc", ("Mul", ("Neg", "x"), math.sqrt(0.5))), ("Erfc", ("Neg", ("Mul", "x", math.sqrt(0.5))))]
_CUBE: list[Pattern] = [("Pow", "x", 3), ("Mul", "x", ("Mul", "x", "x"))]
_TANH: list[Pattern] = [
    ("Add", ("Tanh", ("Mul", ("Add", "x", inner), math.sqrt(2 / math.pi))), 1)
    for inner in [*[("Mul", cube, 0.044715) for cube in _CUBE], ("Mul", "x", ("Mul", "x", ("Mul", "x", 0.044715)))]
]


def _halved(one_more: Pattern) -> list[Pattern]:
    """x / 2 times something."""
    return [
        ("Mul", ("Mul", "x", one_more), 0.5),
        ("Mul", ("Mul", "x", 0.5), one_more),
        ("Mul", "x", ("Mul", one_more, 0.5)),
        ("Mul", ("Div", "x", 2), one_more),
    ]


_EXP: Pattern = ("Exp", ("Sub", "x", (SPREAD, ("ReduceMax", "x"))))
# As Flax spells it: a variance as the mean square less the square of the mean, means as sums times 1/n.
_MEAN: Pattern = ("Mul", ("ReduceSum", "x"), SCALE)
_VARIANCE: Pattern = ("Sub", ("Mul", ("ReduceSum", ("Mul", "x", "x")), SCALE), ("Mul", _MEAN, _MEAN))
_MOMENTS: list[Pattern] = [
    (
        "Mul",
        ("Sub", "x", (SPREAD, _MEAN)),
        ("Mul", ("Reciprocal", ("Sqrt", ("Add", (SPREAD, ("Max", _VARIANCE, 0)), EPS))), "w"),
    )
]

# The first that matches is taken; the larger come first.
_FUSIONS: list[tuple[str, list[Pattern]]] = [
    ("LayerNorm", _LAYER_NORM),
    ("RmsNorm", _RMS_NORM),
    ("MomentNorm", _MOMENTS),
    ("Gelu", _any(*map(_halved, _ERF))),
    ("TanhGelu", _any(*map(_halved, _TANH))),
    ("Softmax", [("Div", _EXP, (SPREAD, ("ReduceSum", _EXP)))]),
    ("Silu", [("Mul", "x", ("Sigmoid", "x"))]),
    ("Rsqrt", [("Reciprocal", ("Sqrt", "x")), ("Div", 1, ("Sqrt", "x"))]),
    ("DivRoot", [("Div", "y", ("Sqrt", "x"))]),
]


def fuse(graph: Graph) -> None:
    """Put one node in the place of each pattern's; those that nothing else needs are left to be dropped."""
    for kind, patterns in _FUSIONS:
        finder = _Finder(graph)
        for i, node in enumerate(graph.nodes):
            for pattern in patterns:
                found = next(
                    (each for each in finder._of_node(pattern, node, Found()) if _alone(finder, kind, each)), None
                )
                made = None if found is None else _made(graph, finder, kind, node, found)
                if made is not None:
                    graph.nodes[i] = made
                    break
        graph.prune()
    graph.nodes = [part for node in graph.nodes for part in _taken_apart(graph, node)]


def _alone(finder: _Finder, kind: str, found: Found) -> bool:
    """Whether nothing else takes what lies between."""
    if kind in ("Rsqrt", "DivRoot"):
        return True
    inner = {id(node) for node in found.nodes}
    root, *others = found.nodes
    return all(
        name not in finder.graph.outputs
        and all(id(user) in inner or user.op == "Cast" for user in finder.users.get(name, []))
        for node in others
        if node is not root
        for name in node.outputs
    )


def _made(graph: Graph, finder: _Finder, kind: str, root: Node, found: Found) -> Node | None:
    x = found.names["x"]
    attributes: dict[str, Any] = {}
    if kind in ("LayerNorm", "RmsNorm"):
        if not all(_along_last(graph, node) for node in found.nodes if node.op == "ReduceMean"):
            return None
        attributes["epsilon"] = finder.number(found.names[EPS])
    if kind in ("Softmax", "MomentNorm"):
        axes = {_axes(graph, node) for node in found.nodes if node.op.startswith("Reduce")}
        if len(axes) != 1 or len(axis := next(iter(axes)) or ()) != 1:
            return None
        attributes["axis"] = axis[0]
    if kind == "MomentNorm":
        attributes |= {"epsilon": finder.number(found.names[EPS]), "scale": finder.number(found.names[SCALE])}
    if kind in ("Rsqrt", "DivRoot", "Silu", "Softmax") and x in graph.constants:
        return None
    inputs = {"DivRoot": [found.names.get("y", ""), x], "MomentNorm": [x, found.names.get("w", "")]}.get(kind, [x])
    return Node(kind, inputs, root.outputs, attributes, OWN, 0, root.name)


def _axes(graph: Graph, node: Node) -> tuple[int, ...] | None:
    if len(node.inputs) > 1 and node.inputs[1]:
        value = graph.public(node.inputs[1])
        return None if value is None else tuple(map(int, value.reshape(-1)))
    given: list[int] | None = node.get("axes")
    return None if given is None else tuple(given)


def _along_last(graph: Graph, node: Node) -> bool:
    return _axes(graph, node) == (-1,) and bool(node.get("keepdims", 1))


def _taken_apart(graph: Graph, node: Node) -> list[Node]:
    """y / sqrt(x) as the product with a reciprocal root, which has a protocol."""
    if node.domain != OWN or node.op != "DivRoot":
        return [node]
    root = graph.fresh(f"{node.outputs[0]}.root")
    return [
        Node("Rsqrt", [node.inputs[1]], [root], {}, OWN, 0, node.name),
        Node("Mul", [node.inputs[0], root], node.outputs, {}, ONNX, 13, node.name),
    ]
