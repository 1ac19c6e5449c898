"""Rows of the CAS's database that nobody without its key reads, alters, moves, removes, or puts back.

- A row's box is sealed under the AAD [table, key..., number of the log entry that wrote it].
- The sum, modulo 2^256, of a keyed hash of every row's (table, key, entry, nonce) is sealed in the log's head: a
  multiset hash (Clarke et al., ASIACRYPT 2003, MSet-Add-Hash; its sum is never seen outside). So the rows are exactly
  those that the log's entries left: an older box of the same row, a box of a fork of the database under the same
  number, a row that is missing or one too many changes the sum.
- All of it is checked when the database is opened, and again after another process has written to it. In between, what
  is read is compared with what was there then.
- `gone` has the keys of removed rows, for other instances to take in. Only the sum that comes out vouches for it.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Mapping

from strongroom.cas.files import RESTORE
from strongroom.cas.state.database import Database, Table, check_text
from strongroom.crypto import NONCE_SIZE, BlockCipher, derive, open_box, seal_box
from strongroom.errors import IntegrityError, TamperedError

KEYS: Mapping[str, tuple[str, str]] = {
    "policies": ("name", "version"),
    "secrets": ("policy", "name"),
    "anchors": ("policy", "vault"),
    "names": ("policy", "what"),
    "namespaces": ("namespace", "what"),
    "leases": ("policy", "spki"),
    "replicas": ("policy", "number"),
    "fences": ("policy", "vault"),
    "revocations": ("policy", "what"),
    "grants": ("policy", "importer"),
    "mesh": ("policy", "what"),
    "settings": ("what", "part"),
}
"""The tables, and the columns of their primary keys. An entry here is all that a new table needs."""

_NUMBERS = {"version"}
_GONE = Table(
    "gone",
    {"entry": "INTEGER", "tab": "TEXT", "a": "TEXT", "b": "TEXT"},
    ("entry", "tab", "a", "b"),
)
_REMEMBERED = 4096
"""How many entries back `gone` reaches. An instance that is further behind takes in everything."""

_MODULUS = 1 << 256

Key = tuple[str | int, ...]
_Present = dict[tuple[str | int, str | int], dict[str | int, tuple[int, bytes]]]
"""(table, first part of the key): {its second part: (entry, nonce)}"""


def tables() -> list[Table]:
    """Those of `KEYS`, and `gone`."""
    each = []
    for name, key in KEYS.items():
        kinds = {column: "INTEGER" if column in _NUMBERS else "TEXT" for column in key}
        each.append(Table(name, {**kinds, "entry": "INTEGER", "box": "BLOB"}, key))
    return [*each, _GONE]


class Rows:
    """The rows of one database, under one key."""

    def __init__(self, key: bytes) -> None:
        self._cipher = BlockCipher(key)
        self._sum_key = derive(key, "strongroom/cas/rows-sum/v1")
        self._present: _Present = {}
        self._firsts: dict[str, list[str]] = {}  # of a table, in order, once they were asked for
        self._undo: list[tuple[Key, tuple[int, bytes] | None]] = []
        self.total = 0

    def load(self, db: Database, total: int) -> None:
        """Take in what is in the database.

        Raises:
            IntegrityError: it is not what the log's head stands for.
        """
        before, self._present, self.total = (self._present, self.total), {}, 0
        self._firsts.clear()
        self._take_in(db, 0)
        if self.total != total:
            self._present, self.total = before
            self._firsts.clear()
            raise IntegrityError(
                f"{db.name}: its rows are not those that its head stands for; some were removed, added or put back",
                hint=RESTORE,
            )
        self._undo.clear()

    def load_since(self, db: Database, total: int, entry: int) -> None:
        """Take in what was written by log entries after number `entry`, or everything if that is not enough.

        Raises:
            IntegrityError: as `load`.
        """
        mark = self.mark()
        for tab, a, b in db.execute("SELECT tab, a, b FROM gone WHERE entry > ?", (entry,)):
            if tab in KEYS:
                self._set((tab, a, b), None)
        self._take_in(db, entry)
        if self.total == total:
            self._undo.clear()
        else:
            self.undo(mark)
            self.load(db, total)

    def _take_in(self, db: Database, after: int) -> None:
        for table, (first, second) in KEYS.items():
            query = f"SELECT {first}, {second}, entry, substr(box, 1, {NONCE_SIZE}) FROM {table} WHERE entry > ?"  # noqa: S608
            for a, b, entry, nonce in db.execute(query, (after,)):
                self._set((table, a, b), (entry, nonce))

    def put(self, db: Database, value: bytes, entry: int, *row: str | int) -> None:
        """Write a row, new or in place of what is there, by log entry number `entry`."""
        table, a, b = row
        check_text(a, b)
        first, second = KEYS[str(table)]
        box = seal_box(self._cipher, value, _aad(row, entry))
        db.execute(
            f"INSERT INTO {table} VALUES (?, ?, ?, ?) "  # noqa: S608
            f"ON CONFLICT ({first}, {second}) DO UPDATE SET entry = excluded.entry, box = excluded.box",
            (a, b, entry, box),
        )
        self._set(row, (entry, box[:NONCE_SIZE]))

    def delete(self, db: Database, entry: int, *row: str | int) -> None:
        """Remove a row that is there, by log entry number `entry`."""
        table, a, b = row
        first, second = KEYS[str(table)]
        db.execute(f"DELETE FROM {table} WHERE {first} = ? AND {second} = ?", (a, b))  # noqa: S608
        db.execute("DELETE FROM gone WHERE entry < ?", (entry - _REMEMBERED,))
        db.execute("INSERT INTO gone VALUES (?, ?, ?, ?)", (entry, table, a, b))
        self._set(row, None)

    def get(self, db: Database, *row: str | int) -> bytes | None:
        """What a row holds, or None if it was never written.

        Raises:
            TamperedError: it is not what was stored in that row last.
        """
        table, a, b = row
        expected = self._present.get((table, a), {}).get(b)
        if expected is None:
            return None  # without a look: it may be a name that the database cannot even hold
        first, second = KEYS[str(table)]
        found = db.execute(f"SELECT entry, box FROM {table} WHERE {first} = ? AND {second} = ?", (a, b))  # noqa: S608
        if not found or (found[0][0], found[0][1][:NONCE_SIZE]) != expected:
            raise _changed(db, row)
        try:
            return open_box(self._cipher, found[0][1], _aad(row, expected[0]))
        except TamperedError:
            raise _changed(db, row) from None

    def entry(self, *row: str | int) -> int:
        """The number of the log entry that wrote a row, 0 if there is no such row."""
        table, a, b = row
        return self._present.get((table, a), {}).get(b, (0, b""))[0]

    def keys(self, table: str, first: str) -> list[str | int]:
        """The second parts of the keys of the rows that begin so, in order."""
        return sorted(self._present.get((table, first), ()))

    def stamps(self, table: str, first: str) -> Mapping[str | int, tuple[int, bytes]]:
        """What tells one writing of a row from every other, by the second parts of the keys that begin so."""
        return self._present.get((table, first), {})

    def firsts(self, table: str) -> list[str]:
        """The first parts of the keys of a table, in order."""
        if table not in self._firsts:
            self._firsts[table] = sorted(str(first) for name, first in self._present if name == table)
        return self._firsts[table].copy()

    def verify(self, db: Database) -> None:
        """Open every row. Raises TamperedError if one is not what was stored in it last."""
        for (table, a), group in self._present.items():
            for b in group:
                self.get(db, table, a, b)

    # What a transaction has changed here is undone with it.

    def mark(self) -> int:
        return len(self._undo)

    def undo(self, mark: int = 0) -> None:
        """Forget all that was changed since `mark`."""
        while len(self._undo) > mark:
            row, before = self._undo.pop()
            self._set(row, before)
            self._undo.pop()

    def committed(self) -> None:
        self._undo.clear()

    def _set(self, row: Key, at: tuple[int, bytes] | None) -> None:
        table, a, b = row
        if (table, a) not in self._present:
            self._firsts.pop(str(table), None)
        group = self._present.setdefault((table, a), {})
        before = group.get(b)
        self._undo.append((row, before))
        if before is not None:
            self.total -= self._hash(row, *before)
            del group[b]
        if at is not None:
            self.total += self._hash(row, *at)
            group[b] = at
        elif not group:
            del self._present[table, a]
            self._firsts.pop(str(table), None)
        self.total %= _MODULUS

    def _hash(self, row: Key, entry: int, nonce: bytes) -> int:
        return int.from_bytes(hmac.digest(self._sum_key, _aad(row, entry) + nonce, "sha256"), "big")


def _changed(db: Database, row: Key) -> TamperedError:
    return TamperedError(f"{db.name}: row {'/'.join(map(str, row))} was changed", hint=RESTORE)


_encode = json.JSONEncoder(separators=(",", ":")).encode


def _aad(row: Key, entry: int) -> bytes:
    return _encode([*row, entry]).encode()
