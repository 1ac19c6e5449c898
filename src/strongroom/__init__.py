"""Strongroom trains and serves machine-learning models on machines their owners do not trust.

The public names, each imported when it is first used:

- `open_sealed`, `vault`: sealed files and directory trees; `FileAnchor`, `MemoryAnchor` and `NO_FRESHNESS` say how
  their freshness is checked.
- `export`: makes the ONNX file that a service runs of a framework's model.
- `Client`: appraises a service, then predicts.
- `errors`: every exception raised on purpose.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from strongroom import errors, vault
    from strongroom.sealed import NO_FRESHNESS, FileAnchor, MemoryAnchor, Root, open_sealed
    from strongroom.serve.client import Client
    from strongroom.serve.export import export

__version__ = "0.1.0.dev0"

__all__ = [
    "NO_FRESHNESS",
    "Client",
    "FileAnchor",
    "MemoryAnchor",
    "Root",
    "__version__",
    "errors",
    "export",
    "open_sealed",
    "vault",
]

_HOMES = {
    "NO_FRESHNESS": "strongroom.sealed",
    "Client": "strongroom.serve.client",
    "FileAnchor": "strongroom.sealed",
    "MemoryAnchor": "strongroom.sealed",
    "Root": "strongroom.sealed",
    "export": "strongroom.serve.export",
    "open_sealed": "strongroom.sealed",
}


def __getattr__(name: str) -> Any:
    if name in ("errors", "vault"):
        return importlib.import_module(f"strongroom.{name}")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'strongroom' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
