"""What a CAS remembers: policies, secrets, anchors, whatever else `rows.KEYS` names, and the log (docs/spec/cas.md).

Where the root secret is kept as `trust-disk` it lies in a file beside the database: whoever can read the CAS's
directory can read its secrets. Whoever replaces all of it by an older copy is found out by those who have seen a higher
head: clients and witnesses.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from strongroom.cas.parsed import Parsed
from strongroom.cas.policy.owners import OwnerSignature
from strongroom.cas.policy.restores import Restored, goes_back
from strongroom.cas.policy.succession import SignedPolicy
from strongroom.cas.policy.version import Policy, parse_policy
from strongroom.cas.state import log_store, rows
from strongroom.cas.state.database import Sqlite, Table
from strongroom.cas.state.ledger import Change, Ledger
from strongroom.cas.state.postgres import Postgres, read_url
from strongroom.cas.state.root_secret import BEGUN, open_root_secret
from strongroom.crypto import PublicKey, derive, random_bytes
from strongroom.errors import ConflictError, RollbackError, UnknownPolicyError
from strongroom.sealed import Root
from strongroom.sealed.anchor import compare_and_swap
from strongroom.storage import LocalDirectory

_COSIGNATURES = Table(
    "cosignatures", {"witness": "TEXT", "size": "INTEGER", "time": "INTEGER", "note": "TEXT"}, ("witness",)
)
_OWNER = "owner"
"""A row of `names`: the fingerprint of a policy's administrator."""
_ADMINISTRATORS = "administrators"
"""A row of `names`: what the newest version lets others do. None if it has none."""


def deposit_name(secret: str) -> str:
    """The name under which what an enclave deposited is kept, apart from what administrators store."""
    return f"deposited:{secret}"


def tables() -> list[Table]:
    """All tables of a CAS's database."""
    return [*rows.tables(), *log_store.TABLES, _COSIGNATURES]


class Store(Ledger):
    """The state of one CAS. Calls may come from several threads.

    Args:
        directory: made with mode 0700 if it does not exist.
        secret: the root secret; None takes or makes the one that lies in the directory.
        database: one that several instances share, as `postgres.read_url` wants it; None takes SQLite in the directory.

    Raises:
        WrongKeyError: the database was made under another root secret, or that is gone.
        IntegrityError: the log or the rows are not what the head stands for, or the database is something else.
        DatabaseError: the database cannot be reached.
    """

    def __init__(self, directory: Path, *, secret: bytes | None = None, database: str | None = None) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = directory / "cas.sqlite"
        root = open_root_secret(directory) if secret is None else secret
        new = directory / BEGUN
        self._policies = Parsed(parse_policy, size=lambda text, _: len(text))
        self._signed = Parsed(self._read_signed, size=lambda _, signed: len(signed.policy.text))
        db = Sqlite(path) if database is None else Postgres(read_url(database))
        try:
            made = db.prepare(tables(), new=new.exists())
            super().__init__(db, derive(root, "strongroom/cas/rows/v2"), made=made)
            db.settle()
            if new.exists():
                new.unlink(missing_ok=True)
                LocalDirectory(directory).sync()
            self.head()
        except BaseException:
            db.close()
            raise

    @property
    def kind(self) -> str:
        """The kind of its database."""
        return "SQLite" if isinstance(self._db, Sqlite) else "PostgreSQL"

    # Policies

    def policy(self, name: str) -> Policy:
        """The newest version of a policy.

        Raises:
            UnknownPolicyError: there is none of that name.
        """
        return self.signed_policy(name).policy

    def signed_policy(self, name: str) -> SignedPolicy:
        """The newest version of a policy with its signature. Raises UnknownPolicyError."""
        with self._lock:
            self._refresh()
            versions = self._versions(name)
            if not versions:
                raise UnknownPolicyError(
                    f"policy: the CAS holds none of the name {name[:200]!r}",
                    hint="its owner applies it first; check the name",
                )
            return self._version(name, versions[-1])

    def _versions(self, name: str) -> list[int]:
        return [int(version) for version in self._rows.keys("policies", name)]

    def _version(self, name: str, version: int) -> SignedPolicy:
        return self._signed((name, version, self._rows.stamps("policies", name)[version]))

    def _read_signed(self, which: tuple[str, int, tuple[int, bytes]]) -> SignedPolicy:
        """A version, by what tells that writing of it from every other."""
        with self._reading() as db:
            stored = self._rows.get(db, "policies", *which[:2])
        assert stored is not None  # noqa: S101  # it is one of `versions`, and `get` raises where it is missing
        return SignedPolicy.from_wire(json.loads(stored), parse=self._policies)

    def owner(self, name: str) -> str | None:
        """The fingerprint of a policy's administrator, without reading the policy; None if there is no such policy."""
        fingerprint = self.row("names", name, _OWNER)
        return None if fingerprint is None else fingerprint.decode()

    def administrators(self, name: str) -> Mapping[str, Sequence[str]]:
        """The rights of a policy's administrators besides its owner, by what the log calls them. Reads no policy."""
        row = self.row("names", name, _ADMINISTRATORS)
        rights: Mapping[str, Sequence[str]] = {} if row is None else json.loads(row)
        return rights

    def policy_versions(self, name: str, *, after: int, limit: int) -> list[SignedPolicy]:
        """At most `limit` versions of a policy in order, those after number `after`, and none of a name that is not."""
        with self._reading():
            versions = [version for version in self._versions(name) if version > after]
            return [self._version(name, version) for version in versions[:limit]]

    def policy_changed(self, name: str) -> int:
        """When the newest version of a policy was stored, seconds since 1970. Raises UnknownPolicyError."""
        with self._reading() as db:
            version = self.signed_policy(name).policy.version
            entry = self._rows.entry("policies", name, version)
            return self._log.page(db, entry - 1, 1)[0].time

    def put_policy(
        self,
        policy: Policy,
        signature: bytes,
        owner: PublicKey,
        *,
        signatures: Sequence[OwnerSignature] = (),
        also: Sequence[Change] = (),
        now: int,
    ) -> Policy:
        """Store the first or the next version of a policy. The newest once more changes nothing.

        Whoever stores the first version of a name owns the name; who may do so, `callers/namespaces.py` says.

        Args:
            signature: of its administrator, whose key `owner` is.
            signatures: of its owners.
            also: rows that change with it.

        Raises:
            StrongroomError: as `SignedPolicy.check_after`.
        """
        signed = SignedPolicy(policy, signature, owner, tuple(signatures))
        signed.check_signature()
        with self.transaction():
            try:
                current = self.policy(policy.name)
            except UnknownPolicyError:
                current = None
            if current is not None and current.text == policy.text:
                signed.check_administrator(current)
                return current
            signed.check_after(current)
            stored = json.dumps(signed.to_wire()).encode()
            rights = {who: sorted(may) for who, may in policy.rights().items()}
            changes: list[Change] = [
                *also,
                ("names", policy.name, _OWNER, policy.owner.encode()),
                ("names", policy.name, _ADMINISTRATORS, json.dumps(rights).encode() if rights else None),
                ("policies", policy.name, policy.version, stored),
            ]
            self.change_rows(changes, event="policy", policy=policy.name, detail=signed.summary, now=now)
        return policy

    # Secrets

    def put_secret(self, policy: str, name: str, value: bytes, *, now: int, by: str = "") -> None:
        """Store or replace a secret. `by` is who does, for the log."""
        detail: dict[str, object] = {"name": name}
        if by:
            detail["by"] = by
        self.put_row("secrets", policy, name, value, event="secret", policy=policy, detail=detail, now=now)

    def secret(self, policy: str, name: str) -> bytes | None:
        """A secret, or None if nobody has stored it."""
        return self.row("secrets", policy, name)

    def secret_or_new(self, policy: str, name: str, size: int, *, now: int) -> bytes:
        """A secret, drawn at random the first time."""
        value = self.secret(policy, name)
        if value is None:
            with self.transaction():
                value = self.secret(policy, name)  # another process may have drawn it meanwhile
                if value is None:
                    value = random_bytes(size)
                    self.put_secret(policy, name, value, now=now)
        return value

    # Anchors

    def anchor(self, policy: str, vault: str) -> Root | None:
        """The newest root of a vault, as last reported."""
        value = self.row("anchors", policy, vault)
        return None if value is None else Root.parse(value.decode())

    def anchored(self, policy: str, vault: str) -> int:
        """The number of the log entry that moved a vault's anchor last; 0 if it holds nothing."""
        stamp = self.row_stamp("anchors", policy, vault)
        return 0 if stamp is None else stamp[0]

    def advance_anchor(
        self,
        policy: str,
        vault: str,
        old: Root | None,
        new: Root,
        *,
        restored: Restored | None = None,
        now: int,
        by: str = "",
        lease: int = 0,
    ) -> None:
        """Move an anchor from `old` to `new`; a repetition of the same move succeeds.

        Args:
            restored: who authorised that it goes back, and why; without, it does not.
            by: which administrator moves it, for the log; empty for an enclave.
            lease: under whose number it is moved: from then on nothing moves it under a lower one. 0 for none.

        Raises:
            ConflictError: it is at neither, or was moved under a higher lease.
            RollbackError: `new` does not come after `old`, or has another epoch, and nobody authorised it.
        """
        with self.transaction():
            fence = self._fence(policy, vault, lease, f"anchor of {vault}: was moved")
            if not compare_and_swap(self.anchor(policy, vault), old, new):
                return
            detail: dict[str, object] = {"vault": vault, "root": str(new)}
            back = goes_back(old, new)
            if back:
                if restored is None:
                    raise RollbackError(
                        f"anchor: got {new}, wanted a root after {old}, of the same epoch",
                        hint="the vault was rolled back: restore its latest version; if a backup of it was restored "
                        "on purpose: `strongroom cas entrust ... --restore --reason TEXT`",
                    )
                detail |= {"old": str(old), "reason": restored.reason}
                if restored.signed:
                    detail["signed"] = list(restored.signed)
            if by:
                detail["by"] = by
            changes: list[Change] = [("anchors", policy, vault, str(new).encode())]
            if lease:
                detail["lease"] = lease
            if lease > fence:
                changes.append(("fences", policy, vault, str(lease).encode()))
            if back:
                self.change_rows(changes, event="restored", policy=policy, detail=detail, now=now)
            else:
                self.change_rows(changes, event="anchor", policy=policy, detail=detail, now=now)

    def deposit(self, policy: str, name: str, value: bytes, *, lease: int, measurement: str, now: int) -> None:
        """Store a secret that an enclave deposits, with its log entry.

        Args:
            lease: under whose number: from then on nothing deposits it under a lower one.

        Raises:
            ConflictError: it was deposited under a higher lease.
        """
        stored = deposit_name(name)
        with self.transaction():
            fence = self._fence(policy, stored, lease, f"deposit {name}: was made")
            changes: list[Change] = [("secrets", policy, stored, value)]
            if lease > fence:
                changes.append(("fences", policy, stored, str(lease).encode()))
            detail = {"name": name, "measurement": measurement, "lease": lease}
            self.change_rows(changes, event="deposited", policy=policy, detail=detail, now=now)

    def _fence(self, policy: str, what: str, lease: int, done: str) -> int:
        """The highest lease that has written something; raises ConflictError if `lease`, unless 0, is lower."""
        fence = int(self.row("fences", policy, what) or 0)
        if lease and lease < fence:
            raise ConflictError(
                f"{done} under lease {fence}, and this is lease {lease}: it is no writer now",
                hint="another enclave has taken over; one that starts anew writes after it",
            )
        return fence

    # Cosignatures, which vouch for themselves

    def put_cosigned(self, witness: str, size: int, time: int, note: str) -> None:
        """Keep a witness's cosigned head, unless one of more entries or a later time is kept."""
        with self.transaction():
            kept = self._db.execute("SELECT size, time FROM cosignatures WHERE witness = ?", (witness,))
            if not kept or tuple(kept[0]) < (size, time):
                self._db.execute("DELETE FROM cosignatures WHERE witness = ?", (witness,))
                self._db.execute("INSERT INTO cosignatures VALUES (?, ?, ?, ?)", (witness, size, time, note))

    def cosigned(self) -> list[str]:
        """The latest head that each witness has cosigned, as notes, the highest first: at most 64."""
        with self._reading() as db:
            query = "SELECT note FROM cosignatures ORDER BY size DESC, witness LIMIT 64"
            return [note for (note,) in db.execute(query)]
