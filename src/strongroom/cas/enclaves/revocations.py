"""Revocation: leases that end before their time, and the list of keys and measurements that count no more.

Rules:

- A lease that is revoked ends at once: it is asked for at each request of its enclave.
- Its key is on the list until the certificates that were issued to it have run out, so that those who hold to
  certificates alone can be told. It attests no more.
- A measurement is on the list until it is lifted: nothing of it attests under that policy, nor goes on.
- An entry of the list has the number of the log entry that made it: whoever knows the list up to one number asks for
  what came after.
"""

from __future__ import annotations

import json
import time
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from strongroom.attest.reference import MEASUREMENT
from strongroom.cas.enclaves.leases import Lease, Leases, Stamp
from strongroom.cas.enclaves.revocation import Revocation, refusal
from strongroom.cas.log.head import Head
from strongroom.cas.state.store import Store
from strongroom.cas.wire import CERTIFICATE_SECONDS, FINGERPRINT
from strongroom.errors import FormatError, RevokedError, UsageError

MAX_LISTED = 1000
"""Entries of a namespace that may be in force when something is listed that holds no lease: the list is everybody's."""

_AT_ONCE = 250
"""Leases that one entry of the log ends: the list is handed out by whole ones, and an answer has its limits."""
_FRESH_SECONDS = 1.0  # for how long the list is not read again, when only others can have changed it


@dataclass(frozen=True)
class Selection:
    """What an administrator revokes of a policy: exactly one of these."""

    lease: int = 0
    key: str = ""
    measurement: str = ""
    everything: bool = False

    @classmethod
    def parse(cls, body: Mapping[str, Any]) -> Selection:
        """Raises FormatError or UsageError."""
        said = [name for name in ("lease", "key", "measurement", "all") if name in body]
        if len(said) != 1:
            raise UsageError(
                f"revocation: got {', '.join(said) or 'nothing'}, wanted one of lease, key, measurement, all"
            )
        value = body[said[0]]
        match said[0]:
            case "lease" if type(value) is int and 0 < value < 1 << 63:
                return cls(lease=value)
            case "key" if isinstance(value, str) and FINGERPRINT.fullmatch(value):
                return cls(key=value)
            case "measurement" if isinstance(value, str) and MEASUREMENT.fullmatch(value):
                return cls(measurement=value)
            case "all" if value is True:
                return cls(everything=True)
        wanted = {
            "lease": "a lease's number",
            "key": "sha256:<64 hex>",
            "measurement": "64, 96 or 128 lower-case hexadecimal digits",
            "all": "true",
        }
        raise FormatError(f"{said[0]}: got {value!r:.100}, wanted {wanted[said[0]]}")

    def covers(self, lease: Lease) -> bool:
        return (
            self.everything
            or lease.number == self.lease
            or lease.key == self.key
            or lease.measurement == self.measurement
        )


class Revocations:
    """The list of one CAS, in its store. Its methods are called on the event loop's thread."""

    def __init__(self, store: Store, leases: Leases) -> None:
        self._store, self._leases = store, leases
        self._entries: dict[str, dict[str, tuple[Stamp, Revocation]]] = {}  # by policy and what, as read last
        self._known: tuple[Revocation, ...] = ()  # all of them, in order
        self._read: tuple[Head, float] | None = None  # the log's head, and when

    def check(self, policy: str, key: str, measurement: str, now: int) -> None:
        """Raises RevokedError if a key or a measurement is on the list."""
        for what in (f"key:{key}", f"measurement:{measurement}"):
            row = self._store.row("revocations", policy, what)
            if row is None:
                continue
            found = Revocation.from_wire(json.loads(row))
            if found.in_force(now):
                raise refusal(found)

    def revoke(self, policy: str, selection: Selection, *, by: Mapping[str, object], now: int) -> list[Lease]:
        """End the leases that are selected, and put on the list what is; the leases that ended.

        Raises:
            UsageError: no lease of that number lives, or the list is full.
        """
        with self._store.transaction():
            leases = [one for one in self._leases.live(policy, now) if selection.covers(one)]
            if selection.lease and not leases:
                raise UsageError(
                    f"lease: {selection.lease} is none of policy {policy} that lives",
                    hint=f"`strongroom cas enclaves {policy}` lists them",
                )
            if not leases and self._in_force(policy.partition("/")[0], now) >= MAX_LISTED:
                raise UsageError(
                    f"revocation: the namespace of policy {policy} has {MAX_LISTED:,} in force, wanted no more of what "
                    "holds no lease",
                    hint="keys leave the list after an hour; a measurement is lifted",
                )
            told = dict(by)
            told |= {"measurement": selection.measurement} if selection.measurement else {}
            told |= {"key": selection.key} if selection.key else {}
            for at in range(0, max(1, len(leases)), _AT_ONCE):
                some, number = leases[at : at + _AT_ONCE], self._store.head().size + 1
                listed = [_of_lease(one, number, "revoked", now) for one in some]
                if selection.measurement and not at:
                    listed.append(Revocation(policy, number, "revoked", measurement=selection.measurement))
                elif selection.key and not some:
                    end = now + CERTIFICATE_SECONDS
                    listed.append(Revocation(policy, number, "revoked", key=selection.key, until=end))
                detail: dict[str, object] = {"leases": [one.number for one in some], **told}
                self._write(policy, some, listed, "revoked", detail, now)
        return leases

    def end_copies(self, lease: Lease, *, now: int) -> RevokedError:
        """End a lease whose key two enclaves hold, for both; what both are told."""
        with self._store.transaction():
            listed = _of_lease(lease, self._store.head().size + 1, "clone", now)
            self._write(lease.policy, [lease], [listed], "clone", {"lease": lease.number, "key": lease.key}, now)
        return refusal(listed)

    def lift(self, policy: str, measurement: str, *, by: Mapping[str, object], now: int) -> None:
        """Take a measurement off the list. Raises UsageError if it is not on it."""
        with self._store.transaction():
            if self._store.row("revocations", policy, f"measurement:{measurement}") is None:
                raise UsageError(f"measurement: {measurement[:80]} of policy {policy} is not revoked")
            change = Revocation(policy, 0, "", measurement=measurement).removal()
            detail = {"measurement": measurement, **by}
            self._store.change_rows([change], event="lifted", policy=policy, detail=detail, now=now)
            self._read_anew()

    def _write(
        self,
        policy: str,
        leases: Sequence[Lease],
        listed: Sequence[Revocation],
        event: str,
        detail: Mapping[str, object],
        now: int,
    ) -> None:
        old = [one.removal() for one in self._of(policy) if not one.in_force(now)]
        ended = [change for one in leases for change in self._leases.removal(one)]
        changes = [*old, *ended, *(one.change() for one in listed)]
        self._store.change_rows(changes, event=event, policy=policy, detail=detail, now=now)
        self._read_anew()

    def _read_anew(self) -> None:
        """Now, and once more when this transaction has come to its end: what was undone must be told to nobody."""

        def forget(committed: bool) -> None:
            if not committed:
                self._read = None

        self._read = None
        self._store.afterwards(forget)

    def _of(self, policy: str) -> list[Revocation]:
        stamps, known = self._store.row_stamps("revocations", policy), self._entries.get(policy, {})
        now: dict[str, tuple[Stamp, Revocation]] = {}
        for what, stamp in stamps.items():
            if what in known and known[what][0] == stamp:
                now[what] = known[what]
            elif (row := self._store.row("revocations", policy, what)) is not None:
                now[what] = stamp, Revocation.from_wire(json.loads(row))
        self._entries[policy] = now
        return [one for _, one in now.values()]

    def _in_force(self, namespace: str, now: int) -> int:
        """How many entries of a namespace's policies are."""
        policies = [name for name in self._store.row_groups("revocations") if name.startswith(f"{namespace}/")]
        return sum(one.in_force(now) for policy in policies for one in self._of(policy))

    def after(self, number: int, now: int) -> list[Revocation]:
        """What is in force and came on the list after an entry of that number, in order."""
        head, moment = self._store.head(), time.monotonic()
        if self._read is None or (self._read[0] != head and moment >= self._read[1] + _FRESH_SECONDS):
            with self._store.reading():
                policies = self._store.row_groups("revocations")
                for gone in self._entries.keys() - set(policies):
                    del self._entries[gone]
                every = [one for policy in policies for one in self._of(policy)]
            self._known, self._read = tuple(sorted(every, key=lambda one: one.number)), (head, moment)
        first = bisect_right(self._known, number, key=lambda one: one.number)
        return [one for one in self._known[first:] if one.in_force(now)]


def _of_lease(lease: Lease, number: int, why: str, now: int) -> Revocation:
    valid = [(serial, end) for serial, end in lease.serials if end > now]
    until = max((end for _, end in valid), default=now + CERTIFICATE_SECONDS)
    return Revocation(
        lease.policy, number, why, key=lease.key, until=until, serials=tuple(serial for serial, _ in valid)
    )
