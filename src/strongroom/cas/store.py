"""What a CAS remembers, in one SQLite file: policies, sealed secrets, anchors, and a hash-chained log.

Rules:

- A change and its log entry share one transaction.
- Secrets are AEAD boxes under the CAS's master key, bound to their table, policy and name.
- In this version the master key lies in a file beside the database (`restart = trust-disk`): whoever can read the
  CAS's directory can read its secrets, and whoever can replace it can roll them back. Run the CAS on a machine that its
  owner trusts.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from strongroom.cas.policy import Policy, check_succession, parse_policy, verify_policy
from strongroom.crypto import PublicKey, derive, digest, open_box, random_bytes, random_key, seal_box
from strongroom.errors import ConflictError, IntegrityError, UnknownPolicyError
from strongroom.sealed import Root

_SCHEMA = """
CREATE TABLE policies (
    name TEXT NOT NULL, version INTEGER NOT NULL, text TEXT NOT NULL, signature BLOB NOT NULL, owner BLOB NOT NULL,
    PRIMARY KEY (name, version)
) STRICT, WITHOUT ROWID;
CREATE TABLE secrets (
    policy TEXT NOT NULL, name TEXT NOT NULL, box BLOB NOT NULL, PRIMARY KEY (policy, name)
) STRICT, WITHOUT ROWID;
CREATE TABLE anchors (
    policy TEXT NOT NULL, vault TEXT NOT NULL, root TEXT NOT NULL, PRIMARY KEY (policy, vault)
) STRICT, WITHOUT ROWID;
CREATE TABLE log (
    number INTEGER PRIMARY KEY, time INTEGER NOT NULL, event TEXT NOT NULL, policy TEXT NOT NULL, detail TEXT NOT NULL,
    hash BLOB NOT NULL
) STRICT;
PRAGMA user_version = 1;
"""


@dataclass(frozen=True)
class LogEntry:
    """One line of the audit log; `hash` covers it and the entry before."""

    number: int
    time: int
    event: str
    policy: str
    detail: str
    hash: bytes

    def to_wire(self) -> dict[str, object]:
        return {
            "number": self.number,
            "time": self.time,
            "event": self.event,
            "policy": self.policy,
            "detail": self.detail,
            "hash": self.hash.hex(),
        }


class Store:
    """The database of one CAS. One instance per directory; calls may come from several threads.

    Args:
        directory: made with mode 0700 if it does not exist.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._secret_key = derive(_master_key(directory / "master.key"), "strongroom/cas/secrets/v1")
        path = directory / "cas.sqlite"
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        self._lock = threading.RLock()
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        with self._transaction():
            if self._db.execute("PRAGMA user_version").fetchone()[0] == 0:
                for statement in _SCHEMA.split(";"):
                    self._db.execute(statement)

    def close(self) -> None:
        self._db.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    # Policies

    def policy(self, name: str) -> Policy:
        """The newest version of a policy.

        Raises:
            UnknownPolicyError: there is none of that name.
        """
        text, _ = self.policy_document(name)
        return parse_policy(text)

    def policy_document(self, name: str) -> tuple[str, bytes]:
        """Text and signature of the newest version. Raises UnknownPolicyError."""
        with self._lock:
            row = self._db.execute(
                "SELECT text, signature FROM policies WHERE name = ? ORDER BY version DESC LIMIT 1", (name,)
            ).fetchone()
        if row is None:
            raise UnknownPolicyError(
                f"policy: the CAS holds none of the name {name!r}", hint="its owner applies it first; check the name"
            )
        return row[0], row[1]

    def put_policy(self, text: str, signature: bytes, owner: PublicKey, *, now: int) -> Policy:
        """Store the first or the next version of a policy, signed by its owner.

        Raises:
            PolicyError: malformed, or not the next version.
            VerificationError: not signed by `owner`.
            UnauthorizedError: `owner` is not the owner.
        """
        policy = parse_policy(text)
        verify_policy(text, signature, owner)
        with self._transaction() as db:
            try:
                current = self.policy(policy.name)
            except UnknownPolicyError:
                current = None
            if policy.owner != owner.fingerprint:
                raise ConflictError(f"policy.owner: got {policy.owner}, the signature is by {owner.fingerprint}")
            check_succession(policy, current)
            db.execute(
                "INSERT INTO policies VALUES (?, ?, ?, ?, ?)",
                (policy.name, policy.version, text, signature, owner.spki),
            )
            self._append(db, now, "policy", policy.name, {"version": policy.version, "digest": policy.digest})
        return policy

    # Secrets

    def put_secret(self, policy: str, name: str, value: bytes, *, now: int) -> None:
        """Store or replace a secret."""
        with self._transaction() as db:
            box = seal_box(self._secret_key, value, _secret_aad(policy, name))
            db.execute("INSERT OR REPLACE INTO secrets VALUES (?, ?, ?)", (policy, name, box))
            self._append(db, now, "secret", policy, {"name": name})

    def secret(self, policy: str, name: str) -> bytes | None:
        """A secret, or None if nobody has stored it."""
        with self._lock:
            row = self._db.execute("SELECT box FROM secrets WHERE policy = ? AND name = ?", (policy, name)).fetchone()
        return None if row is None else open_box(self._secret_key, row[0], _secret_aad(policy, name))

    def secret_or_new(self, policy: str, name: str, size: int, *, now: int) -> bytes:
        """A secret, drawn at random the first time."""
        with self._lock:
            value = self.secret(policy, name)
            if value is None:
                value = random_bytes(size)
                self.put_secret(policy, name, value, now=now)
            return value

    # Anchors

    def anchor(self, policy: str, vault: str) -> Root | None:
        """The newest root of a vault, as last reported."""
        with self._lock:
            row = self._db.execute(
                "SELECT root FROM anchors WHERE policy = ? AND vault = ?", (policy, vault)
            ).fetchone()
        return None if row is None else Root.parse(row[0])

    def advance_anchor(self, policy: str, vault: str, old: Root | None, new: Root, *, now: int) -> None:
        """Move an anchor from `old` to `new`; a repetition of the same move succeeds.

        Raises:
            ConflictError: it is at neither.
        """
        with self._transaction() as db:
            current = self.anchor(policy, vault)
            if current == new:
                return
            if current != old:
                raise ConflictError(f"anchor: got {old} as the root before, wanted {current}")
            db.execute("INSERT OR REPLACE INTO anchors VALUES (?, ?, ?)", (policy, vault, str(new)))
            self._append(db, now, "anchor", policy, {"vault": vault, "root": str(new)})

    # Log

    def record(self, event: str, policy: str, detail: dict[str, object], *, now: int) -> None:
        """Append an entry to the audit log."""
        with self._transaction() as db:
            self._append(db, now, event, policy, detail)

    def _append(self, db: sqlite3.Connection, now: int, event: str, policy: str, detail: dict[str, object]) -> None:
        row = db.execute("SELECT number, hash FROM log ORDER BY number DESC LIMIT 1").fetchone()
        number, before = (row[0] + 1, row[1]) if row else (1, bytes(32))
        text = json.dumps(detail, sort_keys=True, separators=(",", ":"))
        entry = LogEntry(number, now, event, policy, text, _log_hash(before, number, now, event, policy, text))
        db.execute(
            "INSERT INTO log VALUES (?, ?, ?, ?, ?, ?)",
            (entry.number, entry.time, entry.event, entry.policy, entry.detail, entry.hash),
        )

    def log(self, *, after: int = 0, limit: int = 1000) -> list[LogEntry]:
        """Entries in order, those after number `after`.

        Raises:
            IntegrityError: an entry's hash does not follow from the one before.
        """
        with self._lock:
            rows = self._db.execute("SELECT * FROM log WHERE number >= ? ORDER BY number LIMIT ?", (after, limit + 1))
            entries = [LogEntry(*row) for row in rows]
        before = bytes(32)
        if after and entries and entries[0].number == after:
            before = entries.pop(0).hash
        for entry in entries:
            wanted = _log_hash(before, entry.number, entry.time, entry.event, entry.policy, entry.detail)
            if entry.hash != wanted:
                raise IntegrityError(f"log entry {entry.number}: does not follow from the one before")
            before = entry.hash
        return entries[:limit]


def _log_hash(before: bytes, number: int, time: int, event: str, policy: str, detail: str) -> bytes:
    framed = json.dumps([number, time, event, policy, detail], separators=(",", ":")).encode()
    return digest(b"strongroom/cas/log/v1\0", before, framed)


def _secret_aad(policy: str, name: str) -> bytes:
    return json.dumps(["secrets", policy, name]).encode()


def _master_key(path: Path) -> bytes:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        key = path.read_bytes()
        if len(key) != 32:
            raise IntegrityError(f"{path}: {len(key)} bytes, wanted 32") from None
        return key
    with os.fdopen(fd, "wb") as file:
        key = random_key()
        file.write(key)
        file.flush()
        os.fsync(file.fileno())
    return key
