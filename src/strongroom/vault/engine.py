"""The commit domain of a vault: opening it, the commit, the intent log, and other processes that do the same.

Rules:

- Only `meta` has slots. A commit is: data files synced -> directory synced -> blocks of `meta` -> sync -> slot -> sync
  -> anchor; only then is the log started over, and data files that no live root names are unlinked.
- The lock is held for a commit, not for an opening. Before it a process writes only data files of its own, or free
  places of a data file whose inode it has locked, and no block of `meta`.
- The log has one owner. Records always stand on the newest commit: the owner appends under the commit lock, and nobody
  else commits while there are records that no commit has taken in, unless the owner is dead: then they take them in.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator

from strongroom.errors import CasError, ConflictError, LockedError, RollbackError, StrongroomError, UsageError
from strongroom.sealed import Anchor, NoFreshness, Root
from strongroom.sealed.layout import MIN_BLOCK
from strongroom.sealed.opening import open_in
from strongroom.storage import LOCKS_AT, Directory
from strongroom.vault.files import Files
from strongroom.vault.log import MAX_RECORD, NO_TAG, Log, log_cipher
from strongroom.vault.rows import ROOT_INODE, Change, Inode, pack_change, parse_change
from strongroom.vault.state import State
from strongroom.vault.upkeep import compact, rewrite_all

META = "meta"
LOG = "log"
MAX_LOG = 64 << 20
MAX_FSYNC = 1 << 20

_COMMIT_BYTE = LOCKS_AT + (1 << 61) + 1
_LOG_BYTE = _COMMIT_BYTE + 1
_WANTED_BYTE = _COMMIT_BYTE + 2
_PATIENCE = 30.0
_REKEY_STEP = 1024

_logger = logging.getLogger("strongroom.vault")


class Engine:
    """A vault's commits. The base of `Vault`, which says what the arguments are."""

    def __init__(
        self,
        directory: Directory,
        mode: str,
        key: bytes,
        anchor: Anchor | NoFreshness,
        *,
        what: str,
        log: bool = False,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self._directory = directory
        self._mode = mode
        self._key = key
        self._anchor = anchor
        self._what = what
        self._clock = clock
        self._lock = threading.RLock()
        self._closed = False
        self._broken = False
        self._undecided = False  # a commit is on the disk, and the anchor has not answered
        self._untold = False  # a record is in the log, and the anchor has not answered
        self._dead: list[bytes] = []
        self._ordered: set[int] = set()  # files whose content must be durable no later than their new name
        self._log: Log | None = None
        self._keeps_log = False
        self._meta = open_in(
            directory,
            META,
            mode,  # type: ignore[arg-type]
            key,
            anchor,
            MIN_BLOCK,
            what=f"{what}: {META}",
            expected=True,
            shared=True,
            write_early=False,
        )
        try:
            self._locks = self._meta.locks
            self._state = self._read_state()
            self._files = self._make_files()
            if mode == "x":
                self._make_top()
            else:
                self._recover()
            if log:
                self._own_log()
        except BaseException:
            self._give_back()
            raise

    def _read_state(self) -> State:
        root = self._meta.root
        return State(self._meta, root.sequence if root else 0, writable=self._mode != "r")

    def _make_files(self) -> Files:
        return Files(
            self._directory,
            self._state,
            locks=self._locks if self._mode != "r" else None,
            catch_up=self._catch_up,
            live=self._meta.live_sequences,
            clock=self._clock,
            what=self._what,
        )

    def _make_top(self) -> None:
        now = self._clock()
        owner = (os.getuid(), os.getgid()) if hasattr(os, "getuid") else (0, 0)
        self._state.add(Inode(ROOT_INODE, 0o040755, 1, *owner, 0, now, now, now, None, 0))

    # What it is.

    @property
    def root(self) -> Root | None:
        """The root of the newest committed version (of the one that is read, in a reader); None before the first."""
        return self._meta.root

    @property
    def name(self) -> str:
        return self._what

    @property
    def mode(self) -> str:
        return self._mode

    @property
    def directory(self) -> Directory:
        """Where the sealed bytes are."""
        return self._directory

    @property
    def notes(self) -> list[str]:
        """What was found and mended at opening, for a person to read."""
        return list(self._meta.notes)

    @property
    def changed(self) -> bool:
        """Whether there is anything to commit."""
        return self._state.changed or any(node.dirty for node in self._files.nodes.values())

    # The commit.

    def commit(self) -> Root:
        """Make the vault, as it is now, the newest version, durably and atomically; return its root.

        Files that are open for writing are part of it as they are, but for those opened with ``wb``.

        Raises:
            OSError: the storage failed; the vault is of no use afterwards, the last commit or this one is on the disk.
            ConflictError: another process committed a change of the same name or file. Likewise, and this commit is
                not on the disk.
            CasError: the anchor did not answer. The commit is on the disk and undecided; call `commit` again.
        """
        with self._lock:
            self._usable(to_write=True)
            if self._undecided:
                return self._finish()
            self._tell()
            if not self.changed and self._meta.root is not None and not (self._log and self._log.length):
                return self._meta.commit()
            with self._breaking():
                self._files.settle()
                self._files.sync()
                with self._commit_lock():
                    self._dead = self._state.flush(self._meta.live_sequences(after_commit=True))
                    self._undecided = True
                    return self._finish()

    def _finish(self) -> Root:
        root = self._meta.commit(log=self._position())
        self._undecided = False
        self._state.committed()
        self._files.committed(self._dead)
        self._ordered.clear()
        if self._log:
            self._log.start_over()
            if not self._keeps_log:
                self._release_log()
        return root

    @contextlib.contextmanager
    def _breaking(self) -> Iterator[None]:
        """What fails in here leaves nothing that could be committed later."""
        self._broken = True
        try:
            yield
        except BaseException as error:
            # An anchor that did not answer can be asked again; one that holds something else never will agree.
            waits = isinstance(error, CasError) and not isinstance(error, ConflictError)
            self._broken = not (waits and (self._undecided or self._untold))
            raise
        self._broken = False

    @contextlib.contextmanager
    def _commit_lock(self) -> Iterator[None]:
        """Hold the commit lock, on top of the newest commit, with every record of the log taken in."""
        if self._locks is None:
            yield
            return
        deadline = time.monotonic() + _PATIENCE
        while True:
            self._locks.acquire(_COMMIT_BYTE, exclusive=True, wait=True)
            try:
                self._rebase()
                if self._log is not None or not self._log_pending() or self._take_log():
                    yield
                    return
            finally:
                self._locks.release(_COMMIT_BYTE)
            # The owner of the log is alive: ask it to commit first.
            self._locks.acquire(_WANTED_BYTE, exclusive=False, wait=True)
            try:
                while self._log_pending():
                    if time.monotonic() > deadline:
                        raise LockedError(
                            f"{self._what}: a mount has not committed for {_PATIENCE:.0f} s",
                            hint="unmount it, or see whether its process is stopped",
                        )
                    time.sleep(0.01)
            finally:
                self._locks.release(_WANTED_BYTE)

    def _catch_up(self) -> None:
        """Go on from the newest commit, if another process made one."""
        if self._locks is not None and self._meta.root is not None:
            self._rebase()

    def _rebase(self) -> None:
        if self._meta.root is None or not self._meta.moved():
            return
        pending = self._state.pending()
        packs = self._state.new_packs
        self._state.close()
        self._meta.reload()
        self._state = self._read_state()
        self._state.new_packs = packs
        try:
            self._state.replay(pending)
        except StrongroomError:
            self._broken = True
            raise
        self._files.reload(self._state)
        if self._log:
            self._log.lsn, self._log.tag = self._meta.log_position

    def rekey(self, key: bytes, progress: Callable[[int], None] = lambda size: None) -> Root:
        """Seal everything anew, so that whoever knew the old key can read nothing that is on the disk after it.

        What they have copied before stays theirs. It takes as much space again while it runs; should it be cut short,
        the old key stays the vault's, and one begins again. Key slots wrap the old key: make new ones.

        Args:
            key: the new vault key, 32 bytes.
            progress: told of the length of each file that is done.

        Raises:
            LockedError: another process is writing to a file or owns the log.
        """
        with self._lock:
            self._usable(to_write=True)
            if self._log is None and self._locks is not None and self._locks.holders(_LOG_BYTE, _LOG_BYTE):
                raise LockedError(f"{self._what}: is mounted for writing", hint="unmount it first")
            rewrite_all(self, progress)
            with self._breaking(), self._commit_lock():
                self._meta.rekey(key)
                self._meta.commit(log=self._position())
                while self._meta.rekey_step(_REKEY_STEP):
                    self._meta.commit(log=self._position())
                # The second takes the place of the version before, after which the old key is not needed.
                self._meta.commit(log=self._position())
                self._key = key
                self._state.base = self._meta.root.sequence if self._meta.root else 0
                while self._meta.rekeying:
                    self._state.set_info("key", self._state.base.to_bytes(8, "little"))
                    self._state.flush(self._meta.live_sequences(after_commit=True))
                    self._meta.commit(log=self._position())
                    self._state.committed()
                if self._log:
                    lsn, tag = self._log.lsn, self._log.tag
                    self._log.close()
                    self._log = self._open_log("r+")
                    self._log.lsn, self._log.tag = lsn, tag
            return self._meta.root  # type: ignore[return-value]

    def _position(self) -> tuple[int, bytes]:
        return (self._log.lsn, self._log.tag) if self._log else self._meta.log_position

    def compact(self) -> int:
        """Give back space that nothing needs; by how many bytes the vault's files are smaller now."""
        return compact(self)

    def _compact_meta(self) -> None:
        with self._breaking(), self._commit_lock():
            self._meta.compact()
            self._state.base = self._meta.root.sequence if self._meta.root else 0

    # The log.

    def fsync(self, number: int | None = None) -> None:
        """Make what was written to an inode durable, and every change of names before it.

        Without a log that is a commit.

        Raises:
            As `commit`.
        """
        with self._lock:
            self._usable(to_write=True)
            if self._log is None or self._locks is None or self._undecided:
                self.commit()
                return
            self._tell()
            numbers = set(self._ordered)
            if number is not None:
                numbers.add(number)
            nodes = [node for n in numbers if (node := self._files.nodes.get(n)) and node.unlogged]
            rows = len(self._state.unlogged_inodes) + len(self._state.unlogged_entries)
            if not nodes and not rows:
                return
            if (
                sum(node.unlogged_bytes for node in nodes) + 400 * rows > MAX_FSYNC
                or self._log.length > MAX_LOG
                or self.is_wanted()
            ):
                self.commit()
                return
            with self._breaking():
                self._locks.acquire(_COMMIT_BYTE, exclusive=True, wait=True)
                try:
                    self._rebase()
                    change = self._state.take_unlogged()
                    change.data = [node.take_change() for node in nodes]
                    self._ordered.clear()
                    record = pack_change(change)
                    if len(record) > MAX_RECORD:
                        raise UsageError(f"log record: {len(record)} bytes, wanted at most {MAX_RECORD}")
                    self._log.append(record)
                    self._untold = True
                    self._tell()
                finally:
                    self._locks.release(_COMMIT_BYTE)

    def _tell(self) -> None:
        """Tell the anchor how far the log reaches, if it has not been told."""
        if self._untold and self._log:
            self._meta.note_log(self._log.lsn, self._log.tag)
        self._untold = False

    def is_wanted(self) -> bool:
        """Whether another process waits for this one, which owns the log, to commit."""
        return self._locks is not None and bool(self._locks.holders(_WANTED_BYTE, _WANTED_BYTE))

    def is_outdated(self) -> bool:
        """Whether another process has committed since."""
        with self._lock:
            return self._locks is not None and self._meta.root is not None and self._meta.moved()

    def _own_log(self) -> None:
        if self._locks is None or self._files.write_once:
            return  # every fsync is a commit then
        if self._log is None and not self._take_log():
            raise LockedError(f"{self._what}: is mounted for writing already", hint="use that mount")
        self._keeps_log = True

    def _take_log(self) -> bool:
        """Become the owner of the log, and take in what a dead one left; False if there is a living one."""
        assert self._locks is not None  # noqa: S101  # the callers have looked
        if not self._locks.acquire(_LOG_BYTE, exclusive=True):
            return False
        self._log = self._open_log("r+")
        for record in self._log.records():
            self._replay(parse_change(record))
        return True

    def _release_log(self) -> None:
        if self._log:
            self._log.close()
            self._log = None
            self._keeps_log = False
            if self._locks:
                self._locks.release(_LOG_BYTE)

    def _open_log(self, mode: str) -> Log:
        try:
            storage = self._directory.open(LOG, mode, shared=True)  # type: ignore[arg-type]
        except FileNotFoundError:
            if mode == "r":
                raise
            storage = self._directory.open(LOG, "x", shared=True)
            self._directory.sync()
        lsn, tag = self._meta.log_position
        return Log(storage, log_cipher(self._key, self._meta.file_id), self._meta.file_id, lsn, tag or NO_TAG)

    def _log_pending(self) -> bool:
        """Whether the log holds a record that the newest commit has not taken in."""
        self._catch_up()
        try:
            log = self._open_log("r")
        except FileNotFoundError:
            return False
        try:
            return next(log.records(), None) is not None
        finally:
            log.close()

    def _replay(self, change: Change) -> None:
        for inode in change.inodes:
            if not inode.mode and not inode.links:
                self._files.drop(inode.id)
        self._state.apply(change)
        for data in change.data:
            if self._state.find(data.inode) is not None:
                self._files.node(data.inode).replay(data)

    def _recover(self) -> None:
        """Take in what the log of a dead process holds, and check that what the anchor wants is there."""
        count = self._count_records()
        while count is None:
            # Its owner may have committed and started the log over since the slots were read.
            if not self._meta.moved():
                raise RollbackError(
                    f"{self._what}: the log ends before what the anchor holds",
                    hint="the log was cut or rolled back; restore the latest version",
                )
            self._read_again()
            count = self._count_records()
        if not count or self._locks is None or self._locks.holders(_LOG_BYTE, _LOG_BYTE):
            return
        if self._mode == "r":
            self._recover_for_reader()
            return
        if self._take_log():
            _logger.warning("%s: %d fsyncs after the last commit were recovered from the log", self._what, count)
            self.commit()

    def _count_records(self) -> int | None:
        """How many records no commit has taken in; None if what the anchor wants is neither taken in nor among them."""
        wanted = self._meta.wanted_log
        try:
            log = self._open_log("r")
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

    def _read_again(self) -> None:
        """Go on from the newest commit; there are no changes."""
        self._files.discard()
        self._state.close()
        if self._mode == "r":
            self._meta.refresh()
        else:
            self._meta.reload()
        self._state = self._read_state()
        self._files = self._make_files()

    def refresh(self) -> bool:
        """Go on from the newest commit, and say whether another process has made one since.

        In a vault open for writing, what was changed since the last commit is made again on top of it.

        Raises:
            ConflictError: both changed the same name or file.
            UsageError: files of a vault that is open for reading are open.
        """
        with self._lock:
            self._usable()
            if not self.is_outdated():
                return False
            if self._mode != "r":
                self._rebase()
            elif any(node.handles for node in self._files.nodes.values()):
                raise UsageError(f"{self._what}: files of it are open", hint="close them, then refresh")
            else:
                self._read_again()
            return True

    def _recover_for_reader(self) -> None:
        try:
            with type(self)(self._directory, "r+", self._key, self._anchor, what=self._what):
                pass
        except OSError as error:
            raise UsageError(
                f"{self._what}: its log holds changes that no commit has taken in ({error})",
                hint='open it once with mode "r+" where it can be written',
            ) from None
        self._read_again()

    # The end.

    def close(self) -> None:
        """Commit what was changed, and give everything back. Closing twice is fine."""
        with self._lock:
            if self._closed:
                return
            try:
                if self._mode != "r" and not self._broken:
                    self.commit()
                    self._close_meta()
                elif self._broken and self.changed:
                    raise StrongroomError(
                        f"{self._what}: an earlier write or commit failed, so what came after the last is lost",
                        hint="open it again",
                    )
            finally:
                self.discard()

    def _close_meta(self) -> None:
        """Leave a second copy of the newest slot, unless another process has committed since and will do so."""
        if self._locks is None:
            self._meta.close()
            return
        self._locks.acquire(_COMMIT_BYTE, exclusive=True, wait=True)
        try:
            if self._meta.moved():
                self._meta.discard()
            else:
                self._meta.close()
        finally:
            if not self._meta.closed:
                self._locks.release(_COMMIT_BYTE)

    def discard(self) -> None:
        """Close without committing: the newest committed version stays the newest."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._give_back()

    def _give_back(self) -> None:
        if files := self.__dict__.get("_files"):
            files.discard()
        if state := self.__dict__.get("_state"):
            state.close()
        if self._log:
            self._log.close()
            self._log = None
        self._meta.discard()

    def __enter__(self):  # type: ignore[no-untyped-def]
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()

    def _usable(self, *, to_write: bool = False) -> None:
        if self._closed:
            raise ValueError(f"{self._what}: is closed")
        if to_write and self._mode == "r":
            raise UsageError(f"{self._what}: open for reading only", hint='open it with mode "r+"')
        if to_write and self._broken:
            raise StrongroomError(
                f"{self._what}: an earlier write or commit failed, so this opening commits no more",
                hint="open it again",
            )
