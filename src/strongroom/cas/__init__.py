"""The configuration and attestation service: who gets which secret is decided here, on evidence alone.

`policy` says what may run, what it receives and who may change that; `log` and `state` remember; `start` is the CAS's
own identity and how it begins; `enclaves` and `callers` decide; `api` is its HTTP API, `service` the process, `unseal`
the ways in which its root secret is kept; `client` is the other end, an owner's and an enclave's.

The public names, each imported when it is first used, so that an enclave that talks to a CAS loads no server.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from strongroom.cas.client.address import CasAddress
    from strongroom.cas.client.anchor import CasAnchor
    from strongroom.cas.client.enclave import EnclaveSession, Provisions, ServiceResult
    from strongroom.cas.client.owner import OwnerClient
    from strongroom.cas.policy.version import Policy, parse_policy
    from strongroom.cas.service.server import running_cas

__all__ = [
    "CasAddress",
    "CasAnchor",
    "EnclaveSession",
    "OwnerClient",
    "Policy",
    "Provisions",
    "ServiceResult",
    "parse_policy",
    "running_cas",
]

_HOMES = {
    "CasAddress": "client.address",
    "CasAnchor": "client.anchor",
    "EnclaveSession": "client.enclave",
    "OwnerClient": "client.owner",
    "Policy": "policy.version",
    "Provisions": "client.enclave",
    "ServiceResult": "client.enclave",
    "parse_policy": "policy.version",
    "running_cas": "service.server",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
