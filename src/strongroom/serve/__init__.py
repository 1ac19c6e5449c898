"""Serving: a model in an enclave, behind the Open Inference Protocol V2, for clients that appraise before they send.

Read in this order:

- `stage`: one model, loaded and warm. `onnx_file` says what is accepted as one.
- `app`: the front door. `tensors` is the protocol's encoding, `wire` reads JSON strictly.
- `attestation`: what a service shows to everybody, and how a client appraises it.
- `client`: appraises, pins the key, then predicts. It needs NumPy, not ONNX Runtime.
"""

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
