"""Transactions over a CAS's rows and its log, which change together or not at all.

Rules:

- A change and its log entry share one transaction, which is on the disk before the change is confirmed.
- Rows are AEAD boxes under the CAS's key, bound to their table, row and log entry; the log's head, a box too, stands
  for all of them and for the log (`rows.py`, `log_store.py`): without that key no row can be read, altered, moved,
  removed or put back, and the log's end cannot be cut off.
- What is in memory is the state at the head. Whatever undoes a transaction, or a part of one, undoes it there too.
- A transaction is of one thread, and does not outlast an `await`. A group, of all transactions that an event loop's
  turn has room for, does: it is committed by `flush`, and nothing that was written or read since it began may be told
  to anybody before that.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from strongroom.cas.files import RESTORE
from strongroom.cas.log.entry import LogEntry
from strongroom.cas.log.head import NO_ENTRIES, Head
from strongroom.cas.state.database import Database
from strongroom.cas.state.log_store import Log
from strongroom.cas.state.rows import Rows
from strongroom.errors import DatabaseError, TamperedError, WrongKeyError

Change = tuple[str, str, str | int, bytes | None]
"""Of a row: its table, the two parts of its key, and what it shall hold; None to remove it."""

_log = logging.getLogger("strongroom.cas")
_PAGE = 1000
_LAST = "last"
"""A row of `names`: empty, written by a policy's last entry."""


class Ledger:
    """The rows and the log of one CAS. Calls may come from several threads.

    Args:
        database: in the transaction of its `prepare`, which this commits.
        made: whether its tables were made in that transaction.

    Raises:
        WrongKeyError: the database was made under another key.
        IntegrityError: the log or the rows are not what the head stands for.
    """

    def __init__(self, database: Database, key: bytes, *, made: bool) -> None:
        self._db = database
        self._rows, self._log = Rows(key), Log(key)
        self._lock = threading.RLock()
        self._moment: object = None  # of the database, which `_rows` and `_log` hold; None: they must be loaded
        self._highest = NO_ENTRIES  # the head of the last state that this process has read or committed
        self._began = self._log.mark()
        self._depth = 0  # of writing transactions; -1 in one that only reads
        self._changed = False  # whether the one that is open has changed what the head stands for
        self._afterwards: list[Callable[[bool], None]] = []
        self._group: Callable[[], bool] | None = None
        self._grouping = 0  # the thread whose group is open
        self.grouped = 0
        """How many transactions joined groups so far."""
        if made:
            self._log.seal(database, self._rows.total)
        database.commit()

    def close(self) -> None:
        with self._lock:
            self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """What is done in here is durable at its end, or after the group that it joins; if it raises, it never was.

        Within another one it is a part of that one, and undone alone.

        Raises:
            DatabaseError: the database cannot be used now; nothing was changed.
        """
        with self._lock:
            if self._depth == 0 and self._group is not None and self._group():
                self._begin()
                self._grouping = threading.get_ident()
                self._lock.acquire()  # until `flush`
            if self._depth == 0:
                self._begin()
                try:
                    yield
                    self._commit()
                except BaseException:
                    self._undo_all()
                    raise
                finally:
                    self._depth = 0
            else:
                with self._part():
                    yield

    @contextmanager
    def _part(self) -> Iterator[None]:
        if self._depth < 0:
            raise RuntimeError("transaction: begun in one that only reads")
        self._still_open()
        before, name, changed = (self._log.mark(), self._rows.mark()), f"part{self._depth}", self._changed
        waiting = len(self._afterwards)
        self._db.execute(f"SAVEPOINT {name}")
        self.grouped += self._depth == 1
        self._depth += 1
        try:
            yield
            self._db.execute(f"RELEASE SAVEPOINT {name}")
        except BaseException:
            self._log.undo(before[0])
            self._rows.undo(before[1])
            self._changed = changed
            self._tell(False, waiting)
            if self._db.in_transaction:  # else all of it is undone already, and its end says so
                self._db.execute(f"ROLLBACK TO SAVEPOINT {name}")
                self._db.execute(f"RELEASE SAVEPOINT {name}")
            raise
        finally:
            self._depth -= 1

    def _begin(self) -> None:
        try:
            self._db.begin(write=True)
            self._catch_up()
        except BaseException:
            self._db.rollback()
            raise
        self._began, self._changed, self._depth = self._log.mark(), False, 1

    def _commit(self) -> None:
        self._still_open()
        if self._changed:
            self._log.seal(self._db, self._rows.total)
        moment, self._moment = self._db.moment(), None  # while it is not known what a commit has done
        self._db.commit()
        self._rows.committed()
        self._moment, self._highest = moment, self._log.head()
        self._tell(True)

    def _undo_all(self) -> None:
        self._db.rollback()
        self._log.undo(self._began)
        self._rows.undo()
        self._tell(False)

    def afterwards(self, tell: Callable[[bool], None]) -> None:
        """For what hangs on this transaction and is not in the database.

        Args:
            tell: called once, with whether it was committed, as soon as that is known. It may not use the database.
        """
        with self._lock:
            if self._depth < 1:
                raise RuntimeError("afterwards: wanted a transaction")
            self._afterwards.append(tell)

    def _tell(self, committed: bool, since: int = 0) -> None:
        told, self._afterwards[since:] = self._afterwards[since:], []
        for tell in told:
            try:
                tell(committed)
            except Exception:  # what is committed is committed
                _log.exception("after a transaction: failed")

    def _still_open(self) -> None:
        if not self._db.in_transaction:
            raise DatabaseError(f"{self._db.name}: undid the transaction; nothing was changed", hint="ask again")

    # Groups

    def group(self, schedule: Callable[[], bool]) -> None:
        """From now on transactions are grouped where `schedule` says so.

        Args:
            schedule: called before each transaction that would begin a group. Where it says True, it sees to it that
                this thread calls `flush` soon.
        """
        with self._lock:
            self._group = schedule

    def in_group(self) -> bool:
        """Whether this thread has a group open."""
        return self._grouping == threading.get_ident()

    def flush(self) -> None:
        """Commit this thread's group.

        Raises:
            DatabaseError: it could not be committed; nothing of it was.
        """
        if not self.in_group() or self._depth != 1:
            raise RuntimeError("flush: wanted a group of this thread, and no transaction in it")
        try:
            self._commit()
        except BaseException:
            self._undo_all()
            raise
        finally:
            self._depth = self._grouping = 0
            self._lock.release()

    # Reading

    @contextmanager
    def reading(self) -> Iterator[None]:
        """All that is read in here is of one moment, and takes one look at the database. Nothing may be written."""
        with self._reading():
            yield

    @contextmanager
    def _reading(self) -> Iterator[Database]:
        """A transaction that writes nothing, or what is left of the one that this thread is in."""
        with self._lock:
            if self._depth:
                self._still_open()
                yield self._db
                return
            self._depth = -1  # no transaction begins in here
            try:
                self._db.begin(write=False)
                self._catch_up()
                yield self._db
            finally:
                self._depth = 0
                self._db.rollback()

    def _refresh(self) -> None:
        """Take in what others have written since: what is in memory is then of one moment. Under the lock."""
        if self._depth:
            self._still_open()
        elif self._moment is None or self._db.glance() != self._moment:
            with self._reading():
                pass

    def _catch_up(self) -> None:
        """Take in what others have written since, or what is there at first.

        Raises:
            RollbackError: it does not extend what this process has seen.
        """
        moment, since = self._db.moment(), self._log.size
        if moment == self._moment:
            return
        known, self._moment = self._moment is not None, None
        try:
            total = self._log.load(self._db)
        except TamperedError:
            raise WrongKeyError(
                f"root secret: is not the one that {self._db.name} was made with, or its head was changed", hint=RESTORE
            ) from None
        if known and self._db.incremental:
            self._rows.load_since(self._db, total, since)
        else:
            self._rows.load(self._db, total)
        self._log.check(self._db, self._highest)
        self._moment, self._highest = moment, self._log.head()

    # Rows

    def put_row(
        self,
        table: str,
        a: str,
        b: str | int,
        value: bytes,
        *,
        event: str,
        policy: str,
        detail: Mapping[str, object],
        now: int,
    ) -> None:
        """Write a row of a table of `rows.KEYS`, new or in place of what is there, and its log entry."""
        with self.transaction():
            self._changed = True
            self._rows.put(self._db, value, self._log.size + 1, table, a, b)
            self._append(event, policy, detail, now)

    def change_rows(
        self, changes: Sequence[Change], *, event: str, policy: str, detail: Mapping[str, object], now: int
    ) -> None:
        """Write and remove several rows in order, with one log entry for all; what is not there is not removed."""
        with self.transaction():
            self._changed = True
            for table, a, b, value in changes:
                if value is not None:
                    self._rows.put(self._db, value, self._log.size + 1, table, a, b)
                elif self._rows.entry(table, a, b):
                    self._rows.delete(self._db, self._log.size + 1, table, a, b)
            self._append(event, policy, detail, now)

    def delete_row(
        self, table: str, a: str, b: str | int, *, event: str, policy: str, detail: Mapping[str, object], now: int
    ) -> bool:
        """Remove a row, and write the log entry of that. Whether it was there; if not, nothing is changed."""
        with self.transaction():
            if not self._rows.entry(table, a, b):
                return False
            self._changed = True
            self._rows.delete(self._db, self._log.size + 1, table, a, b)
            self._append(event, policy, detail, now)
            return True

    def row(self, table: str, a: str, b: str | int) -> bytes | None:
        """What a row holds, or None if there is none.

        Raises:
            TamperedError: it is not what was stored in that row last.
        """
        with self._lock:
            self._refresh()
            if not self._rows.entry(table, a, b):
                return None
            with self._reading() as db:
                return self._rows.get(db, table, a, b)

    def row_keys(self, table: str, a: str) -> list[str]:
        """The second parts of the keys of a table's rows whose first part is `a`, in order."""
        with self._lock:
            self._refresh()
            return [str(key) for key in self._rows.keys(table, a)]

    def row_stamp(self, table: str, a: str, b: str) -> tuple[int, bytes] | None:
        """What tells the present writing of a row from every other, or None if there is no such row."""
        with self._lock:
            self._refresh()
            return self._rows.stamps(table, a).get(b)

    def row_stamps(self, table: str, a: str) -> dict[str, tuple[int, bytes]]:
        """The same of all rows of a table whose first part is `a`, by the second part."""
        with self._lock:
            self._refresh()
            return {str(b): stamp for b, stamp in self._rows.stamps(table, a).items()}

    def row_groups(self, table: str) -> list[str]:
        """The first parts of the keys of a table's rows, in order."""
        with self._lock:
            self._refresh()
            return self._rows.firsts(table)

    def verify_all(self) -> int:
        """Open every row and look through the whole log. The number of its entries.

        Raises:
            IntegrityError: something is not what was written there.
        """
        with self._reading() as db:
            self._rows.verify(db)
            size = self._log.size
            for after in range(0, size, _PAGE):
                self._log.page(db, after, _PAGE)
            return size

    # Log

    def record(self, event: str, policy: str, detail: Mapping[str, object], *, now: int) -> None:
        """Append an entry to the audit log."""
        with self.transaction():
            self._append(event, policy, detail, now)

    def _append(self, event: str, policy: str, detail: Mapping[str, object], now: int) -> None:
        self._changed = True
        previous = self._rows.entry("names", policy, _LAST)
        self._log.append(self._db, now, event, policy, detail, previous)
        self._rows.put(self._db, b"", self._log.size, "names", policy, _LAST)

    def log(self, *, after: int = 0, limit: int = 1000) -> list[LogEntry]:
        """At most `limit` entries in order, those after number `after`.

        Raises:
            IntegrityError: an entry was changed or removed.
        """
        with self._reading() as db:
            return self._log.page(db, after, limit)

    def head(self) -> Head:
        """Size and root of the log."""
        with self._lock:
            self._refresh()
            return self._log.head()

    def check_head(self, seen: Head) -> Head:
        """Size and root of the log, if it extends what somebody has seen.

        Raises:
            RollbackError: it does not.
        """
        with self._lock:
            self._refresh()
            if self._log.remembers(seen):
                return self._log.head()
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
