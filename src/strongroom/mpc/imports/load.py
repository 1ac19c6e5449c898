"""Load a model, whole or its architecture alone, from whatever file it is in."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import nn

from strongroom.errors import FormatError, UsageError
from strongroom.mpc.imports import operators
from strongroom.mpc.imports.architecture import write_architecture
from strongroom.mpc.imports.graph import Graph
from strongroom.mpc.imports.module import Imported
from strongroom.mpc.imports.onnx_file import read_onnx
from strongroom.mpc.imports.passes import simplify
from strongroom.mpc.imports.room import zeros

_REGISTERED = operators  # importing it is what makes operators known


def load_model(model: Any, *, public: Collection[str] = ()) -> nn.Module:
    """A model as a module that runs on plain tensors and on secrets alike.

    Args:
        model: the path of an ONNX file (`.onnx`), of a Keras model (`.keras`, `.h5`), of a program that `torch.export`
            saved (`.pt2`), of a frozen TensorFlow graph (`.pb`), or of the folder of a TensorFlow SavedModel or of a
            Hugging Face checkpoint; or an `ExportedProgram` itself.
        public: names of an ONNX file's initialisers that are no weights, as tables of positions are.

    Raises:
        FormatError: it is none of these, or has what cannot be run.
        MissingDependencyError: the package that reads it is not installed.
    """
    return _load(model, weights=True, public=public)


def load_architecture(model: Any, *, public: Collection[str] = ()) -> nn.Module:
    """As `load_model`, for who is not to know the weights: all of them are zero, names and shapes are the same.

    It takes a whole file, or one that `save_architecture` wrote, which has no weights in it.
    """
    return _load(model, weights=False, public=public)


def save_architecture(
    model: str | os.PathLike[str], to: str | os.PathLike[str], *, public: Collection[str] = ()
) -> None:
    """Write an ONNX file without its weights' values, to give to the other parties.

    Public, and kept: the graph as far as it is run, all names and shapes, whole numbers, single numbers that are no
    layer's, and what `public` names. Nothing else is: no text about the model, no label, no function.

    Raises:
        FormatError: it cannot be loaded, or has numbers of which it is not known what they are.
    """
    if Path(model).suffix != ".onnx":
        raise UsageError(f"model: got {Path(model).name}, wanted an ONNX file")
    load_architecture(model, public=public)  # what cannot be loaded is not known well enough to be given away
    write_architecture(Path(model), Path(to), public=public)


def _load(model: Any, *, weights: bool, public: Collection[str]) -> nn.Module:
    if not isinstance(model, (str, os.PathLike)):
        if isinstance(model, torch.export.ExportedProgram):
            from strongroom.mpc.imports.exported import of_program

            return of_program(model, weights=weights)
        raise UsageError(f"model: got {type(model).__name__}, wanted a path or an ExportedProgram")
    path = Path(model)
    if path.name in ("", ".."):
        path = path.resolve()  # which has a name, for messages
    if not path.exists():
        raise UsageError(f"model: there is no {path}")
    if path.is_dir() and (path / "config.json").is_file():
        from strongroom.mpc.imports.huggingface import read_pretrained

        return read_pretrained(path, weights=weights)
    if path.is_dir():
        from strongroom.mpc.imports.saved_model import read_saved_model

        return module_of(read_saved_model(path), weights=weights)
    if path.suffix == ".onnx":
        return module_of(read_onnx(path, weights=weights, public=public), weights=weights)
    if path.suffix == ".pb":
        from strongroom.mpc.imports.graph_def import read_graph_def

        return module_of(read_graph_def(path.read_bytes(), name=path.name), weights=weights)
    if path.suffix in (".keras", ".h5", ".hdf5") or (path.suffix == ".json" and not weights):
        from strongroom.mpc.imports.keras_file import read_keras

        return read_keras(path, weights=weights)
    if path.suffix == ".pt2":
        from strongroom.mpc.imports.exported import read_exported

        return read_exported(path, weights=weights)
    raise FormatError(
        f"model: {path.name} is of no kind that is known by its name",
        hint="wanted .onnx, .keras, .h5, .pt2, .pb, or the folder of a SavedModel or checkpoint",
    )


def module_of(graph: Graph, *, weights: bool) -> Imported:
    """A graph as a module, with its weights or zeros."""
    if not weights:
        for name in graph.weights:
            graph.constants[name] = zeros(graph.constants[name].shape, graph.constants[name].dtype)
    return Imported(simplify(graph))
