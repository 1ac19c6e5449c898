"""Operators too big for one enclave, in pieces.

By output channels, each piece has some columns of the weight and makes that part of the output; a Concat joins them.
Every number of the output is the sum that it was before, of the same terms, so answers are equal to the bit. By rows,
each piece has some rows of the weight and meets that part of the input; the pieces' outputs are added. Sums are then
in another order, and answers equal within rounding.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from strongroom.errors import UsageError, printable
from strongroom.serve.graph.model import Model
from strongroom.serve.graph.nodes import uses
from strongroom.serve.graph.operands import Operands
from strongroom.serve.graph.operators import Cuttable, cuttable
from strongroom.serve.graph.row import Row


@dataclass(frozen=True)
class Split:
    """How an operator is cut.

    Attributes:
        pieces: into how many, at least 2.
        rows: by rows of its weight (its input's features), whose partial sums are added, in place of by output
            channels. Equal within rounding, not to the bit.
    """

    pieces: int
    rows: bool = False


def splits(model: Model, row: Row | None = None) -> Mapping[str, int]:
    """The operators that can be cut by output channels: into how many pieces at most, by the name of what they make.

    Args:
        row: of the model, where it is known already.
    """
    return {name: one.columns for name, one in _cuttable(model, row).items() if one.columns > 1}


def split(model: Model, how: Mapping[str, Split] | None = None, *, largest: int | None = None) -> Model:
    """The model with operators cut in pieces, equal to the bit where none is cut by rows.

    Args:
        how: by the name of what an operator makes. The pieces follow each other in the chain, and what joins them comes
            behind the last.
        largest: cuts by output channels whatever has more bytes of weights than this, and is not in `how`.

    Raises:
        UsageError: a name is no operator that can be cut so.
    """
    wanted = dict(how or {})
    known = _cuttable(model, None)
    notes = []
    for name, one in known.items():
        if largest is not None and name not in wanted and one.bytes > largest:
            pieces = min(-(-one.bytes // max(1, largest)), one.columns)
            while 1 < pieces < one.columns and one.largest(pieces) > largest:
                pieces += 1
            if pieces > 1:
                wanted[name] = Split(pieces)
    for name, each in wanted.items():
        _check(name, each, known.get(name))
        by = "rows" if each.rows else "output channels"
        notes.append(f"{known[name].node.op_type} {printable(name)[:80]!r} is cut by {by} in {each.pieces}")
    if not wanted:
        return model
    proto = _without_weights(model.proto)
    weights = Operands(model.proto.graph)
    taken = {name for node in model.proto.graph.node for name in (*node.output, *uses(node))}
    names = _Names(taken | {each.name for each in model.proto.graph.initializer})
    nodes: list[Any] = []
    stored: list[Any] = []
    for node in model.proto.graph.node:
        if node.output[0] not in wanted:
            nodes.append(node)
            continue
        one, as_said = known[node.output[0]], wanted[node.output[0]]
        make = one.by_rows if as_said.rows else one.by_columns
        for made in make(as_said.pieces, weights, names):
            (nodes if isinstance(made, type(node)) else stored).append(made)
    # What made an operand of a weight that is in pieces now is needed by others, or by nobody.
    needed = {each.name for each in proto.graph.output}
    for node in reversed(nodes):
        if not needed.isdisjoint(node.output):
            needed.update(uses(node))
    proto.graph.node.extend(node for node in nodes if not needed.isdisjoint(node.output))
    proto.graph.initializer.extend(each for each in model.proto.graph.initializer if each.name in needed)
    proto.graph.initializer.extend(stored)
    return Model(proto, model.digest, (*model.notes, *notes))


class _Names:
    """New names, each made once."""

    def __init__(self, taken: set[str]) -> None:
        self._taken = taken

    def __call__(self, name: str) -> str:
        for number in itertools.count():
            new = f"{name}/{number}"
            if new not in self._taken:
                self._taken.add(new)
                return new
        raise AssertionError("unreachable")


def _check(name: str, how: Split, one: Cuttable | None) -> None:
    field = f"split of {printable(name)[:80]!r}"
    if one is None:
        raise UsageError(f"{field}: no operator that can be cut makes a tensor of that name")
    most = one.rows if how.rows else one.columns
    if not 2 <= how.pieces <= most:
        by = "rows" if how.rows else "output channels"
        wanted = f"wanted 2 to {most}" if most > 1 else f"a {one.node.op_type} like this cannot be cut so"
        raise UsageError(f"{field}: {how.pieces} pieces by {by}, {wanted}")


def _cuttable(model: Model, row: Row | None) -> dict[str, Cuttable]:
    graph = model.proto.graph
    weights = Operands(graph)
    row = row or Row(model)
    opset = next((each.version for each in model.proto.opset_import if each.domain in ("", "ai.onnx")), 1)
    found = {}
    for node in graph.node:
        one = cuttable(node, weights, row.tensors, opset)
        if one is not None:
            found[node.output[0]] = one
    return found


def _without_weights(proto: Any) -> Any:
    """The model without operators and weights."""
    other = type(proto)()
    other.ir_version = proto.ir_version
    other.opset_import.extend(proto.opset_import)
    other.producer_name = proto.producer_name
    other.graph.name = proto.graph.name
    other.graph.input.extend(proto.graph.input)
    other.graph.output.extend(proto.graph.output)
    other.graph.sparse_initializer.extend(proto.graph.sparse_initializer)
    return other
