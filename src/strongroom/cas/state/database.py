"""Where a CAS's tables lie: SQLite in its directory, or a server that several instances share (`postgres.py`).

Rules:

- A writing transaction begins with the lock that all writers take, so that nobody else writes before its end.
- Statements are those that both kinds understand, with `?` for each parameter. A `Table` says the rest.
- Nothing that a database says is believed here: `Rows` and `Log` check it against the head.
"""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from strongroom.cas.files import RESTORE
from strongroom.errors import DatabaseError, IntegrityError, UsageError

VERSION = 5
OLDER = (3, 4)  # which lack some of the tables
MAGIC = 0x53724361  # "SrCa"
OTHER_VERSION = "it was made by another version of strongroom; move the CAS's directory away to start anew"

Value = str | int | bytes
Record = tuple[Any, ...]

APPEND = "INSERT INTO log VALUES (?, ?, ?, ?, ?, ?, ?)"
"""Of a log entry. Its number comes first, and its salt, which no other entry has, last."""

_SPILLED = 6 << 20  # more than the cache's 2 MB by the 4 MB at which SQLite begins again at the log's start


_NO_TEXT = re.compile("[\0\ud800-\udfff]")


def check_text(*values: Value) -> None:
    """Check that every database can hold these texts: PostgreSQL has no zero characters, and none lone surrogates.

    Raises:
        UsageError: it cannot. Nothing was written, so that this request alone fails.
    """
    for value in values:
        if isinstance(value, str) and _NO_TEXT.search(value):
            raise UsageError(f"name: got {value[:80]!r}, wanted text without zero characters and lone surrogates")


@dataclass(frozen=True)
class Table:
    """A table: its columns with their types, `TEXT`, `INTEGER` (64 bits) or `BLOB`, and those of its primary key."""

    name: str
    columns: Mapping[str, str]
    key: tuple[str, ...]


class Database(Protocol):
    """One connection. Its owner sees to it that one thread at a time uses it."""

    name: str
    """In messages."""

    gone: str
    """What to say where the tables of a CAS that had some are missing."""

    incremental: bool
    """Whether other instances write often, so that what they wrote is to be taken in without all the rest."""

    @property
    def in_transaction(self) -> bool: ...

    def prepare(self, tables: Sequence[Table], *, new: bool) -> bool:
        """Begin a writing transaction, and make the tables if there are none and this CAS is new, or those that an
        older version lacks. Whether there were none.

        Raises:
            IntegrityError: they are missing, or another version's.
        """

    def begin(self, *, write: bool) -> None:
        """Begin a transaction: of one moment if it only reads, after all others if it writes."""

    def commit(self) -> None:
        """Make the transaction durable. What raises here may have been committed; the next `begin` tells."""

    def rollback(self) -> None:
        """Undo the transaction, if there still is one. Raises nothing."""

    def execute(self, statement: str, parameters: Sequence[Value] = ()) -> list[Record]:
        """Raises DatabaseError if the database cannot be used now; then the transaction is undone."""

    def execute_many(self, statement: str, parameters: Iterable[Sequence[Value]]) -> None: ...

    def head(self) -> bytes | None:
        """The log's head, the one row of table `head`."""

    def put_head(self, box: bytes) -> None:
        """Replace it."""

    def moment(self) -> object:
        """Equal to what it was in an earlier transaction if nobody else has written since. In a transaction only."""

    def glance(self) -> object:
        """`moment`, outside of a transaction; None where only a transaction can tell."""

    def settle(self) -> None:
        """After `prepare`'s transaction: whatever makes later ones quick, and a new database hard to lose."""

    def close(self) -> None: ...


class Sqlite:
    """The embedded database, in one file and its write-ahead log. Every commit is synced."""

    incremental = False

    def __init__(self, path: Path) -> None:
        self.name, self._path = path.name, path
        self.gone = f"{path.name}: is missing or empty, and this CAS had one: its policies, secrets and log are gone"
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        try:
            self.execute("PRAGMA journal_mode=WAL")
            self.execute("PRAGMA synchronous=FULL")
        except BaseException:
            self._db.close()
            raise

    @property
    def in_transaction(self) -> bool:
        return self._db.in_transaction

    def prepare(self, tables: Sequence[Table], *, new: bool) -> bool:
        self.begin(write=True)
        version, magic = (self.execute(f"PRAGMA {name}")[0][0] for name in ("user_version", "application_id"))
        empty = (version, magic) == (0, 0) and not self.execute("SELECT 1 FROM sqlite_schema")
        if empty and not new:
            raise IntegrityError(
                self.gone,
                hint=f"{RESTORE}; or move the CAS's directory away to start another CAS, with another root",
            )
        if not empty and (magic != MAGIC or version not in (*OLDER, VERSION)):
            raise IntegrityError(
                f"{self.name}: got version {version} of application {magic:#x}, wanted {VERSION} of {MAGIC:#x}",
                hint=OTHER_VERSION,
            )
        if version != VERSION:
            for table in tables:
                self.execute(_sqlite_table(table))
            self.execute(f"PRAGMA user_version = {VERSION}")
            self.execute(f"PRAGMA application_id = {MAGIC}")
        return empty

    def settle(self) -> None:
        """Give the write-ahead log its usual length, after moving it all into the file that a start looks at.

        To write over it costs a disk half of what it costs to make it longer, commit by commit. A transaction that is
        too large for SQLite's cache spills into it, and leaves nothing else behind when it is undone.
        """
        self.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self.begin(write=True)
        self.execute("CREATE TABLE spilled (bytes BLOB)")
        self.execute("INSERT INTO spilled VALUES (zeroblob(?))", (_SPILLED,))
        self.rollback()

    def begin(self, *, write: bool) -> None:
        self.execute("BEGIN IMMEDIATE" if write else "BEGIN")

    def commit(self) -> None:
        self.execute("COMMIT")

    def rollback(self) -> None:
        if self._db.in_transaction:
            # One that fails is of a transaction that SQLite undid itself, or of a disk; the next `begin` tells.
            with suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")

    def execute(self, statement: str, parameters: Sequence[Value] = ()) -> list[Record]:
        try:
            return self._db.execute(statement, parameters).fetchall()
        except sqlite3.Error as error:
            raise self._error(error) from None

    def execute_many(self, statement: str, parameters: Iterable[Sequence[Value]]) -> None:
        try:
            self._db.executemany(statement, parameters)
        except sqlite3.Error as error:
            raise self._error(error) from None

    def head(self) -> bytes | None:
        found = self.execute("SELECT box FROM head")
        return found[0][0] if found else None

    def put_head(self, box: bytes) -> None:
        self.execute("INSERT INTO head VALUES (1, ?) ON CONFLICT (id) DO UPDATE SET box = excluded.box", (box,))

    def moment(self) -> object:
        """SQLite's data_version changes when another connection has committed, whatever it wrote."""
        return self.execute("PRAGMA data_version")[0][0]

    def glance(self) -> object:
        return self.moment()

    def close(self) -> None:
        self._db.close()

    def _error(self, error: sqlite3.Error) -> Exception:
        if isinstance(error, sqlite3.OperationalError) and error.sqlite_errorcode & 0xFF in _PASSING:
            return DatabaseError(f"{self._path}: {error}", hint="look at the disk, and at who else uses the database")
        if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.ProgrammingError):
            return IntegrityError(f"{self._path}: {error}", hint=RESTORE)
        return error


_PASSING = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR}


def _sqlite_table(table: Table) -> str:
    columns = ", ".join(f"{name} {kind} NOT NULL" for name, kind in table.columns.items())
    # A single INTEGER is the row's own number; other keys need no number beside them.
    plain = "STRICT" if table.columns[table.key[0]] == "INTEGER" and len(table.key) == 1 else "STRICT, WITHOUT ROWID"
    return f"CREATE TABLE IF NOT EXISTS {table.name} ({columns}, PRIMARY KEY ({', '.join(table.key)})) {plain}"
