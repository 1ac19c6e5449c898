"""What a CAS remembers, in one SQLite file: policies, secrets, anchors, and the log (docs/spec/cas.md).

Rules:

- A change and its log entry share one transaction, which is on the disk before the change is confirmed.
- Policies, secrets and anchors are AEAD boxes under the CAS's master key, bound to their table, row and log entry; the
  log's head, a box too, stands for all of them and for the log (`rows.py`, `log_store.py`): without that key no row can
  be read, altered, moved, removed or put back, and the log's end cannot be cut off.
- In this version the master key lies in a file beside the database (`restart = trust-disk`): whoever can read the
  CAS's directory can read its secrets. Whoever replaces all of it by an older copy is found out by those who have seen
  a higher head: clients and witnesses.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from strongroom.cas import log_store, rows
from strongroom.cas.log_entry import LogEntry
from strongroom.cas.log_head import NO_ENTRIES, Head
from strongroom.cas.log_store import Log
from strongroom.cas.master_key import BEGUN, master_key
from strongroom.cas.owners import OwnerSignature
from strongroom.cas.parsed import Parsed
from strongroom.cas.policy import Policy, parse_policy
from strongroom.cas.rows import RESTORE, Rows
from strongroom.cas.succession import SignedPolicy
from strongroom.crypto import PublicKey, derive, random_bytes
from strongroom.errors import IntegrityError, RollbackError, TamperedError, UnknownPolicyError, WrongKeyError
from strongroom.sealed import Root
from strongroom.sealed.anchor import compare_and_swap
from strongroom.storage import LocalDirectory

_VERSION = 3
_COSIGNATURES = "CREATE TABLE cosignatures (witness TEXT PRIMARY KEY, size INTEGER, time INTEGER, note TEXT) STRICT"
_SCHEMA = (*rows.SCHEMA.split(";"), *log_store.SCHEMA.split(";"), _COSIGNATURES)
_MAGIC = 0x53724361  # "SrCa"

_SPILLED = 6 << 20  # more than the cache's 2 MB by the 4 MB at which SQLite begins again at the log's start

_LAST, _OWNER = "last", "owner"
"""Rows of `names`: written by a policy's last entry; the fingerprint of its administrator."""


class Store:
    """The database of one CAS. Calls may come from several threads.

    Args:
        directory: made with mode 0700 if it does not exist.

    Raises:
        WrongKeyError: the database was made under another master key, or the key is gone.
        IntegrityError: the log or the rows are not what the head stands for, or the file is something else.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = directory / "cas.sqlite"
        self._directory = directory
        key = derive(master_key(directory, path), "strongroom/cas/rows/v2")
        self._rows, self._log = Rows(key), Log(key)
        self._policies = Parsed(parse_policy, size=len)
        self._signed = Parsed(self._read_signed, size=len)
        self._seen: int | None = None  # the database's version that `_rows` and `_log` hold
        self._changed = False  # whether they hold what this transaction has written
        self._highest = NO_ENTRIES  # the head of the last state that this process has read or committed
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        self._lock = threading.RLock()
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        try:
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._open()
            self._lengthen()
        except sqlite3.DatabaseError as error:
            self._db.close()
            raise IntegrityError(f"{path}: {error}", hint=RESTORE) from None
        except BaseException:
            self._db.close()
            raise

    def _open(self) -> None:
        db = self._db
        db.execute("BEGIN IMMEDIATE")  # an error closes the connection, which rolls back
        version, magic = (db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("user_version", "application_id"))
        new = self._directory / BEGUN
        if (version, magic) == (0, 0) and not db.execute("SELECT 1 FROM sqlite_schema").fetchone():
            if not new.exists():
                raise IntegrityError(
                    "cas.sqlite: is missing or empty, and this CAS had one: its policies, secrets and log are gone",
                    hint=f"{RESTORE}; or move the CAS's directory away to start another CAS, with another root",
                )
            for statement in _SCHEMA:
                db.execute(statement)
            db.execute(f"PRAGMA user_version = {_VERSION}")
            db.execute(f"PRAGMA application_id = {_MAGIC}")
            self._log.seal(db, self._rows.total)
        elif (version, magic) != (_VERSION, _MAGIC):
            raise IntegrityError(
                f"cas.sqlite: got version {version} of application {magic:#x}, wanted {_VERSION} of {_MAGIC:#x}",
                hint="it was made by another version of strongroom; move the CAS's directory away to start anew",
            )
        db.execute("COMMIT")
        if new.exists():
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # into the file that is looked at the next time
            new.unlink(missing_ok=True)
            LocalDirectory(self._directory).sync()
        with self._reading():
            pass

    def _lengthen(self) -> None:
        """Give the write-ahead log its usual length now.

        To write over it costs a disk half of what it costs to make it longer, commit by commit. A transaction that is
        too large for SQLite's cache spills into it, and leaves nothing else behind when it is undone.
        """
        self._db.execute("BEGIN IMMEDIATE")
        self._db.execute("CREATE TABLE spilled (bytes BLOB)")
        self._db.execute("INSERT INTO spilled VALUES (zeroblob(?))", (_SPILLED,))
        self._db.execute("ROLLBACK")

    def close(self) -> None:
        with self._lock:
            self._db.close()

    @contextmanager
    def _transaction(self, begin: str = "BEGIN IMMEDIATE") -> Iterator[sqlite3.Connection]:
        """A transaction, at whose start the log and the rows in memory are those of the database."""
        with self._lock:
            self._db.execute(begin)
            self._changed = False
            try:
                self._catch_up()
                yield self._db
                self._db.execute("COMMIT")
                self._highest = self._log.head()
            except BaseException:
                if self._changed:
                    self._seen = None
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """A transaction that writes nothing, or what is left of the one that this thread is in."""
        with self._lock:
            if self._db.in_transaction:
                yield self._db
                return
            self._db.execute("BEGIN")
            try:
                self._catch_up()
                yield self._db
            finally:
                self._db.execute("ROLLBACK")

    def _catch_up(self) -> None:
        """Take in what another process has written since (SQLite's data_version tells), or what is there at first.

        Raises:
            RollbackError: it does not extend what this process has seen.
        """
        version = self._db.execute("PRAGMA data_version").fetchone()[0]
        if version == self._seen:
            return
        try:
            self._rows.load(self._db, self._log.load(self._db))
            self._log.check(self._db, self._highest)
        except TamperedError:
            raise WrongKeyError(
                "master.key: is not the key that cas.sqlite was made with, or its head was changed", hint=RESTORE
            ) from None
        self._seen, self._highest = version, self._log.head()

    def _put(
        self,
        db: sqlite3.Connection,
        value: bytes,
        now: int,
        event: str,
        policy: str,
        detail: dict[str, object],
        *row: str | int,
    ) -> None:
        """Write a row, and its log entry, to whose number it is bound."""
        self._changed = True
        self._rows.put(db, value, self._log.size + 1, *row)
        self._append(db, now, event, policy, detail)

    def _append(self, db: sqlite3.Connection, now: int, event: str, policy: str, detail: dict[str, object]) -> None:
        self._changed = True
        previous = self._rows.entry("names", policy, _LAST)
        self._log.append(db, now, event, policy, detail, previous)
        self._rows.put(db, b"", self._log.size, "names", policy, _LAST)
        self._log.seal(db, self._rows.total)

    # Policies

    def policy(self, name: str) -> Policy:
        """The newest version of a policy.

        Raises:
            UnknownPolicyError: there is none of that name.
        """
        return self.signed_policy(name).policy

    def signed_policy(self, name: str) -> SignedPolicy:
        """The newest version of a policy with its signature. Raises UnknownPolicyError."""
        with self._reading() as db:
            versions = self._rows.versions(name)
            if not versions:
                raise UnknownPolicyError(
                    f"policy: the CAS holds none of the name {name[:200]!r}",
                    hint="its owner applies it first; check the name",
                )
            return self._version(db, name, versions[-1])

    def _version(self, db: sqlite3.Connection, name: str, version: int) -> SignedPolicy:
        stored = self._rows.get(db, "policies", name, version)
        assert stored is not None  # noqa: S101  # it is one of `versions`, and `get` raises where it is missing
        return self._signed(stored)

    def _read_signed(self, stored: bytes) -> SignedPolicy:
        return SignedPolicy.from_wire(json.loads(stored), parse=self._policies)

    def owner(self, name: str) -> str | None:
        """The fingerprint of a policy's administrator, without reading the policy; None if there is no such policy."""
        with self._reading() as db:
            fingerprint = self._rows.get(db, "names", name, _OWNER)
        return None if fingerprint is None else fingerprint.decode()

    def policy_versions(self, name: str, *, after: int, limit: int) -> list[SignedPolicy]:
        """At most `limit` versions of a policy in order, those after number `after`, and none of a name that is not."""
        with self._reading() as db:
            versions = [version for version in self._rows.versions(name) if version > after]
            return [self._version(db, name, version) for version in versions[:limit]]

    def put_policy(
        self,
        text: str,
        signature: bytes,
        owner: PublicKey,
        *,
        signatures: Sequence[OwnerSignature] = (),
        now: int,
    ) -> Policy:
        """Store the first or the next version of a policy. The newest once more changes nothing.

        Whoever stores the first version of a name owns the name: names are given out first come, first served. Owners
        who do not trust each other not to take each other's names use a CAS each.

        Args:
            signature: of its administrator, whose key `owner` is.
            signatures: of its owners.

        Raises:
            PolicyError: malformed.
            StrongroomError: as `SignedPolicy.check_after`.
        """
        policy = parse_policy(text)
        signed = SignedPolicy(policy, signature, owner, tuple(signatures))
        signed.check_administrator()
        with self._transaction() as db:
            try:
                current = self.policy(policy.name)
            except UnknownPolicyError:
                current = None
            if current is not None and current.text == text:
                return current
            signed.check_after(current)
            stored = json.dumps(signed.to_wire()).encode()
            self._changed = True
            self._rows.put(db, policy.owner.encode(), self._log.size + 1, "names", policy.name, _OWNER)
            self._put(db, stored, now, "policy", policy.name, signed.summary, "policies", policy.name, policy.version)
        return policy

    # Secrets

    def put_secret(self, policy: str, name: str, value: bytes, *, now: int) -> None:
        """Store or replace a secret."""
        with self._transaction() as db:
            self._put_secret(db, policy, name, value, now)

    def _put_secret(self, db: sqlite3.Connection, policy: str, name: str, value: bytes, now: int) -> None:
        self._put(db, value, now, "secret", policy, {"name": name}, "secrets", policy, name)

    def secret(self, policy: str, name: str) -> bytes | None:
        """A secret, or None if nobody has stored it."""
        with self._reading() as db:
            return self._rows.get(db, "secrets", policy, name)

    def secret_or_new(self, policy: str, name: str, size: int, *, now: int) -> bytes:
        """A secret, drawn at random the first time."""
        value = self.secret(policy, name)
        if value is None:
            with self._transaction() as db:
                value = self.secret(policy, name)  # another process may have drawn it meanwhile
                if value is None:
                    value = random_bytes(size)
                    self._put_secret(db, policy, name, value, now)
        return value

    # Anchors

    def anchor(self, policy: str, vault: str) -> Root | None:
        """The newest root of a vault, as last reported."""
        with self._reading() as db:
            value = self._rows.get(db, "anchors", policy, vault)
        return None if value is None else Root.parse(value.decode())

    def advance_anchor(
        self, policy: str, vault: str, old: Root | None, new: Root, *, may_go_back: bool, now: int
    ) -> None:
        """Move an anchor from `old` to `new`; a repetition of the same move succeeds.

        Args:
            may_go_back: accept a `new` that does not come after `old`: its owner has put another vault there.

        Raises:
            ConflictError: it is at neither.
            RollbackError: `new` does not come after `old`.
        """
        with self._transaction() as db:
            if not compare_and_swap(self.anchor(policy, vault), old, new):
                return
            if not new.comes_after(old) and not may_go_back:
                raise RollbackError(
                    f"anchor: got {new}, wanted a root after {old}",
                    hint="the vault was rolled back: restore its latest version; its owner may entrust it anew",
                )
            detail: dict[str, object] = {"vault": vault, "root": str(new)}
            self._put(db, str(new).encode(), now, "anchor", policy, detail, "anchors", policy, vault)

    # Log

    def record(self, event: str, policy: str, detail: dict[str, object], *, now: int) -> None:
        """Append an entry to the audit log."""
        with self._transaction() as db:
            self._append(db, now, event, policy, detail)

    def log(self, *, after: int = 0, limit: int = 1000) -> list[LogEntry]:
        """At most `limit` entries in order, those after number `after`.

        Raises:
            IntegrityError: an entry was changed or removed.
        """
        with self._reading() as db:
            return self._log.page(db, after, limit)

    def head(self) -> Head:
        """Size and root of the log."""
        with self._reading():
            return self._log.head()

    def check_head(self, seen: Head) -> Head:
        """Size and root of the log, if it extends what somebody has seen.

        Raises:
            RollbackError: it does not.
        """
        with self._reading() as db:
            self._log.check(db, seen)
            return self._log.head()

    def inclusion(self, numbers: Sequence[int], size: int) -> list[list[bytes]]:
        """For each of these entries the proof that it is among the first `size`. Raises UsageError."""
        with self._reading() as db:
            return self._log.inclusion(db, numbers, size)

    def consistency(self, old: int, new: int) -> list[bytes]:
        """The proof that the first `new` entries of the log begin with the first `old`. Raises UsageError."""
        with self._reading() as db:
            return self._log.consistency(db, old, new)

    # Cosignatures, which vouch for themselves

    def put_cosigned(self, witness: str, size: int, time: int, note: str) -> None:
        """Keep a witness's cosigned head, unless one of more entries or a later time is kept."""
        with self._transaction() as db:
            kept = db.execute("SELECT size, time FROM cosignatures WHERE witness = ?", (witness,)).fetchone()
            if kept is None or kept < (size, time):
                db.execute("INSERT OR REPLACE INTO cosignatures VALUES (?, ?, ?, ?)", (witness, size, time, note))

    def cosigned(self) -> list[str]:
        """The latest head that each witness has cosigned, as notes, the highest first: at most 64."""
        with self._reading() as db:
            query = "SELECT note FROM cosignatures ORDER BY size DESC, witness LIMIT 64"
            return [note for (note,) in db.execute(query)]
