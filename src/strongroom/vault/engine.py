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
from typing import TYPE_CHECKING

from strongroom.errors import CasError, ConflictError, LockedError, RollbackError, StrongroomError, UsageError
from strongroom.sealed import Anchor, NoFreshness, Root
from strongroom.sealed.layout import MIN_BLOCK
from strongroom.sealed.opening import check_anchor, open_in
from strongroom.storage import Directory, is_full
from strongroom.vault.files import Files
from strongroom.vault.journal import COMMIT_BYTE, LOG_BYTE, Journal
from strongroom.vault.kind import meta_key
from strongroom.vault.log import MAX_RECORD
from strongroom.vault.rows import ROOT_INODE, Change, Inode, pack_change, parse_change
from strongroom.vault.state import State
from strongroom.vault.upkeep import compact, rekey

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

META = "meta"
MAX_LOG = 64 << 20
MAX_FSYNC = 1 << 20

_WANTED_BYTE = LOG_BYTE + 1
_PATIENCE = 30.0

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
        encrypted: bool = True,
        log: bool = False,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        check_anchor(anchor)
        self._directory = directory
        self._mode = mode
        self._key = key
        self._encrypted = encrypted
        self._anchor = anchor
        self._what = what
        self._clock = clock
        self._lock = threading.RLock()
        self._process = os.getpid()
        self._closed = False
        self._broken = False  # an attempt at a commit failed, and none can be made any more
        self._lost = False  # a sync failed
        self._undecided = False  # a commit is on the disk, and the anchor has not answered
        self._log_behind = False  # what counts as logged may not be
        self._dead: list[bytes] = []
        self._ordered: set[int] = set()  # files whose content must be durable no later than their new name
        self._meta = open_in(
            directory,
            META,
            mode,  # type: ignore[arg-type]
            self._meta_key,
            anchor,
            MIN_BLOCK,
            what=f"{what}: {META}",
            expected=True,
            shared=True,
            write_early=False,
        )
        try:
            self._locks = self._meta.locks
            self._journal = Journal(directory, self._meta, self._locks, self._meta_key)
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
            ready=lambda: self._usable(to_write=True),
            lost=self._lose,
            catch_up=self._catch_up,
            live=self._meta.live_sequences,
            clock=self._clock,
            encrypted=self._encrypted,
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
    def encrypted(self) -> bool:
        """Whether contents are ciphertext on the disk; else they are authenticated only."""
        return self._encrypted

    @property
    def _meta_key(self) -> bytes:
        return meta_key(self._key, encrypted=self._encrypted)

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
            self._journal.tell()
            if not self.changed and self._meta.root is not None and not self._journal.length:
                return self._meta.commit()
            with self._breaking(spared=lambda: True):
                self._files.settle()
            with self._breaking():
                self._files.sync()
            with self._breaking(spared=lambda: self._undecided and not self._meta.poisoned), self._commit_lock():
                self._dead = self._state.flush(self._meta.live_sequences(after_commit=True))
                self._files.naming()
                self._undecided = True
                return self._finish()

    def prepare(self) -> None:
        """Write contents durably, so that what is left for `commit` is small. Nothing that was changed counts before.

        Raises:
            OSError: the storage failed.
        """
        with self._lock:
            self._usable(to_write=True)
            with self._breaking(spared=lambda: True):
                self._files.settle()
            with self._breaking():
                self._files.sync()

    def _finish(self) -> Root:
        try:
            root = self._meta.commit(log=self._journal.position)
        except ConflictError:
            if self._meta.root is None or self._meta.root.sequence == self._state.base:
                self._files.not_named()  # another process had this number before anything of ours was written
            raise
        self._undecided = False
        self._state.committed(root.sequence)
        self._files.committed(self._dead)
        self._ordered.clear()
        self._journal.taken_in()
        self._log_behind = False
        return root

    def _decide(self) -> None:
        """Do again what a full disk or a silent anchor prevented: perhaps the slot is still to be written."""
        spared = self._breaking(spared=lambda: self._undecided and not self._meta.poisoned)
        with spared, self._holding(COMMIT_BYTE) if self._locks else contextlib.nullcontext():
            self._finish()

    @contextlib.contextmanager
    def _breaking(self, *, spared: Callable[[], bool] = lambda: False) -> Iterator[None]:
        """What fails in here leaves nothing that could be committed later.

        Args:
            spared: whether a disk that was found full has broken nothing: it was not a sync that failed.
        """
        self._broken = True
        try:
            yield
        except BaseException as error:
            # An anchor that did not answer can be asked again; one that holds something else never will agree.
            waits = isinstance(error, CasError) and not isinstance(error, ConflictError)
            again = waits and (self._undecided or self._journal.untold)
            tried = is_full(error) or isinstance(error, UsageError)  # too many versions are pinned
            self._broken = self._lost or not (again or (tried and spared()))
            raise
        self._broken = self._lost

    def _lose(self) -> None:
        self._broken = self._lost = True

    @contextlib.contextmanager
    def _commit_lock(self) -> Iterator[None]:
        """Hold the commit lock, on top of the newest commit, with every record of the log taken in."""
        if self._locks is None:
            yield
            return
        deadline = time.monotonic() + _PATIENCE
        while True:
            with self._holding(COMMIT_BYTE):
                self._rebase()
                if self._journal.owned or not self._journal.pending():
                    yield
                    return
            if self._journal.is_free():
                self._have_recovered()
                continue
            # The owner of the log is alive: ask it to commit first.
            if not self._locks.acquire(_WANTED_BYTE, exclusive=False):
                raise LockedError(f"{self._what}: byte {_WANTED_BYTE} is locked", hint="close what has locked it")
            try:
                while not self._journal.is_free() and self._is_pending():
                    if time.monotonic() > deadline:
                        raise LockedError(
                            f"{self._what}: a mount has not committed for {_PATIENCE:.0f} s",
                            hint="unmount it, or see whether its process is stopped",
                        )
                    time.sleep(0.01)
            finally:
                self._locks.release(_WANTED_BYTE)

    @contextlib.contextmanager
    def _holding(self, byte: int) -> Iterator[None]:
        assert self._locks is not None  # noqa: S101  # the callers have looked
        self._locks.acquire(byte, exclusive=True, wait=True)
        try:
            yield
        finally:
            self._locks.release(byte)

    def _is_pending(self) -> bool:
        self._rebase()
        return self._journal.pending()

    def _have_recovered(self) -> None:
        """Have what a dead process logged committed by itself, before what is changed here."""
        opening = type(self)(
            self._directory,
            "r+",
            self._key,
            self._anchor,
            what=self._what,
            encrypted=self._encrypted,
            clock=self._clock,
        )
        with opening:
            pass

    def _catch_up(self) -> None:
        """Go on from the newest commit, if another process made one."""
        if self._locks is not None and self._meta.root is not None:
            self._rebase()

    def _rebase(self) -> None:
        if self._meta.root is None or not self._meta.moved():
            return
        pending = self._state.pending()
        packs = self._state.new_packs
        self._meta.reload()
        self._broken = True
        while self._journal.count() is None:
            if not self._meta.moved():
                raise self._log_cut()
            self._meta.reload()
        self._state.close()
        self._state = self._read_state()
        self._state.new_packs = packs
        self._state.replay(pending)
        self._files.reload(self._state)
        self._journal.follow()
        self._broken = self._lost

    def rekey(self, key: bytes, progress: Callable[[int], None] = lambda size: None) -> Root:
        """Seal everything anew, so that whoever knew the old key can read nothing that is on the disk after it.

        What they have copied before stays theirs. It takes as much space again while it runs. Should it be cut short,
        the vault opens with the old key, and one begins again; or, once `meta` is being sealed anew, with the new one:
        then `rekeying` is true, and to call this with that key finishes it. Key slots wrap the old key: make new ones.

        Args:
            key: the new vault key, 32 bytes.
            progress: told of the length of each file that is done.

        Raises:
            LockedError: somebody else has the vault open.
            UsageError: the last change of the key is not finished, and `key` is another one.
        """
        with self._lock:
            self._usable(to_write=True)
            return rekey(self, key, progress)

    @property
    def rekeying(self) -> bool:
        """Whether a change of the key was begun and not finished."""
        return self._meta.rekeying

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
            if not self._journal.owned or self._meta.root is None or self._log_behind:
                self.commit()
                return
            self._journal.tell()
            numbers = set(self._ordered)
            if number is not None:
                numbers.add(number)
            nodes = [node for n in numbers if (node := self._files.nodes.get(n)) and node.unlogged]
            rows = len(self._state.unlogged_inodes) + len(self._state.unlogged_entries)
            if not nodes and not rows:
                return
            if (
                sum(node.unlogged_bytes for node in nodes) + 400 * rows > MAX_FSYNC
                or self._journal.length > MAX_LOG
                or self.is_wanted()
            ):
                self.commit()
                return
            with self._breaking(spared=lambda: not self._journal.poisoned), self._holding(COMMIT_BYTE):
                self._rebase()
                self._log_behind = True  # until the record is in the log, only a commit makes these changes durable
                change = self._state.take_unlogged()
                change.data = [node.take_change() for node in nodes]
                self._ordered.clear()
                record = pack_change(change)
                if len(record) <= MAX_RECORD:
                    self._journal.append(record)
                    self._log_behind = False
            if self._log_behind:
                self.commit()

    def is_wanted(self) -> bool:
        """Whether another process waits for this one, which owns the log, to commit."""
        return self._locks is not None and bool(self._locks.holders(_WANTED_BYTE, _WANTED_BYTE))

    def is_outdated(self) -> bool:
        """Whether another process has committed since."""
        with self._lock:
            return self._locks is not None and self._meta.root is not None and self._meta.moved()

    def _own_log(self) -> None:
        """Write the log from now on. There must be nothing that is not committed."""
        if self._locks is None or self._files.write_once:
            return  # every fsync is a commit then
        while not self._journal.owned:
            if not self._journal.acquire():
                raise LockedError(f"{self._what}: is mounted for writing already", hint="use that mount")
            with self._holding(COMMIT_BYTE):
                self._rebase()
                pending = self._journal.pending()
                self._journal.follow()
            if pending:
                self._journal.release()
                self._have_recovered()

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
        if not self._check_log() or self._locks is None or not self._journal.is_free():
            return
        if self._mode == "r":
            self._recover_for_reader()
        elif self._journal.acquire():
            with self._holding(COMMIT_BYTE):
                self._rebase()
                wanted = self._meta.wanted_log
                found = wanted is None
                for record in self._journal.records():
                    self._replay(parse_change(record))
                    found = found or self._journal.position == wanted
                if not found:  # it was there a moment ago
                    raise self._log_cut()
            _logger.warning("%s: recovered from the log what was synced after the last commit", self._what)
            self.commit()
            self._journal.release()

    def _check_log(self) -> int:
        """How many records no commit has taken in.

        Raises:
            RollbackError: what the anchor wants is neither taken in nor among them.
        """
        while (count := self._journal.count()) is None:
            # Its owner may have committed and started the log over since the slots were read.
            if not self._meta.moved():
                raise self._log_cut()
            self._read_again()
        return count

    def _log_cut(self) -> RollbackError:
        return RollbackError(
            f"{self._what}: the log ends before what the anchor holds",
            hint="the log was cut or rolled back; restore the latest version",
        )

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
                self._check_log()
            return True

    def _recover_for_reader(self) -> None:
        try:
            self._have_recovered()
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
                if self._process != os.getpid():
                    pass
                elif self._mode != "r" and not self._broken:
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
        self._locks.acquire(COMMIT_BYTE, exclusive=True, wait=True)
        try:
            if self._meta.moved():
                self._meta.discard()
            else:
                self._meta.close()
        finally:
            if not self._meta.closed:
                self._locks.release(COMMIT_BYTE)

    def discard(self) -> None:
        """Close without committing: the newest committed version stays the newest."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._give_back()

    def _give_back(self) -> None:
        if self._process != os.getpid():
            return  # everything is the parent's
        if files := self.__dict__.get("_files"):
            files.discard()
        if state := self.__dict__.get("_state"):
            state.close()
        if journal := self.__dict__.get("_journal"):
            journal.close()
        self._meta.discard()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()

    def _usable(self, *, to_write: bool = False) -> None:
        if self._closed:
            raise ValueError(f"{self._what}: is closed")
        if to_write and self._mode == "r":
            raise UsageError(f"{self._what}: open for reading only", hint='open it with mode "r+"')
        if to_write and self._process != os.getpid():
            raise UsageError(f"{self._what}: opened by the process that this one was forked from", hint="open it here")
        if to_write and self._undecided and not self._broken:
            self._decide()  # nothing is changed before the anchor has answered for what there is
        if to_write and self._broken:
            raise StrongroomError(
                f"{self._what}: an earlier write or commit failed, so this opening commits no more",
                hint="open it again",
            )
