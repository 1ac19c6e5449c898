"""Serving: a model in an enclave, behind the Open Inference Protocol V2, for clients that appraise before they send.

Read in this order:

- `stage`: one model, loaded and warm. `onnx_file` says what is accepted as one.
- `app`: the front door. `tensors` is the protocol's encoding, `wire` reads JSON strictly.
- `attestation`: what a service shows to everybody, and how a client appraises it.
- `client`: appraises, pins the key, then predicts. It needs NumPy, not ONNX Runtime.

The public names, each imported when it is first used: a service's enclave has no NumPy, which starts threads, before it
has given up its privileges.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from strongroom.serve.app import ServiceApp
    from strongroom.serve.attestation import AppraisedService, ServiceAttestation, appraise_service
    from strongroom.serve.client import Client
    from strongroom.serve.stage import Stage

__all__ = [
    "AppraisedService",
    "Client",
    "ServiceApp",
    "ServiceAttestation",
    "Stage",
    "appraise_service",
]

_HOMES = {
    "AppraisedService": "attestation",
    "Client": "client",
    "ServiceApp": "app",
    "ServiceAttestation": "attestation",
    "Stage": "stage",
    "appraise_service": "attestation",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
