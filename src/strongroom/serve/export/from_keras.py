"""Keras 3's models: as PyTorch modules where Keras runs on PyTorch, by TensorFlow's converter where it runs on that."""

from __future__ import annotations

from typing import Any

import numpy as np

from strongroom.errors import ModelFormatError, UsageError, printable
from strongroom.serve.export.made import Example, Made, arguments, flat


def of_keras(model: Any, example: Example | None, *, opset: int | None) -> Made:
    """A Keras model. Without an example, random numbers of its inputs' shapes are one.

    Raises:
        ModelFormatError: it cannot be exported, or Keras runs on JAX.
        MissingDependencyError: what exports it is not installed.
        UsageError: it needs an example, or does not run on it.
    """
    import keras

    example = _random(model) if example is None else example
    given, named = arguments(example, why="the model does not say what its inputs are like")
    if named:
        wanted = [each.name for each in getattr(model, "inputs", None) or []]
        if sorted(named) == sorted(wanted):
            named = {name: named[name] for name in wanted}
        given, named = list(named.values()), {}
    backend = keras.backend.backend()
    if backend == "torch":
        from strongroom.serve.export.from_torch import of_torch

        call = _Call(model, len(given)).module
        return of_torch(call, given, opset=opset, framework="Keras")
    if backend != "tensorflow":
        raise ModelFormatError(
            f"model: Keras runs on {backend}, wanted torch or tensorflow",
            hint="save it, model.save('model.keras'), and export the file: KERAS_BACKEND=torch strongroom export",
        )
    from strongroom.serve.export.from_tensorflow import of_function

    try:
        answers = [np.asarray(each) for each in flat(model(given[0] if len(given) == 1 else given, training=False))]
    except Exception as error:  # of whatever class layers raise
        raise UsageError(f"example: the model does not run on it: {printable(error)[:300]}") from error

    def call_it(*tensors: Any) -> Any:
        return list(flat(model(tensors[0] if len(tensors) == 1 else list(tensors), training=False)))

    names = [each.name for each in getattr(model, "inputs", None) or []] or [f"input_{n}" for n in range(len(given))]
    outputs = list(getattr(model, "output_names", None) or [f"output_{n}" for n in range(len(answers))])
    return of_function(call_it, names, given, answers, opset=opset, framework="Keras", outputs=outputs)


class _Call:
    """A Keras model as a PyTorch module with one parameter for each input."""

    def __init__(self, model: Any, count: int) -> None:
        from torch import nn

        class Module(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.model = model

            def forward(self, *inputs: Any) -> Any:
                answer = self.model(inputs[0] if count == 1 else list(inputs), training=False)
                return tuple(flat(answer))

        self.module = Module()


def _random(model: Any) -> list[Any] | None:
    inputs = getattr(model, "inputs", None)
    if not inputs or any(size is None for each in inputs for size in tuple(each.shape)[1:]):
        return None
    random = np.random.default_rng(0)
    made = []
    for each in inputs:
        kind = np.dtype(each.dtype)
        shape = (1, *tuple(each.shape)[1:])
        made.append(random.random(shape).astype(kind) if kind.kind == "f" else np.zeros(shape, kind))
    return made
