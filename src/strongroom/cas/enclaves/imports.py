"""What a CAS knows of grants: which are stored, and whether an enclave may have what its policy imports.

Rules:

- An enclave gets what it imports on a grant in force: signed by the exporting policy's people of now, not withdrawn,
  not expired, for the measurement just appraised.
- A connection keeps what it was given only while the very same grants are in force: after any change the enclave
  attests again, and is refused if it must be.
- A grant that was withdrawn leaves its serial behind, so that it cannot be stored again. Serials are seconds since
  1970, and none is taken from the future: the next one is always free.
- Who ends a grant in force, by withdrawing or replacing it, must have the right to make it: `grants` over all of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from strongroom.cas.policy.grants import Grant, SignedGrant, check_exportable, imports, reference_digest
from strongroom.cas.policy.version import Policy
from strongroom.cas.state.store import Store
from strongroom.errors import ConflictError, GrantError, StrongroomError, UnknownPolicyError

_TABLE = "grants"
_AHEAD = 300
"""Seconds that the clock of those who sign may be ahead of this CAS's."""


@dataclass(frozen=True)
class StoredGrant:
    """The newest grant to one importer. `withdrawn` once somebody who may grant has ended it."""

    signed: SignedGrant
    withdrawn: bool

    def state(self, exporter: Policy, now: int) -> str:
        """``in force``, ``withdrawn``, ``expired``, or ``not signed by the present owners``."""
        if self.withdrawn:
            return "withdrawn"
        if now >= self.signed.grant.expires:
            return "expired"
        try:
            self.signed.check(exporter)
        except StrongroomError:
            return "not signed by the present owners"
        return "in force"


@dataclass(frozen=True)
class Held:
    """On what a connection has its imports: the grant's id, the exporting policy's digest, and until when."""

    grant: str
    exporter: str
    expires: int


def stored_grant(store: Store, exporter: str, importer: str) -> StoredGrant | None:
    """The newest grant of one policy to another, or None."""
    raw = store.row(_TABLE, exporter, importer)
    if raw is None:
        return None
    wire = json.loads(raw)
    return StoredGrant(SignedGrant.from_wire(wire["signed"]), bool(wire["withdrawn"]))


def stored_grants(store: Store, exporter: str) -> list[StoredGrant]:
    """The newest grants of a policy, one for each importer."""
    found = (stored_grant(store, exporter, importer) for importer in store.row_keys(_TABLE, exporter))
    return [each for each in found if each is not None]


def received_grants(store: Store, importer: Policy) -> list[tuple[StoredGrant, Policy]]:
    """The newest grants to a policy of those that it imports from, each with the exporting policy."""
    found = []
    for source in imports(importer):
        stored = stored_grant(store, source, importer.name)
        if stored is not None:
            with suppress(UnknownPolicyError):
                found.append((stored, store.policy(source)))
    return found


def store_grant(
    store: Store, exporter: Policy, signed: SignedGrant, by: str, now: int, *, may_end: Callable[[Grant], None]
) -> None:
    """Store a grant, in place of an older one to the same importer. The newest once more changes nothing.

    Args:
        may_end: raises UnauthorizedError unless whoever calls may end a grant.

    Raises:
        UnauthorizedError: it would end one that the caller may not end.
        GrantError, VerificationError: it is not signed by all who must, or grants what the policy does not have.
        ConflictError: a newer one is stored, or was; or this one was withdrawn; or it has expired.
    """
    grant = signed.grant
    signed.check(exporter)
    check_exportable(grant, exporter)
    if now >= grant.expires:
        raise ConflictError("grant.expires: is past", hint="approve the request anew, with a later --expires")
    if grant.serial > now + _AHEAD:
        raise ConflictError(
            f"grant.serial: got {grant.serial}, which is later than the CAS's time, {now}",
            hint="serials are seconds since 1970, as `strongroom policy approve` makes them; is its clock right?",
        )
    with store.transaction():
        before = stored_grant(store, exporter.name, grant.importer)
        if before is not None:
            last = before.signed.grant
            if last.id == grant.id and not before.withdrawn:
                return
            if grant.serial <= last.serial:
                raise ConflictError(
                    f"grant.serial: got {grant.serial}, and the last to {grant.importer} had {last.serial}",
                    hint="it was withdrawn, or replaced by a newer one; approve the request anew",
                )
            if not before.withdrawn and now < last.expires:
                may_end(last)
        detail: dict[str, object] = {
            "to": grant.importer,
            "grant": grant.id,
            "resources": list(grant.resources),
            "measurements": list(grant.measurements),
            "purpose": grant.purpose,
            "expires": grant.expires,
            "by": by,
            "signed": [one.key for one in signed.signatures],
        }
        _put(store, exporter.name, StoredGrant(signed, withdrawn=False), "granted", detail, now)
        _tell(store, exporter.name, grant.importer, "grant-received", grant.id, now)


def withdraw_grant(
    store: Store, exporter: str, grant_id: str, by: str, now: int, *, may_end: Callable[[Grant], None]
) -> None:
    """End a grant. Ending it again changes nothing.

    Args:
        may_end: raises UnauthorizedError unless whoever calls may end a grant.

    Raises:
        UnauthorizedError: the caller may not.
        GrantError: it is not among the newest of that policy.
    """
    with store.transaction():
        found = next((each for each in stored_grants(store, exporter) if each.signed.grant.id == grant_id), None)
        if found is None:
            raise GrantError(
                f"grant: policy {exporter} has none with the id {grant_id[:64]}",
                hint=f"`strongroom policy grants {exporter}` lists them",
            )
        may_end(found.signed.grant)
        if found.withdrawn:
            return
        importer = found.signed.grant.importer
        detail: dict[str, object] = {"to": importer, "grant": grant_id, "by": by}
        _put(store, exporter, StoredGrant(found.signed, withdrawn=True), "grant-withdrawn", detail, now)
        _tell(store, exporter, importer, "grant-lost", grant_id, now)


def check_import(
    store: Store, policy: Policy, source: str, resources: tuple[str, ...], *, measurement: str, now: int
) -> Held:
    """On what an enclave of that policy has what it imports from one other.

    Raises:
        GrantError, VerificationError: something is not granted to it.
    """
    asked = f"{policy.name} imports {', '.join(resources)[:200]} from {source}"
    try:
        exporter = store.policy(source)
    except UnknownPolicyError:
        raise GrantError(f"import: {asked}, a policy that this CAS does not know") from None
    if exporter.expires is not None and now >= exporter.expires:
        raise GrantError(f"import: {asked}, a policy that has expired")
    stored = stored_grant(store, source, policy.name)
    # 1. There is a grant, and it is in force.
    if stored is None:
        raise GrantError(
            f"import: {asked}, which nobody has granted",
            hint="`strongroom policy request` asks for it; the owners there answer with `strongroom policy approve`",
        )
    grant = stored.signed.grant
    if stored.withdrawn:
        raise GrantError(f"import: {asked}; the grant was withdrawn")
    if now >= grant.expires:
        raise GrantError(f"import: {asked}; the grant has expired", hint="its owners may approve the request anew")
    # 2. The people of the exporting policy's newest version have signed it, and it has those things.
    stored.signed.check(exporter)
    check_exportable(grant, exporter)
    # 3. It is for this policy as it is now, and for the enclave just appraised.
    missing = [resource for resource in resources if resource not in grant.resources]
    if missing:
        raise GrantError(f"import: {asked}; the grant does not name {missing[0]}")
    if measurement not in grant.measurements:
        raise GrantError(
            f"import: {asked}; the grant is not for the measurement {measurement[:16]}...",
            hint="another program or version runs there: ask for a grant for it",
        )
    if reference_digest(policy) != grant.reference:
        raise GrantError(
            f"import: {asked}; the policy's [reference] is not that of the grant",
            hint="whoever granted it saw another: ask anew",
        )
    if policy.purpose != grant.purpose:
        raise GrantError(f"import: {asked}; policy.purpose is not what the grant is for: {grant.purpose!r}")
    others = [each for each in policy.recipients if each not in grant.recipients]
    if others:
        raise GrantError(f"import: {asked}; the grant lets no outputs go to {others[0]}")
    return Held(grant.id, exporter.digest, grant.expires)


def still_held(store: Store, importer: str, held: Mapping[str, Held], now: int) -> bool:
    """Whether the grants are still those that a connection has its imports on, and in force."""
    for source, had in held.items():
        stored = stored_grant(store, source, importer)
        if stored is None or stored.withdrawn or now >= had.expires or stored.signed.grant.id != had.grant:
            return False
        exporter = store.policy(source)
        if exporter.digest != had.exporter or (exporter.expires is not None and now >= exporter.expires):
            return False
    return True


def _put(store: Store, exporter: str, stored: StoredGrant, event: str, detail: Mapping[str, object], now: int) -> None:
    value = json.dumps({"signed": stored.signed.to_wire(), "withdrawn": stored.withdrawn}).encode()
    importer = stored.signed.grant.importer
    store.put_row(_TABLE, exporter, importer, value, event=event, policy=exporter, detail=detail, now=now)


def _tell(store: Store, exporter: str, importer: str, event: str, grant_id: str, now: int) -> None:
    """In the importer's log too, if it asks for anything of that policy's: else whoever likes could write there."""
    try:
        policy = store.policy(importer)
    except UnknownPolicyError:
        return
    if exporter in imports(policy):
        store.record(event, importer, {"from": exporter, "grant": grant_id}, now=now)
