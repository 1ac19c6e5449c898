"""Leases: which enclaves of a policy live now, by attestation, and what keeps a copy of one from gaining anything.

Rules:

- A lease belongs to one key. It is granted by an attestation, lasts for the policy's `lease` seconds and never past the
  policy's `expires`, and is renewed by attesting again. Its time is the CAS's (`clock.py`).
- Its number is that of the log entry which granted it: the later the lease, the higher its number, over all policies.
  Whatever was written under a lease is not written any more under a lower number
  (`Store.advance_anchor`).
- Each answer carries a token that the next attestation shows. The one before is accepted too, for an answer may be
  lost. Two copies of one enclave hold one key, and answers go to one of them: whichever comes with a token that another
  has replaced ends the lease, and the key, for both.
- A second enclave has a key of its own, and so a lease of its own: `instances` counts it, `replica` tells it apart.
- Leases that have run out are removed with the entries of later ones.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from strongroom.attest.appraise import AttestationResult
from strongroom.cas.policy.version import Policy
from strongroom.cas.state.ledger import Change
from strongroom.cas.state.store import Store
from strongroom.crypto import equal, random_bytes
from strongroom.errors import InstanceLimitError, UsageError

Stamp = tuple[int, bytes]

TOKEN_SIZE = 16
_LOST_ANSWERS = 3
"""How often the token before is accepted in a row. The copies of an enclave are found out whatever this is: it is
their next tokens that are not the same."""
_SWEPT = 8
"""Leases that have run out which one grant removes."""
_LOOKED_AT = 64
"""Leases of which one grant finds out whether they have."""
_SHOWN = 5
_SERIALS = 16
"""Of the latest certificates of a lease, to be listed where it is revoked: with the key, which all of them are of."""


@dataclass(frozen=True)
class Lease:
    """An enclave that lives.

    Attributes:
        key: the fingerprint of its TLS key.
        number: of the log entry that granted it.
        replica: which one of the policy's it is, if it was told.
        granted, expires: Unix seconds by the CAS's clock.
        token: what the next attestation with this key shows.
        before: what the last one showed; empty if that was nothing.
        lost: how many answers in a row were lost.
        serials: of the latest certificates issued to it that are valid yet, with their ends.
    """

    policy: str
    key: str
    number: int
    replica: int | None
    tee: str
    measurement: str
    granted: int
    expires: int
    token: bytes = field(repr=False)
    before: bytes = field(repr=False)
    lost: int = 0
    serials: tuple[tuple[str, int], ...] = ()

    def to_wire(self) -> dict[str, object]:
        """What administrators are shown."""
        return {
            "number": self.number,
            "replica": self.replica,
            "tee": self.tee,
            "measurement": self.measurement,
            "granted": self.granted,
            "expires": self.expires,
            "key": self.key,
        }

    def to_bytes(self) -> bytes:
        """The row."""
        secret = {"token": self.token.hex(), "before": self.before.hex(), "lost": self.lost, "serials": self.serials}
        return json.dumps(self.to_wire() | secret, separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, policy: str, row: bytes) -> Lease:
        value: dict[str, Any] = json.loads(row)
        value |= {"token": bytes.fromhex(value["token"]), "before": bytes.fromhex(value["before"])}
        value["serials"] = tuple((str(serial), int(end)) for serial, end in value["serials"])
        return cls(policy=policy, **value)


class CopiedError(Exception):
    """Two enclaves hold the key of this lease."""

    def __init__(self, lease: Lease) -> None:
        super().__init__(lease.number)
        self.lease = lease


class Leases:
    """The leases of one CAS, in its store. Its methods are called on the event loop's thread."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[str, dict[str, tuple[Stamp, Lease]]] = {}  # by policy and key, as read last
        self._ends: list[tuple[int, str, str]] | None = None  # a heap: when, policy, key; some were renewed since
        self._in_heap: set[tuple[str, str]] = set()  # each lease is there once

    def lease(self, policy: str, key: str) -> Lease | None:
        """The lease of a key, whether or not it has run out."""
        stamp = self._store.row_stamp("leases", policy, key)
        return None if stamp is None else self._read(policy, key, stamp)

    def _read(self, policy: str, key: str, stamp: Stamp) -> Lease | None:
        known = self._known.setdefault(policy, {})
        if key not in known or known[key][0] != stamp:
            row = self._store.row("leases", policy, key)
            if row is None:
                return None
            known[key] = stamp, Lease.from_bytes(policy, row)
        return known[key][1]

    def live(self, policy: str, now: int) -> list[Lease]:
        """The leases of a policy that have not run out, the oldest first."""
        with self._store.reading():
            stamps = self._store.row_stamps("leases", policy)
            found = [self._read(policy, key, stamp) for key, stamp in stamps.items()]
        known = self._known.get(policy, {})
        for key in known.keys() - stamps.keys():
            del known[key]
        return sorted((lease for lease in found if lease and now < lease.expires), key=lambda lease: lease.number)

    def grant(
        self,
        policy: Policy,
        key: str,
        *,
        shown: bytes,
        replica: int | None,
        result: AttestationResult,
        certificate: tuple[str, int],
        detail: dict[str, object],
        now: int,
    ) -> Lease:
        """Grant or renew a lease after an attestation, with its log entry.

        Args:
            shown: the token of the last answer, empty for none.
            certificate: serial and end of the one that goes with it.
            detail: of the entry.

        Raises:
            CopiedError: the token is one that another enclave has replaced.
            InstanceLimitError: as many live as the policy allows, or another is that replica.
        """
        with self._store.transaction():
            held = self.lease(policy.name, key)
            if held is not None and held.expires <= now:
                held = None
            lost = held is not None and not equal(shown, held.token)
            if held is not None and lost and (held.lost == _LOST_ANSWERS or not equal(shown, held.before)):
                raise CopiedError(held)
            self._check_limit(policy, held, now)
            place = self._take_place(policy, key, replica, held, now)
            number = held.number if held else self._store.head().size + 1
            serials = tuple(one for one in (held.serials if held else ()) if one[1] > now)
            lease = Lease(
                policy=policy.name,
                key=key,
                number=number,
                replica=replica,
                tee=result.tee,
                measurement=result.measurement,
                granted=held.granted if held else now,
                expires=min(now + policy.lease, policy.expires or now + policy.lease),
                token=random_bytes(TOKEN_SIZE),
                before=shown,
                lost=held.lost + 1 if held and lost else 0,
                serials=(*serials, certificate)[-_SERIALS:],
            )
            gone = self._over(policy.name, key, now)
            changes: list[Change] = [change for one in gone for change in self.removal(one)]
            changes += [*place, ("leases", policy.name, key, lease.to_bytes())]
            said: dict[str, object] = detail | {"lease": number, "expires": lease.expires}
            said |= {} if replica is None else {"replica": replica}
            try:
                self._store.change_rows(changes, event="attested", policy=policy.name, detail=said, now=now)
            finally:
                for one in (*gone, lease):  # what was removed is taken out when it is found to be
                    self._await_end(one)
        return lease

    def _check_limit(self, policy: Policy, held: Lease | None, now: int) -> None:
        """Raises InstanceLimitError if the policy's instances are all older ones than this."""
        limit = policy.instances
        if limit is None or len(self._store.row_stamps("leases", policy.name)) < limit + (held is not None):
            return
        others = self.live(policy.name, now)
        older = [one for one in others if held is None or one.number < held.number]
        if len(older) >= limit:
            ends = min(one.expires for one in older) - now
            shown = ", ".join(f"{one.number} ({one.key[:19]})" for one in older[:_SHOWN])
            more = f" and {len(older) - _SHOWN} more" if len(older) > _SHOWN else ""
            raise InstanceLimitError(
                f"instances: policy {policy.name} lets {limit} live at once, and {len(older)} do: leases {shown}{more}"
                f"; the first ends in {ends} seconds unless it is renewed",
                hint=f"wait, stop one, or end it: strongroom cas revoke {policy.name} --lease NUMBER",
            )

    def _take_place(
        self, policy: Policy, key: str, replica: int | None, held: Lease | None, now: int
    ) -> Sequence[Change]:
        """The rows that make this key's enclave that replica. Raises InstanceLimitError if another is."""
        if held is not None and held.replica != replica:
            raise UsageError(f"claims.replica: got {replica}, and lease {held.number} is replica {held.replica}'s")
        if replica is None:
            return ()
        row = self._store.row("replicas", policy.name, str(replica))
        other = None if row is None or row.decode() == key else self.lease(policy.name, row.decode())
        if other is not None and now < other.expires:
            raise InstanceLimitError(
                f"replica: {replica} of policy {policy.name} lives: lease {other.number} ({other.key[:19]}); it ends "
                f"in {other.expires - now} seconds unless it is renewed",
                hint="launch another replica, or end that one: "
                f"strongroom cas revoke {policy.name} --lease {other.number}",
            )
        return () if row == key.encode() else (("replicas", policy.name, str(replica), key.encode()),)

    def removal(self, lease: Lease) -> list[Change]:
        """The changes of rows that end a lease."""
        changes: list[Change] = [("leases", lease.policy, lease.key, None)]
        if lease.replica is not None:
            row = self._store.row("replicas", lease.policy, str(lease.replica))
            if row == lease.key.encode():
                changes.append(("replicas", lease.policy, str(lease.replica), None))
        return changes

    def end(self, lease: Lease, *, now: int) -> None:
        """An enclave's own end."""
        self._store.change_rows(
            self.removal(lease),
            event="ended",
            policy=lease.policy,
            detail={"lease": lease.number},
            now=now,
        )

    # What has run out

    def _await_end(self, lease: Lease) -> None:
        if (lease.policy, lease.key) not in self._in_heap:
            self._in_heap.add((lease.policy, lease.key))
            heapq.heappush(self._heap(), (lease.expires, lease.policy, lease.key))

    def _heap(self) -> list[tuple[int, str, str]]:
        if self._ends is None:
            self._ends = []
            for policy in self._store.row_groups("leases"):
                for lease in self.live(policy, 0):
                    self._in_heap.add((policy, lease.key))
                    self._ends.append((lease.expires, policy, lease.key))
            heapq.heapify(self._ends)
        return self._ends

    def _over(self, policy: str, key: str, now: int) -> list[Lease]:
        """Some leases that have run out, but that of this key. They are awaited no more."""
        found: list[Lease] = []
        heap, renewed = self._heap(), []
        for _ in range(_LOOKED_AT):
            if not heap or heap[0][0] > now or len(found) == _SWEPT:
                break
            _, *whose = heapq.heappop(heap)
            self._in_heap.discard((whose[0], whose[1]))
            lease = self.lease(whose[0], whose[1])
            if lease is None:
                self._known.get(whose[0], {}).pop(whose[1], None)
            elif lease.expires > now:
                renewed.append(lease)
            elif (lease.policy, lease.key) != (policy, key):
                found.append(lease)
        for one in renewed:
            self._await_end(one)
        return found
