"""Namespaces, which belong to tenants: who may make policies in them (docs/spec/cas.md, "Namespaces").

Rules:

- The first policy of a namespace takes it for the key that `policy.owner` names. Where the operator allots namespaces,
  none is taken: it must have been allotted to a key before.
- Owners of a namespace, and whom they allow, make policies in it, each under a key of its own. Nobody else does.
- Owners may give it away. A policy's new owner does not get its namespace with it.
- A policy that exists is its owners' alone: the namespace's say nothing about it.
- The namespace `strongroom` is the CAS's own (`start/reserved.py`).
- A namespace of a database that knew none belongs to all who own a policy in it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

from strongroom.cas.start.operators import operators_of
from strongroom.cas.state.ledger import Change
from strongroom.cas.state.store import Store
from strongroom.errors import ConflictError, UnauthorizedError, UsageError

MAX_MEMBERS = 256
OWN = "strongroom"
_TABLE, _WHO = "namespaces", "who"


@dataclass(frozen=True)
class Namespace:
    """Whose it is, and who else may make policies in it: fingerprints of keys."""

    name: str
    owners: tuple[str, ...]
    members: tuple[str, ...] = ()

    def to_wire(self) -> dict[str, object]:
        return {"namespace": self.name, "owners": list(self.owners), "members": list(self.members)}


class Namespaces:
    """The namespaces of one CAS.

    Args:
        allotted: whether only allotted namespaces accept policies.
    """

    def __init__(self, store: Store, *, allotted: bool = False) -> None:
        self._store, self._allotted = store, allotted

    def operators(self) -> tuple[str, ...]:
        """Who may allot namespaces: those who decide about the CAS as a whole."""
        return operators_of(self._store).keys

    def get(self, name: str) -> Namespace | None:
        """A namespace that somebody has, or None."""
        row = self._store.row(_TABLE, name, _WHO)
        if row is not None:
            wire = json.loads(row)
            return Namespace(name, tuple(wire["owners"]), tuple(wire["members"]))
        policies = [policy for policy in self._store.row_groups("policies") if policy.startswith(f"{name}/")]
        owners = sorted({owner for policy in policies if (owner := self._store.owner(policy)) is not None})
        return Namespace(name, tuple(owners)) if owners else None

    def admit(self, policy: str, owner: str) -> list[Change]:
        """What changes if a policy of that name is made by that key: whoever makes the first takes the namespace.

        It is found and done in one transaction.

        Raises:
            UnauthorizedError: the namespace is another's, or not allotted.
        """
        name = policy.partition("/")[0]
        if name == OWN or self._store.owner(policy) is not None:
            return []
        found = self.get(name)
        if found is None:
            if self._allotted:
                raise UnauthorizedError(
                    f"namespace {name}: is not allotted to {owner}",
                    hint="its operator allots namespaces: `strongroom cas namespace allot`",
                )
            return [(_TABLE, name, _WHO, _box(Namespace(name, (owner,))))]
        if owner not in {*found.owners, *found.members}:
            raise UnauthorizedError(
                f"namespace {name}: is another's, and {owner} may make no policies in it",
                hint="choose another namespace, or ask its owner: `strongroom cas namespace allow`",
            )

        return []

    def allot(self, name: str, to: str, *, by: str, now: int) -> Namespace:
        """Make it a key's, whosever it was; whom its owners allowed stay. For operators, and its owners.

        Raises:
            UsageError: it is the CAS's own.
        """
        if name == OWN:
            raise UsageError(f"namespace {name}: is the CAS's own", hint="choose another namespace")
        with self._store.transaction():
            before = self.get(name)
            after = Namespace(name, (to,), before.members if before else ())
            if after != before:
                self._put(after, {"allotted": to, "by": by}, now=now)
            return after

    def allow(self, name: str, key: str, *, by: str, now: int) -> Namespace:
        """Let a key make policies in it. Raises ConflictError where that is one too many."""
        with self._store.transaction():
            found = self._existing(name)
            if key in {*found.owners, *found.members}:
                return found
            if len(found.members) >= MAX_MEMBERS:
                raise ConflictError(
                    f"namespace {name}: {MAX_MEMBERS} others may make policies in it already",
                    hint="remove one: `strongroom cas namespace remove`",
                )
            after = replace(found, members=(*found.members, key))
            self._put(after, {"allowed": key, "by": by}, now=now)
            return after

    def remove(self, name: str, key: str, *, by: str, now: int) -> Namespace:
        """Let a key make no more policies in it; those that it made stay its own.

        Raises:
            ConflictError: it is an owner's.
        """
        with self._store.transaction():
            found = self._existing(name)
            if key in found.owners:
                raise ConflictError(
                    f"namespace {name}: {key} is its owner's", hint="an operator of the CAS may allot it to another"
                )
            if key not in found.members:
                return found
            after = replace(found, members=tuple(each for each in found.members if each != key))
            self._put(after, {"removed": key, "by": by}, now=now)
            return after

    def _existing(self, name: str) -> Namespace:
        found = self.get(name)
        if found is None:
            raise UnauthorizedError(f"namespace {name}: is not the caller's")
        return found

    def _put(self, after: Namespace, detail: dict[str, object], *, now: int) -> None:
        changes: list[Change] = [(_TABLE, after.name, _WHO, _box(after))]
        self._store.change_rows(changes, event="namespace", policy=after.name, detail=detail, now=now)


def _box(namespace: Namespace) -> bytes:
    return json.dumps({"owners": namespace.owners, "members": namespace.members}).encode()
