"""The log as one opening of a vault sees it: the right to write it, its records, and what the anchor knows of them."""

from __future__ import annotations

from collections.abc import Iterator

from strongroom.errors import UsageError
from strongroom.sealed import SealedFile
from strongroom.storage import LOCKS_AT, ByteLocks, Directory
from strongroom.vault.log import MAX_RECORD, NO_TAG, Log, log_cipher

LOG = "log"
COMMIT_BYTE = LOCKS_AT + (1 << 61) + 1
LOG_BYTE = COMMIT_BYTE + 1


class Journal:
    """Reads the log, and writes it once `acquire` has made this opening its owner. Used under the vault's lock.

    Args:
        locks: those of `meta`; None where the platform has none, and then nobody writes a log.
    """

    def __init__(self, directory: Directory, meta: SealedFile, locks: ByteLocks | None, key: bytes) -> None:
        self._directory = directory
        self._meta = meta
        self._locks = locks
        self._key = key
        self._log: Log | None = None
        self.untold = False  # a record is in the log, and the anchor has not answered

    @property
    def owned(self) -> bool:
        return self._log is not None

    @property
    def length(self) -> int:
        """Bytes of records that no commit has taken in, if this opening owns the log."""
        return self._log.length if self._log else 0

    @property
    def poisoned(self) -> bool:
        """Whether a sync of the log failed."""
        return bool(self._log and self._log.poisoned)

    @property
    def position(self) -> tuple[int, bytes]:
        """What a commit made now takes in: (lsn, tag)."""
        return (self._log.lsn, self._log.tag) if self._log else self._meta.log_position

    # Reading.

    def _open(self, *, write: bool = False) -> Log:
        try:
            storage = self._directory.open(LOG, "r+" if write else "r", shared=True)
        except FileNotFoundError:
            if not write:
                raise
            storage = self._directory.open(LOG, "x", shared=True)
            self._directory.sync()
        lsn, tag = self._meta.log_position
        return Log(storage, log_cipher(self._key, self._meta.file_id), self._meta.file_id, lsn, tag or NO_TAG)

    def count(self) -> int | None:
        """How many records no commit has taken in; None if what the anchor wants is neither taken in nor among them."""
        wanted = self._meta.wanted_log
        try:
            log = self._open()
        except FileNotFoundError:
            return None if wanted else 0
        found = wanted is None or wanted == (log.lsn, log.tag)
        count = 0
        try:
            for _ in log.records():
                count += 1
                found = found or wanted == (log.lsn, log.tag)
        finally:
            log.close()
        return count if found else None

    def pending(self) -> bool:
        """Whether the log holds a record that the newest commit, which this opening is at, has not taken in."""
        try:
            log = self._open()
        except FileNotFoundError:
            return False
        try:
            return next(log.records(), None) is not None
        finally:
            log.close()

    # Owning.

    def is_free(self) -> bool:
        """Whether no other opening owns the log."""
        return self._locks is None or not self._locks.holders(LOG_BYTE, LOG_BYTE)

    def acquire(self) -> bool:
        """Become the owner; False if another opening is. What the log holds then is to be taken in by `records`."""
        if self._log is None:
            if self._locks is None or not self._locks.acquire(LOG_BYTE, exclusive=True):
                return False
            self._log = self._open(write=True)
        return True

    def records(self) -> Iterator[bytes]:
        """The records that no commit has taken in; the position moves along."""
        if self._log:
            yield from self._log.records()

    def append(self, record: bytes) -> None:
        """Add a record durably, and tell the anchor.

        Raises:
            OSError: the log takes no further record.
            CasError: the anchor did not answer; `tell` asks again.
        """
        if self._log is None:
            raise ValueError("log: not owned")
        if len(record) > MAX_RECORD:
            raise UsageError(f"log record: {len(record)} bytes, wanted at most {MAX_RECORD}")
        self._log.append(record)
        self.untold = True
        self.tell()

    def tell(self) -> None:
        """Tell the anchor how far the log reaches, if it does not know."""
        if self.untold and self._log:
            self._meta.note_log(self._log.lsn, self._log.tag)
        self.untold = False

    def taken_in(self) -> None:
        """Note that a commit holds every record there is."""
        if self._log:
            self._log.start_over()

    def follow(self) -> None:
        """Note that this opening is at another commit now."""
        if self._log:
            self._log.lsn, tag = self._meta.log_position
            self._log.tag = tag or NO_TAG

    def rekeyed(self, key: bytes) -> None:
        """Note that the vault has another key; a commit has taken in every record."""
        self._key = key
        if self._log:
            self._log.close()
            self._log = self._open(write=True)

    def release(self) -> None:
        """Cease to be the owner."""
        if self._log:
            self._log.close()
            self._log = None
            if self._locks:
                self._locks.release(LOG_BYTE)

    def close(self) -> None:
        """Close the file; the lock ends with that of `meta`."""
        if self._log:
            self._log.close()
            self._log = None
