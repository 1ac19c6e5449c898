"""Models in files, as far as they can be read without running what they hold."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from strongroom.errors import FormatError, MissingDependencyError, UsageError

_PICKLES = (".pt", ".pth", ".bin", ".pkl", ".pickle", ".joblib", ".ckpt")


def read(path: Path) -> Any:
    """The model in a file or folder: what `export` takes.

    A `.pt2` that `torch.export.save` wrote, a `.keras` or `.h5` file, the folder of a Hugging Face checkpoint. A folder
    of a SavedModel and an ONNX file stay paths.

    Raises:
        UsageError: there is none.
        FormatError: it is of no kind that can be read without running what it holds.
        ModelFormatError: it is not what its name says, or holds code.
        MissingDependencyError: the package that reads it is not installed.
    """
    if not path.exists():
        raise UsageError(f"model: there is no {path}")
    if path.is_dir() and (path / "saved_model.pb").is_file():
        return path
    if path.suffix == ".onnx":
        return path
    if path.suffix in (".keras", ".h5", ".hdf5"):
        # Keras reads this when it is imported; PyTorch is what its models are exported by.
        os.environ.setdefault("KERAS_BACKEND", "torch")
        _require_torch()
        from strongroom.mpc.imports.keras_file import model_of

        return model_of(path)
    if path.suffix == ".pt2":
        _require_torch()
        from strongroom.mpc.imports.exported import program_of

        return program_of(path)
    if path.is_dir() and (path / "config.json").is_file():
        _require_torch()
        from strongroom.mpc.imports.huggingface import read_pretrained

        return read_pretrained(path, weights=True)
    if path.suffix in _PICKLES:
        raise FormatError(
            f"model: {path.name} is a Python pickle by its name, which runs code when it is read",
            hint="export it from Python, where the model is: strongroom.export(model, 'model.onnx', example=x)",
        )
    raise FormatError(
        f"model: {path.name} is of no kind that is known by its name",
        hint="wanted .pt2, .keras, .h5, .onnx, the folder of a SavedModel or checkpoint, or FILE.py:NAME",
    )


def _require_torch() -> None:
    try:
        import torch  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise MissingDependencyError(
            "torch: is not installed, wanted to export a model", hint="pip install 'strongroom[export]'"
        ) from None
