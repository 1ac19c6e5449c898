"""The configuration and attestation service: who gets which secret is decided here, on evidence alone.

`policy.py` says what may run and what it receives, `owners.py` and `succession.py` who may change that; `store.py`
remembers; `authority.py` is the CAS's own identity; `app.py` is its HTTP API; `client.py` is an owner's view of it and
`session.py` an enclave's.
"""

from strongroom.cas.client import CasAnchor, OwnerClient
from strongroom.cas.policy import Policy, parse_policy
from strongroom.cas.server import CasAddress, running_cas
from strongroom.cas.session import EnclaveSession, Provisions, ServiceResult

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
