"""The tables of a CAS in PostgreSQL, where several instances behind a balancer share them.

Rules:

- A writing transaction is READ COMMITTED and begins by locking the head's row. All writers do, so from then on nothing
  changes, and each statement sees what the last one committed. (Under REPEATABLE READ whoever waited for the lock would
  have to begin again.) A reading one is REPEATABLE READ: head and rows are of one moment, and it waits for nobody.
- The head that was there at the start tells what became of a transaction. A connection that is lost is made again; if
  the head is still the old one, the transaction's statements are run once more, since nobody else has written. If it is
  another, the log tells: with the transaction's last entry in it, the commit had arrived; without, somebody else was
  first, and the transaction was not committed. Only if no connection can be made at all this is not known.
- An instance that stops in the middle (a paused machine, not a dead one, whose connection ends) holds the lock until
  the server ends its session; others wait longer than that.
- Statements that write answer nothing that is wanted, and wait to be sent until one reads, or the commit.
- The server is not trusted with more than keeping what it is given: `Rows` and `Log` find any other answer.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from strongroom.cas.files import RESTORE
from strongroom.cas.state.database import APPEND, MAGIC, OLDER, OTHER_VERSION, VERSION, Record, Table, Value
from strongroom.errors import DatabaseError, IntegrityError, MissingDependencyError, UsageError

if TYPE_CHECKING:
    from sqlalchemy import URL, Connection, Engine

SCHEMES = ("postgresql://", "postgres://")
_MAX_URL = 4096

_IDLE_MS = 5_000
_LOCK_MS = 10_000  # longer, so that those who wait outlast a session that is ended
_OPTIONS = (
    f"-c idle_in_transaction_session_timeout={_IDLE_MS} -c lock_timeout={_LOCK_MS} "
    # `on` is flushed here, and at the synchronous standby if there is one; a server's default may be less.
    "-c synchronous_commit=on"
)
_CONNECT = {
    "connect_timeout": 5,  # seconds; libpq's least is 2
    "tcp_user_timeout": 10_000,  # milliseconds until what nobody acknowledges is a lost connection
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "application_name": "strongroom-cas",
}
_UNSENT = 128
_TYPES = {"TEXT": 'TEXT COLLATE "C"', "INTEGER": "BIGINT", "BLOB": "BYTEA"}

_PRESENT = "SELECT to_regclass('strongroom') IS NOT NULL"
_HEAD = "SELECT box FROM head WHERE id = 1"
_PUT_HEAD = "INSERT INTO head VALUES (1, ?) ON CONFLICT (id) DO UPDATE SET box = excluded.box"


def read_url(text: str) -> str:
    """The URL that a `--database` means: itself, or what a file says that only its owner reads.

    Raises:
        UsageError: it is none, or holds a password where others see it.
    """
    if text.startswith(SCHEMES):
        parts = urlsplit(text)
        if parts.password is not None or "password" in parse_qs(parts.query):
            raise UsageError(
                "database: the URL on the command line holds a password, which others on this machine can see",
                hint="put it into ~/.pgpass or the file that PGPASSFILE names; or give the path of a file with the URL",
            )
        return text
    path = Path(text)
    try:
        with path.open("r", encoding="utf-8") as file:
            if stat.S_IMODE(path.stat().st_mode) & 0o077:
                raise UsageError(f"database: others may read {path}", hint=f"chmod 600 {path}")
            url = file.read(_MAX_URL + 1).strip()
    except (OSError, UnicodeDecodeError):
        url = ""
    if not url.startswith(SCHEMES) or len(url) > _MAX_URL:
        raise UsageError(
            "database: wanted postgresql://USER@HOST/NAME, or the path of a file that holds such a URL",
            hint="without --database the CAS keeps its state in SQLite, in its directory",
        )
    return url


class Postgres:
    """One connection to a server, made again when it is lost.

    Args:
        url: ``postgresql://``, as libpq understands it.

    Raises:
        MissingDependencyError: the extra ``postgres`` is not installed.
        DatabaseError: the server cannot be reached.
    """

    incremental = True

    def __init__(self, url: str) -> None:
        try:
            import psycopg
            import sqlalchemy
        except ModuleNotFoundError as error:
            raise MissingDependencyError(
                f"database: {error.name} is not installed, and PostgreSQL needs it",
                hint="pip install 'strongroom[postgres]'",
            ) from None
        self._sql = sqlalchemy
        self._failure = psycopg.Error
        parsed = self._parse(url)
        self.name = f"postgresql://{parsed.host or 'localhost'}/{parsed.database or ''}"
        self.gone = (
            f"{self.name}: has no tables of a CAS, and this CAS had some: its policies, secrets and log are gone"
        )
        given = parsed.query.get("options", ())
        options = " ".join([*([given] if isinstance(given, str) else given), _OPTIONS])
        self._engine: Engine = sqlalchemy.create_engine(
            parsed,
            poolclass=sqlalchemy.NullPool,  # one connection, whose transaction it is
            isolation_level="AUTOCOMMIT",  # SQLAlchemy's word for: BEGIN and COMMIT are said here
            connect_args={**_CONNECT, "options": options},
            hide_parameters=True,
        )
        self._connection: Connection | None = None
        self._open = False
        self._writes = False
        self._old: bytes | None = None  # the head at the transaction's start
        self._head: bytes | None = None  # the head now
        self._statements: list[tuple[str, Sequence[Value]]] = []  # that the transaction wrote with
        self._sent = 0  # how many of them
        try:
            self._attempt(lambda: self._run("SELECT 1"))
            if self._run("SHOW fsync")[0][0] != "on":
                raise UsageError(
                    f"{self.name}: has fsync off, and would lose what it confirmed", hint="set fsync = on there"
                )
        except BaseException:
            self.close()
            raise

    def _parse(self, url: str) -> URL:
        try:
            return self._sql.make_url(url).set(drivername="postgresql+psycopg")
        except (self._sql.exc.ArgumentError, ValueError):
            raise UsageError("database: is not a URL", hint="wanted postgresql://USER@HOST/NAME") from None

    @property
    def in_transaction(self) -> bool:
        return self._open

    def prepare(self, tables: Sequence[Table], *, new: bool) -> bool:
        self._attempt(lambda: self._run("BEGIN"))
        self._open, self._writes, self._old, self._head = True, True, None, None
        self._statements, self._sent = [], 0
        # One instance makes the tables; one that starts at the same time waits, and finds them.
        self._once("SELECT pg_advisory_xact_lock(?)", (MAGIC,))
        if self._once(_PRESENT)[0][0]:
            (version,) = self._once("SELECT version FROM strongroom")[0]
            if version not in (*OLDER, VERSION):
                raise IntegrityError(f"{self.name}: got version {version}, wanted {VERSION}", hint=OTHER_VERSION)
            if version != VERSION:
                self._make(tables)
                self._once("UPDATE strongroom SET version = ?", (VERSION,))
            return False
        if not new:
            raise IntegrityError(self.gone, hint=f"{RESTORE}; or start another CAS in another directory")
        self._make(tables)
        self._once("CREATE TABLE strongroom (version BIGINT NOT NULL)")
        self._once("INSERT INTO strongroom VALUES (?)", (VERSION,))
        return True

    def _make(self, tables: Sequence[Table]) -> None:
        """Those that are not there yet."""
        for table in tables:
            columns = ", ".join(f"{name} {_TYPES[kind]} NOT NULL" for name, kind in table.columns.items())
            self._once(f"CREATE TABLE IF NOT EXISTS {table.name} ({columns}, PRIMARY KEY ({', '.join(table.key)}))")

    def settle(self) -> None:
        pass

    def begin(self, *, write: bool) -> None:
        self._open = False
        self._writes, self._statements, self._sent = write, [], 0
        self._old = self._head = self._attempt(self._start)
        self._open = True

    def _start(self) -> bytes | None:
        if self._writes:
            self._run("BEGIN ISOLATION LEVEL READ COMMITTED")
            found = self._run(f"{_HEAD} FOR UPDATE")
        else:
            self._run("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            found = self._run(_HEAD)
        return bytes(found[0][0]) if found else None

    def _attempt(self, start: Any) -> Any:
        """Do what a transaction begins with, on a new connection if the one that was there is lost."""
        try:
            return start()
        except self._sql.exc.DBAPIError as error:
            if not self._lost():
                raise self._error(error) from None
        try:
            return start()
        except self._sql.exc.DBAPIError as error:
            raise self._error(error) from None

    def commit(self) -> None:
        if not self._open:
            raise self._failed("undid the transaction")
        try:
            self._send()
            self._run("COMMIT")
        except self._sql.exc.DBAPIError as error:
            if not self._lost():
                raise self._error(error) from None
            if not self._resume():
                self._once("COMMIT")
        finally:
            self._open = False

    def rollback(self) -> None:
        self._open = False
        if self._connection is not None:
            try:
                self._run("ROLLBACK")
            except (self._sql.exc.DBAPIError, DatabaseError):
                self._drop()

    def execute(self, statement: str, parameters: Sequence[Value] = ()) -> list[Record]:
        if not self._open:
            raise self._failed("undid the transaction")
        if not statement.startswith("SELECT"):
            self._statements.append((statement, parameters))
            if len(self._statements) - self._sent >= _UNSENT:
                self._send()
            return []
        self._send()
        try:
            return self._run(statement, parameters)
        except self._sql.exc.DBAPIError as error:
            if not self._lost():
                raise self._error(error) from None
            self._resume()
            return self._once(statement, parameters)

    def _send(self) -> None:
        """Send what was not sent yet, all of it before the first answer.

        An answer that is an error comes when others have gone after it, so that it undoes the transaction: the tables
        are not those of a CAS any more.
        """
        unsent, self._sent = self._statements[self._sent :], len(self._statements)
        if not unsent:
            return
        if self._connection is None or self._connection.connection.dbapi_connection is None:
            self._resume()
            return
        raw: Any = self._connection.connection.dbapi_connection
        try:
            with raw.pipeline(), raw.cursor() as cursor:
                for statement, parameters in unsent:
                    cursor.execute(statement.replace("?", "%s"), tuple(parameters))
        except self._failure as error:
            if not self._lost():
                self._open = False
                raise self._error(error) from None
            self._resume()

    def execute_many(self, statement: str, parameters: Iterable[Sequence[Value]]) -> None:
        for each in parameters:
            self.execute(statement, each)

    def head(self) -> bytes | None:
        return self._head

    def put_head(self, box: bytes) -> None:
        self.execute(_PUT_HEAD, (box,))
        self._head = box

    def moment(self) -> object:
        """The head, whose box has a new nonce each time."""
        return self._head

    def glance(self) -> object:
        return None

    def close(self) -> None:
        self._drop()
        self._engine.dispose()

    def _resume(self) -> bool:
        """On a new connection, come back to where the lost one was. Whether the commit had arrived after all.

        Raises:
            DatabaseError: that is not possible; the transaction is undone.
        """
        self._open = False
        try:
            now = self._start()
            if now == self._old:
                for statement, parameters in self._statements:
                    self._run(statement, parameters)
                self._open = True
                return False
            arrived = self._arrived()
            self._run("ROLLBACK")
        except self._sql.exc.DBAPIError as error:
            self._drop()
            raise self._error(error) from None
        if arrived:
            return True
        raise self._failed("the connection was lost, and another instance has written meanwhile")

    def _arrived(self) -> bool:
        """Whether the last entry that the transaction wrote is in the log."""
        entries = [parameters for statement, parameters in self._statements if statement == APPEND]
        if not entries:
            return False
        number, *_, salt = entries[-1]
        return self._run("SELECT salt FROM log WHERE number = ?", (number,)) == [(salt,)]

    def _once(self, statement: str, parameters: Sequence[Value] = ()) -> list[Record]:
        try:
            return self._run(statement, parameters)
        except self._sql.exc.DBAPIError as error:
            raise self._error(error) from None

    def _run(self, statement: str, parameters: Sequence[Value] = ()) -> list[Record]:
        if self._connection is None:
            self._connection = self._engine.connect()
        result = self._connection.exec_driver_sql(statement.replace("?", "%s"), tuple(parameters))
        return [tuple(row) for row in result] if result.returns_rows else []

    def _lost(self) -> bool:
        """Whether the connection is of no use any more. Then it is dropped."""
        raw = None if self._connection is None or self._connection.invalidated else self._connection.connection
        if raw is not None and raw.dbapi_connection is not None and not raw.dbapi_connection.closed:
            return False
        self._drop()
        return True

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.invalidate()
            connection.close()

    def _failed(self, what: str) -> DatabaseError:
        return DatabaseError(f"{self.name}: {what}; nothing was changed", hint="ask again")

    def _error(self, error: Any) -> Exception:
        """What the driver says, without what the statement was about."""
        said_by = getattr(error, "orig", error)
        state = str(getattr(said_by, "sqlstate", None) or "")
        said = (str(said_by).splitlines() or [""])[0][:200]
        if state[:2] in ("22", "23", "42"):  # data exception, constraint violation, undefined table or no permission
            return IntegrityError(f"{self.name}: {said}", hint=RESTORE)
        if state == "55P03":  # lock_not_available
            return self._failed("another instance holds the head's row for too long")
        return DatabaseError(f"{self.name}: {said}", hint="see whether it runs, and accepts this CAS; then ask again")
