"""Rows of the CAS's database that nobody without its key reads, alters, moves, removes, or puts back.

- A row's box is sealed under the AAD [table, key..., number of the log entry that wrote it].
- The sum, modulo 2^256, of a keyed hash of every row's (table, key, entry, nonce) is sealed in the log's head: a
  multiset hash (Clarke et al., ASIACRYPT 2003, MSet-Add-Hash; its sum is never seen outside). So the rows are exactly
  those that the log's entries left: an older box of the same row, a box of a fork of the database under the same
  number, a row that is missing or one too many changes the sum.
- All of it is checked when the database is opened, and again after another process has written to it. In between, what
  is read is compared with what was there then.
"""

from __future__ import annotations

import hmac
import json
import sqlite3
from collections.abc import Mapping

from strongroom.crypto import NONCE_SIZE, BlockCipher, derive, open_box, seal_box
from strongroom.errors import IntegrityError, TamperedError

RESTORE = "something changed the CAS's directory on the disk; restore all of it from a copy"
KEYS: Mapping[str, tuple[str, str]] = {
    "policies": ("name", "version"),
    "secrets": ("policy", "name"),
    "anchors": ("policy", "vault"),
    "names": ("policy", "what"),
}
"""The tables, and the columns of their primary keys."""

SCHEMA = """
CREATE TABLE policies (
    name TEXT NOT NULL, version INTEGER NOT NULL, entry INTEGER NOT NULL, box BLOB NOT NULL, PRIMARY KEY (name, version)
) STRICT, WITHOUT ROWID;
CREATE TABLE secrets (
    policy TEXT NOT NULL, name TEXT NOT NULL, entry INTEGER NOT NULL, box BLOB NOT NULL, PRIMARY KEY (policy, name)
) STRICT, WITHOUT ROWID;
CREATE TABLE anchors (
    policy TEXT NOT NULL, vault TEXT NOT NULL, entry INTEGER NOT NULL, box BLOB NOT NULL, PRIMARY KEY (policy, vault)
) STRICT, WITHOUT ROWID;
CREATE TABLE names (
    policy TEXT NOT NULL, what TEXT NOT NULL, entry INTEGER NOT NULL, box BLOB NOT NULL, PRIMARY KEY (policy, what)
) STRICT, WITHOUT ROWID
"""
_MODULUS = 1 << 256

Key = tuple[str | int, ...]
_Present = dict[tuple[str | int, str | int], dict[str | int, tuple[int, bytes]]]
"""(table, first part of the key): {its second part: (entry, nonce)}"""


class Rows:
    """The rows of one database, under one key."""

    def __init__(self, key: bytes) -> None:
        self._cipher = BlockCipher(key)
        self._sum_key = derive(key, "strongroom/cas/rows-sum/v1")
        self._present: _Present = {}
        self.total = 0

    def load(self, db: sqlite3.Connection, total: int) -> None:
        """Take in what is in the database.

        Raises:
            IntegrityError: it is not what the log's head stands for.
        """
        present: _Present = {}
        found = 0
        for table, (first, second) in KEYS.items():
            query = f"SELECT {first}, {second}, entry, substr(box, 1, {NONCE_SIZE}) FROM {table}"  # noqa: S608
            for a, b, entry, nonce in db.execute(query):
                present.setdefault((table, a), {})[b] = (entry, nonce)
                found += self._hash((table, a, b), entry, nonce)
        if found % _MODULUS != total:
            raise IntegrityError(
                "cas.sqlite: its rows are not those that its head stands for; some were removed, added or put back",
                hint=RESTORE,
            )
        self._present, self.total = present, total

    def put(self, db: sqlite3.Connection, value: bytes, entry: int, *row: str | int) -> None:
        """Write a row, new or in place of what is there, by log entry number `entry`."""
        table, a, b = row
        box = seal_box(self._cipher, value, _aad(row, entry))
        db.execute(f"INSERT OR REPLACE INTO {table} VALUES (?, ?, ?, ?)", (a, b, entry, box))  # noqa: S608
        group, at = self._present.setdefault((table, a), {}), (entry, box[:NONCE_SIZE])
        if b in group:
            self.total -= self._hash(row, *group[b])
        group[b] = at
        self.total = (self.total + self._hash(row, *at)) % _MODULUS

    def get(self, db: sqlite3.Connection, *row: str | int) -> bytes | None:
        """What a row holds, or None if it was never written.

        Raises:
            TamperedError: it is not what was stored in that row last.
        """
        table, a, b = row
        first, second = KEYS[str(table)]
        query = f"SELECT entry, box FROM {table} WHERE {first} = ? AND {second} = ?"  # noqa: S608
        found, expected = db.execute(query, (a, b)).fetchone(), self._present.get((table, a), {}).get(b)
        if found is None and expected is None:
            return None
        changed = TamperedError(f"cas.sqlite: row {'/'.join(map(str, row))} was changed", hint=RESTORE)
        if found is None or (found[0], found[1][:NONCE_SIZE]) != expected:
            raise changed
        try:
            return open_box(self._cipher, found[1], _aad(row, found[0]))
        except TamperedError:
            raise changed from None

    def entry(self, *row: str | int) -> int:
        """The number of the log entry that wrote a row, 0 if it was never written."""
        table, a, b = row
        return self._present.get((table, a), {}).get(b, (0, b""))[0]

    def versions(self, policy: str) -> list[int]:
        """The versions of a policy that are there, in order."""
        return sorted(int(version) for version in self._present.get(("policies", policy), ()))

    def _hash(self, row: Key, entry: int, nonce: bytes) -> int:
        return int.from_bytes(hmac.digest(self._sum_key, _aad(row, entry) + nonce, "sha256"), "big")


def _aad(row: Key, entry: int) -> bytes:
    return json.dumps([*row, entry], separators=(",", ":")).encode()
