"""The CAS's part of lineage: an attested enclave says what it ran, read and wrote, and the CAS signs it with what it
knows itself. Nothing of what the enclave says can take the place of what the CAS says: they are different members."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from strongroom.attest.appraise import AttestationResult
from strongroom.cas.policy.version import Policy
from strongroom.cas.wire import MAX_OUTPUTS
from strongroom.errors import FormatError, UnauthorizedError
from strongroom.lineage.statement import Endorsement, Output, Run, Statement


def statements(
    body: Mapping[str, Any], *, policy: Policy, appraised: AttestationResult, cas_root: str, now: int
) -> list[Statement]:
    """One statement for each output that a request of an attested enclave names.

    Raises:
        UnauthorizedError: the policy is not a program's.
        FormatError: the request is malformed, its run was launched for another CAS or policy, or it names two outputs
            alike.
    """
    if policy.role != "program":
        raise UnauthorizedError(f"policy {policy.name}: its role is {policy.role}, wanted program")
    if set(body) != {"run", "outputs"}:
        raise FormatError("lineage: wanted exactly run and outputs")
    run, listed = Run.from_wire(body["run"]), body["outputs"]
    for name, wanted in (("cas_root", cas_root), ("policy", policy.name)):
        if run.boot.get(name) != wanted:
            raise FormatError(f"run.boot.{name}: got {run.boot.get(name)!r:.100}, wanted {wanted}")
    if not isinstance(listed, list) or not 1 <= len(listed) <= MAX_OUTPUTS:
        raise FormatError(f"outputs: wanted a list of 1 to {MAX_OUTPUTS}")
    outputs = [Output.from_wire(one) for one in listed]
    if len({one.name for one in outputs}) != len(outputs):
        raise FormatError("outputs: two of one name")
    endorsement = Endorsement(
        cas_root=cas_root,
        policy=policy.name,
        policy_version=policy.version,
        policy_digest=policy.digest,
        tee=appraised.tee,
        measurement=appraised.measurement,
        vendor_root=appraised.vendor_root,
        tcb_status=appraised.tcb_status,
        signed=now,
    )
    return [Statement(output, run, endorsement) for output in outputs]
