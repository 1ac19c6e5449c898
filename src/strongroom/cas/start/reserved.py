"""The policies whose names begin with ``strongroom/``: they are the CAS's own, and nobody comes first to them.

There is one, `strongroom/cas`, whose role is ``cas``: what it accepts is given this CAS's root secret. Its first
version takes the operators that the CAS was created with, all of them, as its owners; each later one is signed as any
policy is, so that a new measurement of the CAS is approved by as many owners as the policy says (docs/spec/cas.md).
"""

from __future__ import annotations

from strongroom.cas.policy.version import Policy
from strongroom.cas.start.authority import Authority
from strongroom.cas.start.mode import RESERVED, read_restart
from strongroom.cas.state.store import Store
from strongroom.cas.state.trust_disk import TrustDisk
from strongroom.errors import PolicyError, UnauthorizedError, UnknownPolicyError

CAS_ROLE = "cas"
PREFIX = "strongroom/"


def check_reserved(store: Store, authority: Authority, policy: Policy) -> None:
    """Whether a version of a policy, which is signed well, may be stored under its name.

    Operators that a CAS was given after its creation are whom its host named: they count here only where the host has
    the root secret anyway.

    Raises:
        PolicyError: a name or a role that is kept for the CAS itself, or the CAS's policy without owners.
        UnauthorizedError: the first version of the CAS's policy does not name the operators that there are.
    """
    ours = policy.name == RESERVED
    if policy.name.startswith(PREFIX) and not ours:
        raise PolicyError(f"policy.name: got {policy.name}, and {PREFIX}... is the CAS's own", hint="take another")
    if ours != (policy.role == CAS_ROLE):
        raise PolicyError(
            f"policy.role: got {policy.role} in {policy.name}, and {CAS_ROLE} is the role of {RESERVED} and of no other"
        )
    if not ours:
        return
    if policy.owners is None:
        raise PolicyError(f"owners: {RESERVED} has none", hint="they approve what is given the CAS's root secret")
    try:
        store.policy(RESERVED)
    except UnknownPolicyError:
        restart = read_restart(store) if authority.marked or authority.unseal == TrustDisk.way else None
        operators = set(restart.operators) if restart else set()
        named = {key.fingerprint for key in policy.owners.keys.values()}
        if not operators or restart is None or named != operators or policy.owners.threshold < restart.needed:
            raise UnauthorizedError(
                f"policy {RESERVED}: its owners are not the {len(operators)} operators of this CAS, "
                f"{restart.needed if restart else 0} of whom are needed",
                hint="they are given when a CAS is created: `strongroom cas start --operator sha256:...`",
            ) from None
