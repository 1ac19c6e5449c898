"""What each framework's adapter gives, and takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from strongroom.errors import UsageError
from strongroom.serve.tensors import Array

# One array, one for each of the model's arguments in their order, or arrays by the arguments' names.
Example: TypeAlias = Array | Sequence[Array] | Mapping[str, Array]


@dataclass(frozen=True)
class Made:
    """A model made into ONNX.

    Attributes:
        proto: `onnx.ModelProto`.
        framework: whose it was.
        inputs: the example by the names of the ONNX model's inputs.
        answers: the framework's own answers to it, in the order of the ONNX model's outputs.
        notes: what the user should know, one line each.
    """

    proto: Any = field(repr=False)
    framework: str
    inputs: Mapping[str, Array] = field(repr=False)
    answers: Sequence[Array] = field(repr=False)
    notes: tuple[str, ...] = ()


def arguments(example: Example | None, *, why: str) -> tuple[list[Array], dict[str, Array]]:
    """An example as arguments by place, and by name.

    Args:
        why: an example is needed, for the message if there is none.
    """
    if example is None:
        raise UsageError(f"example: missing, wanted inputs of the model: {why}")
    if isinstance(example, Mapping):
        return [], {str(name): _array(value) for name, value in example.items()}
    if isinstance(example, (tuple, list)):
        return [_array(value) for value in example], {}
    return [_array(example)], {}


def flat(value: Any) -> Iterator[Any]:
    """Tensors of a nested answer, in order; None is left out."""
    if isinstance(value, Mapping):
        for each in value.values():
            yield from flat(each)
    elif isinstance(value, (tuple, list)):
        for each in value:
            yield from flat(each)
    elif value is not None:
        yield value


def _array(value: Any) -> Array:
    """An array of whatever is one: of NumPy, of a framework, or of Python's numbers."""
    detached = value.detach().cpu() if hasattr(value, "detach") else value
    array = np.asarray(detached)
    if array.dtype.hasobject:
        raise UsageError(f"example: a {type(value).__name__} that is no array of numbers")
    return array.astype(np.float32) if array.dtype == np.float64 and not hasattr(value, "dtype") else array
