"""A model as data: named values, nodes that compute some from others, and which constants are weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from strongroom.errors import ModelFormatError

ONNX, ONNX_ML, MICROSOFT, TENSORFLOW = "", "ai.onnx.ml", "com.microsoft", "tensorflow"
OWN = "strongroom"  # what passes put in place of several nodes

Operator = Callable[..., Any]
F = TypeVar("F", bound=Operator)
_OPERATORS: dict[tuple[str, str], Operator] = {}


@dataclass
class Node:
    """One operation. An input without a name is an optional one that is left out."""

    op: str
    inputs: list[str]
    outputs: list[str]
    attributes: dict[str, Any] = field(default_factory=dict)
    domain: str = ONNX
    version: int = 0
    name: str = ""

    def __str__(self) -> str:
        where = f"{self.domain or 'ai.onnx'}, version {self.version}"
        return f"node {printable(self.name or next(iter(self.outputs), ''))!r} ({printable(self.op)}, {where})"

    def get(self, name: str, default: Any = None) -> Any:
        return self.attributes.get(name, default)

    def taken(self) -> set[str]:
        """Names of what it needs: its inputs, and what its branches take from outside."""
        return set(self.inputs).union(*(branch.taken() for branch in self.branches()))

    def branches(self) -> list[Graph]:
        return [value for value in self.attributes.values() if isinstance(value, Graph)]

    def refuse(self, why: str, hint: str | None = None) -> ModelFormatError:
        """The error that says what cannot be run, to be raised."""
        return ModelFormatError(f"model: {self}: {why}", hint=hint)


@dataclass
class Graph:
    """Nodes in an order in which they can run.

    Attributes:
        constants: values that are there before any input is.
        weights: names of those constants that are secret.
        leaves_out: outputs of the file that are not computed, and why.
    """

    nodes: list[Node]
    inputs: list[str]
    outputs: list[str]
    constants: dict[str, torch.Tensor] = field(default_factory=dict)
    weights: set[str] = field(default_factory=set)
    leaves_out: dict[str, str] = field(default_factory=dict)

    def public(self, name: str) -> torch.Tensor | None:
        """A constant that is no weight."""
        return None if name in self.weights else self.constants.get(name)

    def all_nodes(self) -> Iterator[Node]:
        """The nodes, and those of their branches."""
        for node in self.nodes:
            yield node
            for branch in node.branches():
                yield from branch.all_nodes()

    def producers(self) -> dict[str, Node]:
        return {name: node for node in self.all_nodes() for name in node.outputs if name}

    def users(self) -> dict[str, list[Node]]:
        """By each name, the nodes that take it; one that takes it twice, twice."""
        users: dict[str, list[Node]] = {}
        for node in self.all_nodes():
            for name in node.inputs:
                users.setdefault(name, []).append(node)
        return users

    def taken(self) -> set[str]:
        """Names that a branch takes from outside."""
        here = {*self.constants, *self.inputs, *(name for node in self.nodes for name in node.outputs)}
        return set(self.outputs).union(*(node.taken() for node in self.nodes)) - here

    def rename(self, old: str, new: str) -> None:
        """Have every node, and the graph's outputs, take `new` for `old`."""
        for node in self.nodes:
            node.inputs = [new if name == old else name for name in node.inputs]
            for branch in node.branches():
                branch.rename(old, new)
        self.outputs = [new if name == old else name for name in self.outputs]

    def fresh(self, name: str) -> str:
        """A name like this one that nothing has."""
        taken = {*self.constants, *self.inputs, *(output for node in self.nodes for output in node.outputs)}
        return next(each for each in _numbered(name) if each not in taken)

    def prune(self) -> None:
        """Drop what no output needs."""
        needed, kept = set(self.outputs), []
        for node in reversed(self.nodes):
            if needed.intersection(node.outputs):
                kept.append(node)
                needed.update(node.taken())
        self.nodes = kept[::-1]
        self.constants = {name: value for name, value in self.constants.items() if name in needed}
        self.weights &= self.constants.keys()

    def require_given(self) -> None:
        """Pass values that are there when they are taken.

        Raises:
            ModelFormatError: nothing gives one, or only a later node does.
        """
        given = {"", *self.constants, *self.inputs}
        for node in self.nodes:
            if missing := sorted(node.taken() - given):
                raise node.refuse(f"takes {printable(missing[0])!r}, which nothing before it gives")
            given.update(node.outputs)
        if missing := [name for name in self.outputs if name not in given or not name]:
            raise ModelFormatError(f"model: nothing gives its output {printable(missing[0])!r}")


def _numbered(name: str) -> Iterator[str]:
    yield name
    count = 1
    while True:
        yield f"{name}.{count}"
        count += 1


def operator(*names: str, domain: str = ONNX) -> Callable[[F], F]:
    """Make a function what nodes of these operators run: it takes the node, then a value or None for each input."""

    def register(function: F) -> F:
        _OPERATORS.update({(domain, name): function for name in names})
        return function

    return register


def function_of(node: Node) -> Operator:
    return _OPERATORS[node.domain, node.op]


def require_known(nodes: Iterable[Node]) -> None:
    """Pass operators that can be run.

    Raises:
        ModelFormatError: it names all that cannot, and the first node of each.
    """
    unknown: dict[tuple[str, str], Node] = {}
    for node in nodes:
        if (node.domain, node.op) not in _OPERATORS:
            unknown.setdefault((node.domain, node.op), node)
    if unknown:
        raise ModelFormatError(
            f"model: cannot run {', '.join(map(str, list(unknown.values())[:5]))}"
            + (f" and {len(unknown) - 5} other operators" if len(unknown) > 5 else ""),
            hint="docs/how-to/mpc-import.md lists the operators that run",
        )


def known(domain: str) -> list[str]:
    """The operators of a domain that run."""
    return sorted(name for where, name in _OPERATORS if where == domain)


def printable(text: str, limit: int = 120) -> str:
    """Text of a file, for a message."""
    return "".join(c if c.isprintable() else " " for c in text[:limit])
