"""Who decides about a CAS as a whole: keys, and how many of them it takes."""

from __future__ import annotations

from dataclasses import dataclass

from strongroom.cas.start.mode import RESERVED, read_restart
from strongroom.cas.state.store import Store
from strongroom.errors import UnknownPolicyError


@dataclass(frozen=True)
class Operators:
    """Fingerprints of their keys, and how many of them have to agree."""

    keys: tuple[str, ...]
    needed: int


def operators_of(store: Store) -> Operators:
    """The owners of the CAS's own policy, if it has one; else those whom the start mode names, if it names any."""
    try:
        policy = store.policy(RESERVED)
    except UnknownPolicyError:
        restart = read_restart(store)
        return Operators((), 0) if restart is None else Operators(restart.operators, restart.needed)
    if policy.owners is None:
        return Operators((policy.owner,), 1)
    return Operators(tuple(key.fingerprint for key in policy.owners.keys.values()), policy.owners.threshold)
