"""What an operator takes, also in its branches and bodies, and an order in which operators can run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from strongroom.errors import ModelFormatError, printable

_MAX_DEPTH = 50
MAX_NODES = 200_000


def bodies(node: Any) -> Iterator[Any]:
    """The graphs inside an operator: the branches of If, the bodies of Loop and Scan."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def made(node: Any) -> list[str]:
    """Names of what an operator gives."""
    return [name for name in node.output if name]


def uses(node: Any) -> list[str]:
    """Names of what an operator takes, and of what its bodies take from outside themselves; each once, in order."""
    names = {name: None for name in node.input if name}
    for body in bodies(node):
        names.update(dict.fromkeys(_captured(body, 1)))
    return list(names)


def _captured(graph: Any, depth: int) -> list[str]:
    if depth > _MAX_DEPTH:
        raise ModelFormatError(f"model: its bodies lie more than {_MAX_DEPTH} deep in each other")
    inside = {each.name for each in graph.input} | {each.name for each in graph.initializer}
    inside.update(each.values.name for each in graph.sparse_initializer)
    inside.update(name for node in graph.node for name in node.output)
    taken: dict[str, None] = {}
    for node in graph.node:
        taken.update((name, None) for name in node.input if name)
        for body in bodies(node):
            taken.update(dict.fromkeys(_captured(body, depth + 1)))
    taken.update((each.name, None) for each in graph.output)
    return [name for name in taken if name not in inside]


def sorted_nodes(graph: Any) -> list[Any]:
    """The operators in an order in which they can run: as they stand, as far as that is one.

    Raises:
        ModelFormatError: a tensor is made twice, is made of itself, or is not there.
    """
    if len(graph.node) > MAX_NODES:
        raise ModelFormatError(f"model: {len(graph.node)} operators, the limit is {MAX_NODES}")
    there = {each.name for each in graph.input} | {each.name for each in graph.initializer}
    there.update(each.values.name for each in graph.sparse_initializer)
    maker: dict[str, int] = {}
    for place, node in enumerate(graph.node):
        for name in made(node):
            if name in maker or name in there:
                raise ModelFormatError(f"model: {printable(name)[:120]!r} is made twice")
            maker[name] = place
    taken = [uses(node) for node in graph.node]
    for name in [name for names in taken for name in names] + [each.name for each in graph.output]:
        if name not in maker and name not in there:
            raise ModelFormatError(f"model: {printable(name)[:120]!r} is taken and never made")
    if all(maker.get(name, -1) < place for place, names in enumerate(taken) for name in names):
        return list(graph.node)
    done: set[int] = set()
    order: list[Any] = []
    for root in range(len(taken)):
        # Depth first by hand: a chain of operators is longer than Python's stack.
        path = [(root, iter(taken[root]))] if root not in done else []
        open_ = {root}
        while path:
            place, left = path[-1]
            before = next((maker[name] for name in left if name in maker and maker[name] not in done), None)
            if before is None:
                path.pop()
                open_.discard(place)
                done.add(place)
                order.append(graph.node[place])
            elif before in open_:
                raise ModelFormatError(f"model: {printable(made(graph.node[before])[0])[:120]!r} is made of itself")
            else:
                open_.add(before)
                path.append((before, iter(taken[before])))
    return order
