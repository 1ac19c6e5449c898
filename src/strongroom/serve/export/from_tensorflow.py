"""TensorFlow's modules, functions and SavedModels, by tf2onnx."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from strongroom.errors import MissingDependencyError, ModelFormatError, UsageError, printable
from strongroom.serve.export.made import Example, Made, arguments

_OPSET = 18  # the newest that tf2onnx knows


def of_saved_model(model: Any, example: Example | None, *, opset: int | None) -> Made:
    """A SavedModel's folder, or what `tf.saved_model.load` made of one: its signature `serving_default`.

    Raises:
        ModelFormatError: it has no signature, or cannot be converted.
        MissingDependencyError: TensorFlow or tf2onnx is not installed.
        UsageError: it does not run on the example, or needs one.
    """
    tensorflow = _tensorflow()
    if isinstance(model, Path):
        try:
            model = tensorflow.saved_model.load(str(model))
        except Exception as error:  # of whatever class TensorFlow raises
            raise ModelFormatError(f"model: TensorFlow cannot load it: {printable(error)[:300]}") from error
    signatures = getattr(model, "signatures", None) or {}
    if "serving_default" not in signatures:
        has = f"signatures: {', '.join(map(str, signatures)) or 'none'}"
        raise ModelFormatError(
            f"model: has {has}, wanted serving_default",
            hint="tf.saved_model.save(module, folder, signatures=module.__call__)",
        )
    signature = signatures["serving_default"]
    specs = dict(sorted(signature.structured_input_signature[1].items()))
    names = list(specs)
    if example is None:
        example = _random(specs)
    given, named = arguments(example, why="the signature does not say what its inputs are like")
    if named:
        if sorted(named) != names:
            raise UsageError(f"example: has {', '.join(sorted(named))}, wanted {', '.join(names)}")
        given = [named[name] for name in names]
    if len(given) != len(names):
        raise UsageError(f"example: {len(given)} inputs, wanted {len(names)}: {', '.join(names)}")
    outputs = sorted(signature.structured_outputs)

    def call(*tensors: Any) -> Any:
        answer = signature(**dict(zip(names, tensors, strict=True)))
        return [answer[name] for name in outputs]

    given = [
        np.asarray(each).astype(spec.dtype.as_numpy_dtype) for each, spec in zip(given, specs.values(), strict=True)
    ]
    try:
        answers = [np.asarray(each) for each in call(*map(tensorflow.constant, given))]
    except Exception as error:  # of whatever class TensorFlow raises
        raise UsageError(f"example: the model does not run on it: {printable(error)[:300]}") from error
    return of_function(
        call,
        names,
        given,
        answers,
        opset=opset,
        framework="TensorFlow",
        outputs=outputs,
        shapes=[spec.shape for spec in specs.values()],
    )


def of_function(
    call: Callable[..., Any],
    names: Sequence[str],
    given: Sequence[Any],
    answers: Sequence[Any],
    *,
    opset: int | None,
    framework: str,
    outputs: Sequence[str],
    shapes: Sequence[Any] | None = None,
) -> Made:
    """A function of tensors, which answers with a list of them; of each input, the first size may vary.

    Args:
        names, outputs: what its tensors are to be called.
    """
    tensorflow, tf2onnx = _tensorflow(), _tf2onnx()
    if opset is not None and opset > _OPSET:
        raise UsageError(f"opset: {opset}, tf2onnx writes {_OPSET} at most")
    specs = [
        tensorflow.TensorSpec(
            shapes[place] if shapes else ((None, *each.shape[1:]) if each.ndim else ()), each.dtype, name=name
        )
        for place, (name, each) in enumerate(zip(names, given, strict=True))
    ]
    logger = logging.getLogger("tf2onnx")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            proto, _ = tf2onnx.convert.from_function(
                tensorflow.function(call, input_signature=specs), specs, opset=opset or _OPSET
            )
    except Exception as error:  # of whatever class
        raise ModelFormatError(f"model: tf2onnx cannot convert it: {printable(error)[:300]}") from error
    finally:
        logger.setLevel(level)
    if len(proto.graph.output) == len(outputs) == len(set(outputs)):
        _rename(proto.graph, dict(zip([each.name for each in proto.graph.output], outputs, strict=True)))
    kept = [each.name for each in proto.graph.input]
    return Made(
        proto, framework, {name: each for name, each in zip(names, given, strict=True) if name in kept}, answers
    )


def is_tensorflow(model: Any) -> bool:
    """Whether it is what `tf.saved_model.load` gives. TensorFlow is not imported for the question."""
    return hasattr(model, "signatures") and type(model).__module__.startswith("tensorflow.")


def _rename(graph: Any, names: dict[str, str]) -> None:
    """Give outputs the signature's names, unless one is taken by another tensor."""
    taken = {name for node in graph.node for name in (*node.input, *node.output)} - set(names)
    if taken & set(names.values()):
        return
    for node in graph.node:
        for place, name in enumerate(node.output):
            node.output[place] = names.get(name, name)
        for place, name in enumerate(node.input):
            node.input[place] = names.get(name, name)
    for each in graph.output:
        each.name = names.get(each.name, each.name)


def _random(specs: dict[str, Any]) -> dict[str, Any] | None:
    random = np.random.default_rng(0)
    made = {}
    for name, spec in specs.items():
        if spec.shape.rank is None or any(size is None for size in spec.shape[1:]):
            return None
        shape = [1 if size is None else size for size in spec.shape]
        kind = np.dtype(spec.dtype.as_numpy_dtype)
        made[name] = random.random(shape).astype(kind) if kind.kind == "f" else np.zeros(shape, kind)
    return made


def _tensorflow() -> Any:
    try:
        import tensorflow
    except ModuleNotFoundError as error:
        if error.name != "tensorflow":
            raise
        raise MissingDependencyError(
            "tensorflow: is not installed, wanted to read its model", hint="pip install 'strongroom[tensorflow]'"
        ) from None
    return tensorflow


def _tf2onnx() -> Any:
    try:
        import tf2onnx
    except ModuleNotFoundError as error:
        if error.name != "tf2onnx":
            raise
        raise MissingDependencyError(
            "tf2onnx: is not installed, wanted to export a model of TensorFlow",
            hint="pip install 'strongroom[export]'; a Keras model can do without it, under KERAS_BACKEND=torch",
        ) from None
    return tf2onnx
