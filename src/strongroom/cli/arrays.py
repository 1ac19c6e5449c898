"""Arrays that a person hands in: from `.npy`, `.npz` and `.json`, and from standard input."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from strongroom.errors import FormatError


def read(path: Path, *, what: str = "input") -> dict[str, npt.NDArray[Any]] | npt.NDArray[Any]:
    """One array, or arrays by name; ``-`` is JSON on standard input.

    Args:
        what: the arrays are, for messages.

    Raises:
        FormatError: the file holds none, or Python objects.
    """
    if str(path) == "-" or path.suffix == ".json":
        return _read_json(path, what)
    try:
        loaded = np.load(path, allow_pickle=False)
    except (ValueError, EOFError):
        raise FormatError(f"{what}: {path} is not .npy, .npz or .json, or holds Python objects") from None
    return loaded if isinstance(loaded, np.ndarray) else {name: loaded[name] for name in loaded.files}


def _read_json(path: Path, what: str) -> dict[str, npt.NDArray[Any]] | npt.NDArray[Any]:
    name = "standard input" if str(path) == "-" else str(path)
    try:
        value = json.loads(sys.stdin.read() if str(path) == "-" else path.read_text("utf-8"))
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise FormatError(
            f"{what}: {name} is malformed JSON at {where}: {error.msg[:1].lower()}{error.msg[1:]}"
        ) from None
    except (UnicodeDecodeError, RecursionError):
        raise FormatError(f"{what}: {name} is not JSON") from None
    try:
        return {k: np.asarray(v) for k, v in value.items()} if isinstance(value, dict) else np.asarray(value)
    except ValueError:
        raise FormatError(f"{what}: {name} holds an array whose rows differ in length") from None
