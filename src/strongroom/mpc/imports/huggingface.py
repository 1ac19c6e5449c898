"""A Hugging Face checkpoint as the module that Transformers makes of it, which runs on secrets as it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from strongroom.errors import MissingDependencyError, ModelFormatError
from strongroom.mpc.imports.graph import printable

_MAX_CONFIG = 1 << 24


def read_pretrained(folder: Path, *, weights: bool) -> nn.Module:
    """The model in a folder of `config.json` and, for the weights, safetensors files; nothing is downloaded.

    Raises:
        ModelFormatError: it is no checkpoint, needs code of its own, or has its weights in a pickle.
        MissingDependencyError: Transformers is not installed.
    """
    transformers = _transformers()
    if (folder / "config.json").stat().st_size > _MAX_CONFIG:
        raise ModelFormatError(f"model: the configuration in {folder.name} is over {_MAX_CONFIG} bytes")
    try:
        said = json.loads((folder / "config.json").read_bytes())
        names = said.get("architectures") or []
    except (ValueError, AttributeError, RecursionError) as error:
        raise ModelFormatError(f"model: config.json in {folder.name} is none: {printable(str(error))}") from None
    kind: Any = getattr(transformers, str(names[0]), None) if names else None
    ours = isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)
    if said.get("auto_map") or not ours:
        raise ModelFormatError(
            f"model: {folder.name} is a {printable(str(names[:1]))}, wanted a model of Transformers' own",
            hint="build the module yourself and give its state to mpc.own or mpc.share",
        )
    try:
        if weights:
            model = kind.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, trust_remote_code=False, dtype="float32"
            )
        else:
            model = kind(
                transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            )
    except Exception as error:  # of whatever class Transformers raises, and torch where there is no memory
        raise ModelFormatError(
            f"model: Transformers cannot load {folder.name}: {printable(str(error), 300)}"
        ) from error
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        if not weights:
            parameter.zero_()
    module: nn.Module = model.eval()
    return module


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise MissingDependencyError("transformers: is not installed", hint="pip install transformers") from None
    return transformers
