"""`meta` as an SQLite database: a VFS that keeps the pages of one database in one sealed file.

SQLite sees one file of 4 KiB pages and nothing else: no journal, no shared memory, no temporary file ever reaches a
file system, since `_open` refuses every name but the one that was registered for this connection. Syncing does nothing;
only the vault commits the sealed file, and always between two transactions.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from typing import Any, Final, Protocol

import apsw

from strongroom.errors import FormatError, StrongroomError

PAGE: Final = 4096

_PRAGMAS = (
    f"PRAGMA page_size={PAGE}",
    "PRAGMA journal_mode=MEMORY",
    "PRAGMA synchronous=OFF",
    "PRAGMA temp_store=MEMORY",
    "PRAGMA locking_mode=EXCLUSIVE",
    "PRAGMA cache_spill=OFF",
    "PRAGMA cache_size=-32768",
    "PRAGMA trusted_schema=OFF",
    "PRAGMA cell_size_check=ON",
)


class PageFile(Protocol):
    """The sealed bytes below a database."""

    @property
    def length(self) -> int: ...

    def read_at(self, offset: int, buffer: bytearray) -> int: ...

    def write_at(self, offset: int, data: bytes) -> None: ...

    def truncate(self, size: int) -> int: ...


class _File:
    """One opening of a database by SQLite; what it raises, SQLite turns into an error of the statement."""

    def __init__(self, pages: PageFile, *, writable: bool) -> None:
        self._pages = pages
        self._writable = writable

    def xRead(self, amount: int, offset: int) -> bytes:  # noqa: N802  # SQLite's names
        buffer = bytearray(amount)
        count = self._pages.read_at(offset, buffer)
        return bytes(buffer) if count == amount else bytes(buffer[:count])

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802
        if not self._writable:
            raise apsw.ReadOnlyError("the vault is open for reading only")
        self._pages.write_at(offset, data)

    def xTruncate(self, size: int) -> None:  # noqa: N802
        self._pages.truncate(size)

    def xSync(self, flags: int) -> None:  # noqa: N802
        """Nothing: durability is the sealed file's commit."""

    def xFileSize(self) -> int:  # noqa: N802
        return self._pages.length

    def xLock(self, level: int) -> None:  # noqa: N802
        """Nothing: a database has one connection."""

    def xUnlock(self, level: int) -> None:  # noqa: N802
        """Nothing."""

    def xCheckReservedLock(self) -> bool:  # noqa: N802
        return False

    def xClose(self) -> None:  # noqa: N802
        """Nothing: the sealed file outlives the connection."""

    def xFileControl(self, op: int, pointer: int) -> bool:  # noqa: N802
        return False

    def xSectorSize(self) -> int:  # noqa: N802
        return PAGE

    def xDeviceCharacteristics(self) -> int:  # noqa: N802
        return apsw.SQLITE_IOCAP_ATOMIC4K | apsw.SQLITE_IOCAP_SAFE_APPEND | apsw.SQLITE_IOCAP_POWERSAFE_OVERWRITE


class _Vfs(apsw.VFS):
    """Database names lead to sealed files here, and nowhere else."""

    NAME = "strongroom"

    def __init__(self) -> None:
        super().__init__(self.NAME, "")
        self.files: dict[str, _File] = {}

    def xOpen(self, name: Any, flags: list[int]) -> Any:  # noqa: N802
        file = self.files.get(name.filename() if isinstance(name, apsw.URIFilename) else name)
        if file is None:
            raise apsw.CantOpenError("a vault has no file beside its database")
        flags[1] = flags[0]
        return file

    def xFullPathname(self, name: str) -> str:  # noqa: N802
        return name

    def xAccess(self, name: str, flags: int) -> bool:  # noqa: N802
        return False

    def xDelete(self, name: str, sync: bool) -> None:  # noqa: N802
        """There is nothing to delete."""


_ERRORS = (apsw.Error, UnicodeDecodeError)  # SQLite looks at no text that it is given
_lock = threading.Lock()
_numbers = itertools.count(1)
_vfs: _Vfs | None = None


def _closed(*_: Any) -> Any:
    raise StrongroomError("vault: its newest commit could not be read", hint="open the vault again")


class Database:
    """A connection to the database in a sealed file. Not for use from several threads at once.

    Writing begins a transaction by itself; `settle` ends it, so that the sealed file holds a whole database.

    Raises:
        FormatError: what the sealed file holds is no database.
    """

    def __init__(self, pages: PageFile, *, writable: bool) -> None:
        global _vfs
        with _lock:
            if _vfs is None:
                _vfs = _Vfs()
            self._name = f"meta-{next(_numbers)}"
            _vfs.files[self._name] = _File(pages, writable=writable)
        self._in_transaction = False
        try:
            flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE if writable else apsw.SQLITE_OPEN_READONLY
            self._connection = apsw.Connection(self._name, flags=flags, vfs=_Vfs.NAME, statementcachesize=64)
            self._connection.config(apsw.SQLITE_DBCONFIG_DEFENSIVE, 1)
            for pragma in _PRAGMAS:
                self._connection.execute(pragma)
        except BaseException as error:  # those of the sealed file come through SQLite as they are
            self.close()
            if isinstance(error, apsw.Error):
                raise self._broken(error) from None
            raise
        # One cursor for each call: a nested query must not end the one around it.
        self._run: Callable[..., Any] = self._connection.execute

    def rows(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """All rows of a query."""
        try:
            return list(self._run(sql, values))
        except _ERRORS as error:
            raise self._broken(error) from None

    def row(self, sql: str, *values: Any) -> tuple[Any, ...] | None:
        """The first row of a query, or None."""
        try:
            for row in self._run(sql, values):
                return row  # type: ignore[no-any-return]
        except _ERRORS as error:
            raise self._broken(error) from None
        return None

    def change(self, sql: str, *values: Any) -> int:
        """Run a statement that writes; the number of rows it changed."""
        try:
            if not self._in_transaction:
                self._run("BEGIN")
                self._in_transaction = True
            self._run(sql, values)
            return self._connection.changes()
        except apsw.Error as error:
            raise self._broken(error) from None

    def settle(self) -> None:
        """Hand every changed page to the sealed file."""
        if self._in_transaction:
            try:
                self._run("COMMIT")
            except apsw.Error as error:
                raise self._broken(error) from None
            self._in_transaction = False

    def close(self) -> None:
        """Drop the connection, and every change since the last `settle`. Closing twice is fine."""
        connection = self.__dict__.pop("_connection", None)
        self._run = _closed
        if connection is not None:
            if self._in_transaction:
                connection.execute("ROLLBACK")
            connection.close()
        assert _vfs is not None  # noqa: S101  # made by the first database
        _vfs.files.pop(self._name, None)

    @staticmethod
    def _broken(error: Exception) -> Exception:
        # An error of the sealed file's own comes through SQLite as the cause; that one says more.
        below = error.__context__ or error.__cause__
        while below is not None:
            if not isinstance(below, apsw.Error):
                return below if isinstance(below, Exception) else error
            below = below.__context__ or below.__cause__
        return FormatError(f"vault metadata: {error}", hint="made by something else, or by a newer strongroom")
