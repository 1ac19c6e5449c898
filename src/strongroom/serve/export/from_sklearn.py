"""scikit-learn's estimators and pipelines, by skl2onnx."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from strongroom.errors import MissingDependencyError, ModelFormatError, UsageError, printable
from strongroom.serve.export.made import Example, Made, arguments


def of_sklearn(model: Any, example: Example | None, *, opset: int | None) -> Made:
    """A fitted estimator of one array of rows; a classifier answers with labels and with probabilities as a tensor.

    Without an example, random rows are one.

    Raises:
        ModelFormatError: skl2onnx cannot convert it.
        MissingDependencyError: skl2onnx is not installed.
        UsageError: it is not fitted, or does not run on the example.
    """
    try:
        import skl2onnx
    except ModuleNotFoundError as error:
        if error.name != "skl2onnx":
            raise
        raise MissingDependencyError(
            "skl2onnx: is not installed, wanted to export a model of scikit-learn",
            hint="pip install 'strongroom[export]'",
        ) from None
    if example is None and hasattr(model, "n_features_in_"):
        example = np.random.default_rng(0).standard_normal((16, model.n_features_in_)).astype(np.float32)
    from sklearn.base import is_classifier

    given, named = arguments(example, why="the model does not say how many features it takes")
    given = given or list(named.values())
    if len(given) != 1 or given[0].ndim != 2:
        raise UsageError("example: wanted one array of rows, as the model was fitted on")
    rows = given[0].astype(np.float32) if given[0].dtype.kind == "f" else given[0]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            answers = [model.predict(rows)] if hasattr(model, "predict") else [model.transform(rows)]
            if hasattr(model, "predict_proba"):
                answers.append(model.predict_proba(rows))
    except Exception as error:  # of whatever class estimators raise
        raise UsageError(f"example: the model does not run on it: {printable(error)[:300]}") from error
    options = {id(model): {"zipmap": False}} if is_classifier(model) else None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            default = opset or skl2onnx.convert.get_latest_tested_opset_version()
            # Later versions of the second are not for all estimators: IsolationForest has none.
            opsets = {"": default, "ai.onnx.ml": _ML_OPSET}
            with _whole_numbers():
                proto = skl2onnx.to_onnx(model, rows[:1], options=options, target_opset=opsets)
    except Exception as error:  # of whatever class
        raise ModelFormatError(f"model: skl2onnx cannot convert it: {printable(error)[:300]}") from error
    # What there is no answer of the model's own to compare with is left out.
    pairs = list(zip(proto.graph.output, answers, strict=False))
    kept = [(output, answer) for output, answer in pairs if output.type.tensor_type.elem_type != _STRING]
    if not kept:
        raise ModelFormatError(
            "model: answers with text, wanted numbers", hint="fit it on numbers in the place of the labels' names"
        )
    notes = ("its labels are text, which requests do not carry: they are left out",) if len(kept) < len(pairs) else ()
    outputs = [type(output).FromString(output.SerializeToString()) for output, _ in kept]
    del proto.graph.output[:]
    proto.graph.output.extend(outputs)
    answers = [answer for _, answer in kept]
    return Made(proto, "scikit-learn", {proto.graph.input[0].name: rows}, answers, notes)


@contextmanager
def _whole_numbers() -> Iterator[None]:
    """Have trees' flags be numbers: of HistGradientBoosting skl2onnx 1.20 gives NumPy's bools, which onnx refuses.

    Not for several threads at once.
    """
    import skl2onnx.common.tree_ensemble as trees

    real = trees.add_node

    def add_node(*args: Any, **named: Any) -> Any:
        flag = "nodes_missing_value_tracks_true"
        return real(*args, **(named | ({flag: int(named[flag])} if flag in named else {})))

    trees.add_node = add_node
    try:
        yield
    finally:
        trees.add_node = real


_STRING = 8  # onnx.TensorProto.STRING
_ML_OPSET = 3
