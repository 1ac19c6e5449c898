"""A graph as a module: its weights are parameters, its nodes run in order."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from strongroom.errors import StrongroomError, UsageError
from strongroom.mpc.costs.where import inside
from strongroom.mpc.imports.graph import Graph, Node, Operator, function_of, printable, require_known
from strongroom.mpc.imports.room import as_parameter


class Weights(nn.Module):
    """Parameters under dotted names, as the model's file has them."""

    def put(self, name: str, value: torch.Tensor) -> tuple[nn.Module, str]:
        """Add one; where it lies. A part that cannot be an attribute's name gets underscores."""
        *path, last = (part or "_" for part in name.split("."))
        holder: nn.Module = self
        for part in path:
            inner = holder._modules.get(part)
            if inner is None:
                part = _free(holder, part)
                holder.add_module(part, inner := Weights())
            holder = inner
        last = _free(holder, last)
        holder.register_parameter(last, nn.Parameter(value, requires_grad=False))
        return holder, last


def _free(holder: nn.Module, name: str) -> str:
    while hasattr(holder, name):
        name += "_"
    return name


class Imported(nn.Module):
    """A model from a file. Takes its inputs in order or by name; returns a tensor, or a tuple where it has several.

    Attributes:
        inputs, outputs: their names.
        leaves_out: outputs of the file that are not computed, and why.
    """

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        require_known(graph.nodes)
        self.inputs, self.outputs = list(graph.inputs), list(graph.outputs)
        self.leaves_out = dict(graph.leaves_out)
        self.weights = Weights()
        self._places = {
            name: self.weights.put(name, as_parameter(graph.constants[name])) for name in sorted(graph.weights)
        }
        self._constants = {name: value for name, value in graph.constants.items() if name not in graph.weights}
        self._nodes: list[tuple[Node, Operator]] = [(node, function_of(node)) for node in graph.nodes]
        last = {name: i for i, node in enumerate(graph.nodes) for name in node.inputs}
        self._needed = {*self.outputs, *last} - {""}
        keep = {*self.outputs, *self._constants, *self._places, ""}
        self._spent: list[list[str]] = [[] for _ in graph.nodes]  # what no node after this one needs
        for name, i in last.items():
            if name not in keep:
                self._spent[i].append(name)
        self.eval()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        values = self._bound(args, kwargs)
        values.update(self._constants)
        values.update({name: getattr(holder, last) for name, (holder, last) in self._places.items()})
        for (node, function), spent in zip(self._nodes, self._spent, strict=True):
            with inside(printable(node.name or node.outputs[0]), printable(node.op)):
                results = _run(node, function, [values[name] if name else None for name in node.inputs])
            for name, result in zip(node.outputs, results, strict=False):
                values[name] = result
            for name in node.outputs[len(results) :]:
                if name in self._needed:
                    raise node.refuse(f"its output {printable(name)!r} is not computed")
            for name in spent:
                values.pop(name, None)
        found = tuple(values[name] for name in self.outputs)
        return found[0] if len(found) == 1 else found

    def _bound(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        bound = dict(zip(self.inputs, args, strict=False))
        unknown = sorted({*kwargs} - {*self.inputs}) or sorted({*kwargs} & {*bound})
        if unknown or len(args) > len(self.inputs) or len(bound) + len(kwargs) < len(self.inputs):
            raise UsageError(
                f"model: got {len(args)} inputs{f' and {unknown}' if unknown else ''}, "
                f"wanted {', '.join(map(printable, self.inputs))}"
            )
        return bound | kwargs

    def extra_repr(self) -> str:
        return f"{', '.join(map(printable, self.inputs))} -> {', '.join(map(printable, self.outputs))}"


def _run(node: Node, function: Operator, inputs: list[Any]) -> tuple[Any, ...]:
    try:
        result = function(node, *inputs)
    except StrongroomError as error:
        if str(node) not in error.message:
            error.message = f"{error.message}; in {node}"
            error.args = (error.message,)
        raise
    except (RuntimeError, ValueError, IndexError, TypeError, NotImplementedError) as error:
        shapes = ", ".join(str(tuple(each.shape)) for each in inputs if isinstance(each, torch.Tensor))
        raise UsageError(
            f"model: {node} cannot take inputs of shapes {shapes}: {printable(str(error), 300)}",
            hint="give inputs of the shapes that the model was exported for",
        ) from error
    return result if isinstance(result, tuple) else (result,)


def evaluate(node: Node, inputs: list[torch.Tensor | None]) -> tuple[Any, ...]:
    """Run one node on plain values."""
    return _run(node, function_of(node), inputs)
