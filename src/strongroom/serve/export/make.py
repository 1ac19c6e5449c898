"""`export`: whose model it is, whether its ONNX answers as it does, and the file."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from strongroom.errors import ModelFormatError, ServeError, UsageError
from strongroom.serve.export.made import Example, Made
from strongroom.serve.graph.model import load
from strongroom.serve.stage import Stage
from strongroom.serve.tensors import Array, TensorInfo, datatype_of

# Of the largest absolute answer: two libraries order their sums in their own ways.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path: of the ONNX file.
        framework: whose the model was.
        digest: SHA-256 of the file, in hexadecimal digits: what a client may pin.
        bytes: of the file.
        inputs, outputs: as a request and an answer have them.
        difference: the largest between the framework's answers to the example and ONNX Runtime's, as part of the
            largest absolute answer; None where there was no example to compare on.
        notes: what the user should know, one line each.
    """

    path: Path
    framework: str
    digest: str
    bytes: int
    inputs: Sequence[TensorInfo]
    outputs: Sequence[TensorInfo]
    difference: float | None
    notes: tuple[str, ...] = ()


def export(
    model: Any,
    path: str | os.PathLike[str],
    *,
    example: Example | None = None,
    opset: int | None = None,
    tolerance: float = TOLERANCE,
) -> Exported:
    """Write a model as one ONNX file that `serve` runs, if ONNX Runtime answers as the model does.

    Args:
        model: a PyTorch module or exported program, a Keras model, what `tf.saved_model.load` gave, a fitted
            scikit-learn estimator or pipeline; or the path of a file that holds one (`.pt2`, `.keras`, `.h5`, `.onnx`,
            the folder of a SavedModel or of a Hugging Face checkpoint).
        path: of the file to write; one that is there is replaced.
        example: inputs of the model: one array, one for each argument, or arrays by the arguments' names. PyTorch
            needs one; of the others, most say what their inputs are like, and get random numbers.
        opset: of ONNX; None takes what the framework's exporter prefers.
        tolerance: how far answers to the example may be apart, as part of the largest absolute answer.

    Raises:
        UsageError: the model is of no known kind, needs an example, or does not run on this one.
        FormatError: the file is of no kind that can be read without running what it holds.
        ModelFormatError: it cannot be exported, or its ONNX answers otherwise than it does.
        MissingDependencyError: what exports it is not installed.
    """
    if isinstance(model, (str, os.PathLike)):
        from strongroom.serve.export.files import read

        model = read(Path(model))
    made = _made(model, example, opset)
    data: bytes = made.proto.SerializeToString()
    load(data)  # raises where it could not be served
    stage = Stage.load(data, name="exported")
    difference = _difference(stage, made)
    if difference is not None and not difference <= tolerance:
        raise ModelFormatError(
            f"model: ONNX Runtime's answers are {difference:.2g} of the largest away from {made.framework}'s, "
            f"wanted at most {tolerance:g}",
            hint="does the model draw random numbers, or behave otherwise in training?",
        )
    _write(Path(path), data)
    return Exported(
        Path(path), made.framework, stage.digest, len(data), stage.inputs, stage.outputs, difference, made.notes
    )


def _made(model: Any, example: Example | None, opset: int | None) -> Made:
    """Who exports it: asked of what is imported already, since nobody has a model without its framework."""
    if isinstance(model, Path):
        if model.is_dir():
            from strongroom.serve.export.from_tensorflow import of_saved_model

            return of_saved_model(model, example, opset=opset)
        return _of_onnx(model, opset)
    keras, torch, sklearn = (sys.modules.get(name) for name in ("keras", "torch", "sklearn"))
    if keras is not None and isinstance(model, keras.Layer):
        from strongroom.serve.export.from_keras import of_keras

        return of_keras(model, example, opset=opset)
    if torch is not None and isinstance(model, (torch.nn.Module, torch.export.ExportedProgram)):
        from strongroom.serve.export.from_torch import of_torch

        return of_torch(model, example, opset=opset)
    if sklearn is not None and hasattr(model, "get_params") and hasattr(model, "fit"):
        from strongroom.serve.export.from_sklearn import of_sklearn

        return of_sklearn(model, example, opset=opset)
    if type(model).__module__.startswith("tensorflow.") or hasattr(model, "signatures"):
        from strongroom.serve.export.from_tensorflow import of_saved_model

        return of_saved_model(model, example, opset=opset)
    raise UsageError(
        f"model: got {type(model).__name__}, wanted one of PyTorch, Keras, TensorFlow or scikit-learn, or a path"
    )


def _of_onnx(path: Path, opset: int | None) -> Made:
    """An ONNX file, with its weights put into it and its opset converted as they need be."""
    model = load(path)
    proto = model.proto
    if opset is not None:
        from strongroom.serve.runtime import onnx

        try:
            proto = onnx().version_converter.convert_version(proto, opset)
        except Exception as error:
            raise ModelFormatError(f"model: cannot be converted to opset {opset}: {error}") from None
    return Made(proto, "ONNX", {}, (), model.notes)


def _difference(stage: Stage, made: Made) -> float | None:
    if not made.answers:
        return None
    if len(stage.outputs) != len(made.answers):
        raise ModelFormatError(
            f"model: {made.framework} gives {len(made.answers)} tensors and its ONNX {len(stage.outputs)}",
            hint="answer with each tensor once, and with tensors alone",
        )
    kinds = {info.name: info.datatype for info in stage.inputs}
    try:
        inputs = {name: np.ascontiguousarray(each) for name, each in made.inputs.items() if name in kinds}
        for name, each in inputs.items():
            if datatype_of(each, name) != kinds[name]:
                raise ModelFormatError(f"model: its ONNX takes {kinds[name]} where the example is {each.dtype}")
        got = list(stage.infer(inputs).values())
    except ServeError as error:
        raise ModelFormatError(f"model: its ONNX does not run on the example: {error.message}") from None
    return max(_apart(wanted, each) for wanted, each in zip(made.answers, got, strict=True))


def _apart(wanted: Array, got: Array) -> float:
    if wanted.shape != got.shape and wanted.size != got.size:
        return float("inf")
    if wanted.size == 0:
        return 0.0
    first, second = np.asarray(wanted, np.float64).ravel(), np.asarray(got, np.float64).ravel()
    if not np.array_equal(np.isfinite(first), np.isfinite(second)):
        return float("inf")
    finite = np.isfinite(first)
    if not finite.any():
        return 0.0
    largest = float(np.abs(first[finite]).max())
    return float(np.abs(first[finite] - second[finite]).max()) / (largest or 1.0)


def _write(path: Path, data: bytes) -> None:
    """All of it or nothing: what was there before stays until the new file is whole."""
    try:
        file, name = tempfile.mkstemp(prefix=".export-", dir=path.parent or Path())
        try:
            with os.fdopen(file, "wb") as whole:
                whole.write(data)
                whole.flush()
                os.fsync(whole.fileno())
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise UsageError(f"output: cannot write {path}: {(error.strerror or str(error)).lower()}") from None
