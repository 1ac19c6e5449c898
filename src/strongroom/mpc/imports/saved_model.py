"""A TensorFlow SavedModel as a graph: TensorFlow puts its variables into it, and nothing of it runs afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from strongroom.errors import MissingDependencyError, ModelFormatError
from strongroom.mpc.imports.graph import Graph, printable
from strongroom.mpc.imports.graph_def import read_graph_def

_SIGNATURE = "serving_default"
_REACHES_OUT = {
    "ReadFile", "WriteFile", "MatchingFiles", "WholeFileReaderV2", "TextLineReaderV2", "FixedLengthRecordReaderV2",
    "TFRecordReaderV2", "TextLineDataset", "TFRecordDataset", "FixedLengthRecordDataset", "LMDBDataset", "SqlDataset",
    "InitializeTableFromTextFileV2", "PyFunc", "PyFuncStateless", "EagerPyFunc", "RpcCall", "PrintV2",
    "DebugIdentityV2", "XlaCallModule",
}  # fmt: skip


def read_saved_model(folder: Path) -> Graph:
    """What the folder serves by default.

    Raises:
        ModelFormatError: it holds no SavedModel, serves nothing, or reaches out of the graph.
        MissingDependencyError: TensorFlow is not installed.
    """
    if not (folder / "saved_model.pb").is_file():
        raise ModelFormatError(f"model: {folder.name} has no saved_model.pb, wanted a SavedModel")
    tensorflow, freeze = _tensorflow()
    _require_contained(folder)
    try:
        loaded = tensorflow.saved_model.load(str(folder))
        signatures = dict(loaded.signatures)
    except Exception as error:  # TensorFlow's errors have no common class
        raise ModelFormatError(f"model: TensorFlow cannot load {folder.name}: {printable(str(error), 300)}") from error
    if _SIGNATURE not in signatures and len(signatures) != 1:
        raise ModelFormatError(f"model: {folder.name} serves {sorted(signatures)[:5]}, wanted {_SIGNATURE!r}")
    frozen = freeze(signatures.get(_SIGNATURE) or next(iter(signatures.values())))
    names = [each.name for each in frozen.outputs]
    graph = read_graph_def(frozen.graph.as_graph_def().SerializeToString(), names, name=folder.name)
    graph.inputs = [each.name for each in frozen.inputs if each.name in graph.inputs]
    return graph


def _require_contained(folder: Path) -> None:
    from tensorflow.core.protobuf import saved_model_pb2

    saved = saved_model_pb2.SavedModel()
    try:
        saved.ParseFromString((folder / "saved_model.pb").read_bytes())
    except Exception as error:
        raise ModelFormatError(f"model: {folder.name} is no SavedModel: {printable(str(error))}") from None
    for meta in saved.meta_graphs:
        functions = (node for function in meta.graph_def.library.function for node in function.node_def)
        for node in (*meta.graph_def.node, *functions):
            if node.op in _REACHES_OUT:
                raise ModelFormatError(f"model: {folder.name} has a {node.op}, which reaches out of the graph")


def _tensorflow() -> tuple[Any, Any]:
    try:
        import tensorflow
        from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2
    except ImportError:
        raise MissingDependencyError(
            "tensorflow: is not installed, wanted to read a SavedModel", hint="pip install 'strongroom[tensorflow]'"
        ) from None
    return tensorflow, convert_variables_to_constants_v2
