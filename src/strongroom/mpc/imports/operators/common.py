"""What operators take their inputs as."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from strongroom.errors import UsageError
from strongroom.mpc.imports.graph import Node

MAX_ELEMENTS = 1 << 30  # of what a model makes by itself
_MAX_NUMBERS = 1 << 16  # of those that say what to do
Tensor = torch.Tensor


def is_secret(value: Any) -> bool:
    """Whether a value is no plain tensor: one whose elements the program must not see."""
    return isinstance(value, Tensor) and hasattr(value, "owners")


def plain(node: Node, value: Tensor | None, what: str) -> Tensor:
    """A tensor that says what to do. Raises UsageError if it is secret."""
    if value is None or is_secret(value):
        raise UsageError(
            f"model: {node}: got {'no' if value is None else 'secret'} {what}, wanted a public one",
            hint="name the initialiser in public= where it is no weight",
        )
    return value


def ints(node: Node, value: Tensor | None, what: str) -> list[int]:
    """Numbers that say what to do: shapes, axes, steps."""
    return [int(each) for each in _few(node, value, what).tolist()]


def numbers(node: Node, value: Tensor | None, what: str) -> list[float]:
    return [float(each) for each in _few(node, value, what).tolist()]


def _few(node: Node, value: Tensor | None, what: str) -> Tensor:
    found = plain(node, value, what).reshape(-1)
    if found.numel() > _MAX_NUMBERS:
        raise UsageError(f"model: {node}: got {found.numel()} numbers as {what}, wanted at most {_MAX_NUMBERS}")
    return found


def number(node: Node, value: Tensor | None, what: str) -> float:
    found = plain(node, value, what).reshape(-1)
    if found.numel() != 1:
        raise UsageError(f"model: {node}: got {found.numel()} numbers as {what}, wanted one")
    return float(found)


def axes_of(node: Node, value: Tensor | None, name: str = "axes") -> list[int] | None:
    """Axes, which an attribute said up to some version and an input says since."""
    if value is not None:
        return ints(node, value, name)
    given = node.get(name)
    return [given] if isinstance(given, int) else given


def limited(node: Node, shape: Sequence[int]) -> Sequence[int]:
    """A shape of what is made from nothing, of a size that can be."""
    total = 1
    for n in shape:
        total *= max(int(n), 0)
    if total > MAX_ELEMENTS:
        raise UsageError(f"model: {node}: makes {total} elements, wanted at most {MAX_ELEMENTS}")
    return shape
