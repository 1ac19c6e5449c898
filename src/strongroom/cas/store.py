"""What a CAS remembers, in one SQLite file: policies, secrets, anchors, and a hash-chained log (docs/spec/cas.md).

Rules:

- A change and its log entry share one transaction, which is on the disk before the change is confirmed.
- Policies, secrets and anchors are AEAD boxes under the CAS's master key, bound to their table and row, and so is the
  head of the log: without that key no row can be read, altered or moved, and the log's end cannot be cut off.
- In this version the master key lies in a file beside the database (`restart = trust-disk`): whoever can read the
  CAS's directory can read its secrets, and whoever can replace it can roll them back. Run the CAS on a machine that its
  owner trusts.
"""

from __future__ import annotations

import functools
import json
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from strongroom.cas.files import create_once
from strongroom.cas.policy import Policy, check_succession, parse_policy, verify_policy
from strongroom.crypto import KEY_SIZE, PublicKey, derive, digest, open_box, random_bytes, random_key, seal_box
from strongroom.errors import (
    IntegrityError,
    RollbackError,
    TamperedError,
    UnauthorizedError,
    UnknownPolicyError,
    WrongKeyError,
)
from strongroom.sealed import Root
from strongroom.sealed.anchor import compare_and_swap

_VERSION = 1
_RESTORE = "something changed the CAS's directory on the disk; restore all of it from a copy"
_SCHEMA = """
CREATE TABLE policies (
    name TEXT NOT NULL, version INTEGER NOT NULL, box BLOB NOT NULL, PRIMARY KEY (name, version)
) STRICT, WITHOUT ROWID;
CREATE TABLE secrets (
    policy TEXT NOT NULL, name TEXT NOT NULL, box BLOB NOT NULL, PRIMARY KEY (policy, name)
) STRICT, WITHOUT ROWID;
CREATE TABLE anchors (
    policy TEXT NOT NULL, vault TEXT NOT NULL, box BLOB NOT NULL, PRIMARY KEY (policy, vault)
) STRICT, WITHOUT ROWID;
CREATE TABLE log (
    number INTEGER PRIMARY KEY, time INTEGER NOT NULL, event TEXT NOT NULL, policy TEXT NOT NULL, detail TEXT NOT NULL,
    hash BLOB NOT NULL
) STRICT;
CREATE TABLE head (id INTEGER PRIMARY KEY CHECK (id = 1), box BLOB NOT NULL) STRICT;
"""
_MAGIC = 0x53724361  # "SrCa"
_START = (0, bytes(32))

_parse = functools.lru_cache(maxsize=256)(parse_policy)


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


@dataclass(frozen=True)
class SignedPolicy:
    """A policy with its owner's signature of its text."""

    policy: Policy
    signature: bytes
    owner: PublicKey


class Store:
    """The database of one CAS. Calls may come from several threads.

    Args:
        directory: made with mode 0700 if it does not exist.

    Raises:
        WrongKeyError: the database was made under another master key, or the key is gone.
        IntegrityError: the log does not end where its head says, or the file is something else.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = directory / "cas.sqlite"
        self._key = derive(_master_key(directory / "master.key", new=not path.exists()), "strongroom/cas/rows/v1")
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        self._lock = threading.RLock()
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        try:
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            with self._transaction() as db:
                self._open(db)
        except sqlite3.DatabaseError as error:
            self._db.close()
            raise IntegrityError(f"{path}: {error}", hint=_RESTORE) from None
        except BaseException:
            self._db.close()
            raise

    def _open(self, db: sqlite3.Connection) -> None:
        version, magic = (db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("user_version", "application_id"))
        if (version, magic) == (0, 0) and not db.execute("SELECT 1 FROM sqlite_schema").fetchone():
            for statement in _SCHEMA.split(";"):
                db.execute(statement)
            db.execute(f"PRAGMA user_version = {_VERSION}")
            db.execute(f"PRAGMA application_id = {_MAGIC}")
            self._set_head(db, *_START)
        elif (version, magic) != (_VERSION, _MAGIC):
            raise IntegrityError(
                f"cas.sqlite: got version {version} of application {magic:#x}, wanted {_VERSION} of {_MAGIC:#x}",
                hint="it was made by another version of strongroom; move the CAS's directory away to start anew",
            )
        try:
            self._check_head(db)
        except TamperedError:
            raise WrongKeyError(
                "master.key: is not the key that cas.sqlite was made with, or its head was changed", hint=_RESTORE
            ) from None

    def close(self) -> None:
        with self._lock:
            self._db.close()

    @contextmanager
    def _transaction(self, begin: str = "BEGIN IMMEDIATE") -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._db.execute(begin)
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def _seal(self, value: bytes, *row: str | int) -> bytes:
        return seal_box(self._key, value, _row_aad(row))

    def _unseal(self, box: bytes, *row: str | int) -> bytes:
        """Raises TamperedError if the box is not what was stored in that row."""
        try:
            return open_box(self._key, box, _row_aad(row))
        except TamperedError:
            raise TamperedError(f"cas.sqlite: row {'/'.join(map(str, row))} was changed", hint=_RESTORE) from None

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
            row = self._db.execute(
                "SELECT version, box FROM policies WHERE name = ? ORDER BY version DESC LIMIT 1", (name,)
            ).fetchone()
        if row is None:
            raise UnknownPolicyError(
                f"policy: the CAS holds none of the name {name[:200]!r}",
                hint="its owner applies it first; check the name",
            )
        stored = json.loads(self._unseal(row[1], "policies", name, row[0]))
        owner = PublicKey(bytes.fromhex(stored["owner"]))
        return SignedPolicy(_parse(stored["text"]), bytes.fromhex(stored["signature"]), owner)

    def put_policy(self, text: str, signature: bytes, owner: PublicKey, *, now: int) -> Policy:
        """Store the first or the next version of a policy, signed by its owner. The newest once more changes nothing.

        Whoever stores the first version of a name owns the name: names are given out first come, first served. Owners
        who do not trust each other not to take each other's names use a CAS each.

        Raises:
            PolicyError: malformed, or not the next version.
            VerificationError: not signed by `owner`.
            UnauthorizedError: `owner` is not the owner that this version or the one before names.
        """
        policy = parse_policy(text)
        verify_policy(text, signature, owner)
        if policy.owner != owner.fingerprint:
            raise UnauthorizedError(
                f"policy.owner: got {policy.owner}, the caller's key is {owner.fingerprint}",
                hint="sign it with the key that it names, or name this key in it",
            )
        with self._transaction() as db:
            try:
                current = self.policy(policy.name)
            except UnknownPolicyError:
                current = None
            if current is not None and current.text == text:
                return current
            check_succession(policy, current)
            stored = {"text": text, "signature": signature.hex(), "owner": owner.spki.hex()}
            box = self._seal(json.dumps(stored).encode(), "policies", policy.name, policy.version)
            db.execute("INSERT INTO policies VALUES (?, ?, ?)", (policy.name, policy.version, box))
            self._append(db, now, "policy", policy.name, {"version": policy.version, "digest": policy.digest})
        return policy

    # Secrets

    def put_secret(self, policy: str, name: str, value: bytes, *, now: int) -> None:
        """Store or replace a secret."""
        with self._transaction() as db:
            self._put_secret(db, policy, name, value, now)

    def _put_secret(self, db: sqlite3.Connection, policy: str, name: str, value: bytes, now: int) -> None:
        box = self._seal(value, "secrets", policy, name)
        db.execute("INSERT OR REPLACE INTO secrets VALUES (?, ?, ?)", (policy, name, box))
        self._append(db, now, "secret", policy, {"name": name})

    def secret(self, policy: str, name: str) -> bytes | None:
        """A secret, or None if nobody has stored it."""
        with self._lock:
            row = self._db.execute("SELECT box FROM secrets WHERE policy = ? AND name = ?", (policy, name)).fetchone()
        return None if row is None else self._unseal(row[0], "secrets", policy, name)

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
        with self._lock:
            row = self._db.execute("SELECT box FROM anchors WHERE policy = ? AND vault = ?", (policy, vault)).fetchone()
        return None if row is None else Root.parse(self._unseal(row[0], "anchors", policy, vault).decode())

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
            box = self._seal(str(new).encode(), "anchors", policy, vault)
            db.execute("INSERT OR REPLACE INTO anchors VALUES (?, ?, ?)", (policy, vault, box))
            self._append(db, now, "anchor", policy, {"vault": vault, "root": str(new)})

    # Log

    def record(self, event: str, policy: str, detail: dict[str, object], *, now: int) -> None:
        """Append an entry to the audit log."""
        with self._transaction() as db:
            self._append(db, now, event, policy, detail)

    def _append(self, db: sqlite3.Connection, now: int, event: str, policy: str, detail: dict[str, object]) -> None:
        number, before = self._check_head(db)
        number += 1
        text = json.dumps(detail, sort_keys=True, separators=(",", ":"))
        hashed = _log_hash(before, number, now, event, policy, text)
        db.execute("INSERT INTO log VALUES (?, ?, ?, ?, ?, ?)", (number, now, event, policy, text, hashed))
        self._set_head(db, number, hashed)

    def _set_head(self, db: sqlite3.Connection, number: int, hashed: bytes) -> None:
        box = self._seal(json.dumps([number, hashed.hex()]).encode(), "head", 1)
        db.execute("INSERT OR REPLACE INTO head VALUES (1, ?)", (box,))

    def _check_head(self, db: sqlite3.Connection) -> tuple[int, bytes]:
        """Number and hash of the last entry. Raises IntegrityError unless the log ends with it."""
        row = db.execute("SELECT box FROM head").fetchone()
        if row is None:
            raise IntegrityError("log: its head is missing", hint=_RESTORE)
        number, hashed = json.loads(self._unseal(row[0], "head", 1))
        head = (number, bytes.fromhex(hashed))
        last = db.execute("SELECT number, hash FROM log ORDER BY number DESC LIMIT 1").fetchone() or _START
        if last != head:
            raise IntegrityError(
                f"log: ends with entry {last[0]}, wanted {number}; entries were removed or added", hint=_RESTORE
            )
        return head

    def log(self, *, after: int = 0, limit: int = 1000) -> list[LogEntry]:
        """At most `limit` entries in order, those after number `after`.

        Raises:
            IntegrityError: an entry's hash does not follow from the one before, or the log does not end with its head.
        """
        with self._transaction("BEGIN") as db:  # another process may be appending
            self._check_head(db)
            rows = db.execute("SELECT * FROM log WHERE number >= ? ORDER BY number LIMIT ?", (after, limit + 1))
            entries = [LogEntry(*row) for row in rows]
        number, before = _START
        if after and entries and entries[0].number == after:
            first = entries.pop(0)
            number, before = first.number, first.hash
        for entry in entries[:limit]:
            wanted = _log_hash(before, number + 1, entry.time, entry.event, entry.policy, entry.detail)
            if entry.number != number + 1 or entry.hash != wanted:
                raise IntegrityError(f"log entry {entry.number}: does not follow from the one before", hint=_RESTORE)
            number, before = entry.number, entry.hash
        return entries[:limit]


def _log_hash(before: bytes, number: int, time: int, event: str, policy: str, detail: str) -> bytes:
    framed = json.dumps([number, time, event, policy, detail], separators=(",", ":")).encode()
    return digest(b"strongroom/cas/log/v1\0", before, framed)


def _row_aad(row: tuple[str | int, ...]) -> bytes:
    return json.dumps(row, separators=(",", ":")).encode()


def _master_key(path: Path, *, new: bool) -> bytes:
    if new:
        create_once(path, random_key())
    try:
        key = path.read_bytes()
    except FileNotFoundError:
        raise WrongKeyError(
            f"{path}: is missing, and without it the CAS's database cannot be read", hint=_RESTORE
        ) from None
    if len(key) != KEY_SIZE:
        raise WrongKeyError(f"{path}: {len(key)} bytes, wanted {KEY_SIZE}", hint=_RESTORE)
    return key
