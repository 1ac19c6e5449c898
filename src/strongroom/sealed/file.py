"""The sealed file as a Python file object, and its commit."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from strongroom.crypto import KEY_SIZE
from strongroom.errors import ConflictError, StrongroomError, UsageError
from strongroom.sealed import slots
from strongroom.sealed.anchor import Anchor, NoFreshness, Root
from strongroom.sealed.content import Content, Version
from strongroom.sealed.history import History, version_of
from strongroom.sealed.pins import Pins
from strongroom.sealed.stream import Mode, Stream
from strongroom.storage import ByteLocks, Directory, Storage

if TYPE_CHECKING:
    from collections.abc import Buffer  # type: ignore[attr-defined,unused-ignore]  # Python 3.12

DEFAULT_CACHE: Final = 4 << 20


class SealedFile(Stream):
    """A sealed file that is open. Made by `open_sealed`; its methods may be called from several threads.

    Invariants:

    - A commit is data blocks -> sync -> slot -> sync -> anchor. What the newest committed root and the one before it
      reach is not overwritten meanwhile.
    - After a failed write or commit the handle is poisoned: what a failed sync left on the disk is unknown, and half a
      write is nothing that anybody asked to commit.

    Args:
        directory: is synced in the first commit, so that the file's name is durable too.
        write_once, expected: as `open_in` says.
    """

    def __init__(
        self,
        storage: Storage,
        mode: Mode,
        key: bytes,
        anchor: Anchor | NoFreshness,
        block_size: int,
        *,
        what: str,
        directory: Directory | None = None,
        write_once: bool = False,
        expected: bool = False,
        shared: bool = False,
        encrypted: bool | None = None,
        at: Root | int | None = None,
        cache: int = DEFAULT_CACHE,
        write_early: bool = True,
    ) -> None:
        super().__init__(mode)
        self._storage = storage
        self._what = what
        self._directory = directory
        self.on_abandon: Callable[[], None] = lambda: None
        self._write_once = write_once
        self._shared = shared
        self._cache = cache
        self._write_early = write_early and not shared  # free places are known only while nobody else commits
        self._poisoned = False
        self._committed_here = False
        self._must_commit = False  # the next slot says something new, whether or not the content changed
        self._released: set[int] = set()
        self._at: Root | None = None
        self._pins = Pins(storage, what)
        self._history = History(storage, key, anchor, self._pins, what=what, log=shared)
        if mode == "r":
            if slots.is_new(storage):
                self._pins.check_no_writer()
        elif not shared:
            self._pins.lock_writer()
        if mode in ("w", "x") and slots.is_new(storage):
            self._history.create(block_size, encrypted=encrypted is not False)
            self._take(None)
            return
        if mode == "x":
            raise FileExistsError(f"{what}: holds a sealed file already")
        # Who writes must have asked for a file whose blocks lie in clear: another one might have been put in its place.
        wanted = True if encrypted is None and mode != "r" else encrypted
        version = self._history.load(pin=mode == "r", at=at, expected=expected, encrypted=wanted)
        self._at = None if at is None else Root(version.sequence, version.digest)
        self._take(version_of(version))
        if mode == "w":
            self._content.truncate(0)
            self._must_commit = True

    def _take(self, version: Version | None) -> None:
        """Make the content that of a committed version; what was not committed is dropped."""
        header = self._history.header
        self._content = Content(
            self._storage,
            self._history.ciphers(),
            header.file_id,
            header.block_size,
            version,
            slots=True,
            generation=self._history.generation,
            held=self._history.held() if self._mode != "r" else (),
            what=self._what,
            cache=self._cache,
            write_early=self._write_early,
        )

    # What it is.

    @property
    def root(self) -> Root | None:
        """The root of the newest committed version, or of the one asked for; None before the first commit."""
        return self._at or self._history.root

    @property
    def notes(self) -> list[str]:
        """What was found damaged at opening, and passed over."""
        return list(self._history.notes)

    @property
    def encrypted(self) -> bool:
        """Whether blocks are ciphertext on the disk; else they are authenticated only."""
        return self._history.header.encrypted

    @property
    def file_id(self) -> bytes:
        """16 bytes that every slot and block of the file is bound to."""
        return self._history.header.file_id

    @property
    def locks(self) -> ByteLocks | None:
        """The locks of this opening of the file, for a caller with bytes of its own above those of the format."""
        return getattr(self._storage, "locks", None)

    @property
    def name(self) -> str:
        return self._what

    @property
    def block_size(self) -> int:
        return self._history.header.block_size

    @property
    def length(self) -> int:
        """In bytes, with what is not committed yet."""
        return self._content.length

    # Reading.

    def read_at(self, offset: int, buffer: Buffer) -> int:
        """Fill `buffer` from `offset` on, whatever the position is; the count is smaller only at the end.

        Raises:
            TamperedError, TruncatedError: a block is not what was committed; `buffer` holds nothing of it.
        """
        self._usable()
        return self._content.read_at(offset, buffer)

    # Writing.

    def write_at(self, offset: int, data: Buffer) -> None:
        """Write all of `data` at `offset`, whatever the position is; a gap behind the end becomes a hole."""
        with self._lock:
            self._writing()
            self._content.write_at(offset, data)

    def punch(self, offset: int, length: int) -> None:
        """Put zeros in place of `length` bytes at `offset`, as holes where they are whole blocks."""
        with self._lock:
            self._writing()
            self._content.punch(offset, length)

    def truncate(self, size: int | None = None) -> int:
        """Cut the file, or extend it by a hole that reads as zeros, to `size` bytes (default: the position)."""
        with self._lock:
            self._writing()
            size = self._position if size is None else size
            self._content.truncate(size)
            return size

    def commit(self, *, retain: bool = False, log: tuple[int, bytes] | None = None) -> Root:
        """Make the content, as it is now, the newest version, durably and atomically; return its root.

        Args:
            retain: the version stays readable until `release`.
            log: how much of a vault's intent log it has taken in: number and tag.

        Raises:
            OSError: the storage failed. The handle is of no use afterwards; the last commit or this one is on disk.
            ConflictError: the anchor holds something else, so another writer was faster. Likewise.
            CasError: the anchor did not answer. The commit is on disk and undecided; call `commit` again.
            UsageError: more than 16 versions would have to be kept. Nothing was written to the slots.
        """
        with self._lock:
            self._writing()
            history = self._history
            self._anchored(lambda: history.settle(wait=True))
            if log is not None and history.commit and log[0] != history.commit.lsn:
                self._anchored(lambda: history.note_log(*log))
                self._must_commit = True
            changed = self._content.changed or self._must_commit or history.commit is None
            if changed or (retain and not history.retains_newest()):
                self._commit_once(retain=retain, log=log)
                if history.may_drop_key():
                    self._commit_once()
            while not history.overwrite_stale():
                self._commit_once()
            root = history.root
            assert root is not None  # noqa: S101  # there was one, or it was just made
            return root

    def _commit_once(self, *, retain: bool = False, log: tuple[int, bytes] | None = None) -> None:
        history = self._history
        if self._shared and history.moved():
            raise ConflictError(f"{self._what}: another process has committed", hint="take in its commit first")
        plan = history.plan(retain=retain, release=self._released, log=log)
        self._poisoned = True
        version = self._content.prepare()
        if not self._write_once and not getattr(self._storage, "atomic_sync", False):
            self._storage.sync()
        first = history.commit is None
        history.write(version, plan, twice=self._write_once)
        if first and self._directory:
            self._directory.sync()
        self._content.committed(version)
        self._content.hold(history.held())
        self._must_commit = False
        self._released.clear()
        self._committed_here = True
        self._poisoned = False
        self._anchored(lambda: history.settle(wait=True))

    def _anchored(self, advance: Callable[[], None]) -> None:
        try:
            advance()
        except ConflictError:
            self._poisoned = True
            raise

    def settle(self) -> None:
        """Advance a grouped anchor to the newest commit now.

        Raises:
            ConflictError, CasError: as `commit`.
        """
        with self._lock:
            self._writing()
            self._anchored(self._history.settle)

    # Older versions.

    def retain(self) -> Root:
        """Commit, so that this version stays readable after later ones; at most 16 do. Its root."""
        return self.commit(retain=True)

    def release(self, root: Root | int) -> None:
        """The next commit keeps that version no longer, but for as long as a reader holds it.

        Raises:
            UsageError: it is not retained.
        """
        with self._lock:
            self._writing()
            sequence = root if isinstance(root, int) else root.sequence
            if sequence not in {kept.sequence for kept in self.retained}:
                raise UsageError(f"{self._what}: version {sequence} is not retained")
            self._released.add(sequence)
            self._must_commit = True

    @property
    def retained(self) -> list[Root]:
        """The versions that `retain` keeps, the oldest first: sequence and digest, which is enough to open them."""
        commit = self._history.commit
        return [
            Root(kept.sequence, kept.digest)
            for kept in (commit.retained if commit else ())
            if not kept.pinned and kept.sequence not in self._released
        ]

    def live_sequences(self) -> list[int]:
        """The numbers of all versions that count now: the newest, the one before, those retained and those pinned."""
        with self._lock:
            return sorted(self._history.live())

    # Other processes.

    def moved(self) -> bool:
        """Whether another process has committed since this one last looked; reads the slots only."""
        with self._lock:
            self._usable()
            return self._history.moved()

    def reload(self) -> None:
        """Take the newest committed version; what was not committed is dropped.

        Raises:
            as `open_sealed`.
        """
        with self._lock:
            self._usable()
            version = self._history.load(pin=self._mode == "r", expected=True, encrypted=self.encrypted)
            self._content.close()
            self._at = None
            self._take(version_of(version))
            self._must_commit = False
            self._released.clear()

    def refresh(self) -> Root | None:
        """A reader moves on to the newest version; its root."""
        self.reload()
        return self.root

    @property
    def commit_epoch(self) -> int:
        """The anchor epoch that the newest commit carries."""
        return self._history.commit.epoch if self._history.commit else 0

    @property
    def log_position(self) -> tuple[int, bytes]:
        """How much of a vault's intent log the newest commit has taken in: number and tag."""
        commit = self._history.commit
        return (commit.lsn, commit.tag) if commit else (0, b"")

    @property
    def wanted_log(self) -> tuple[int, bytes] | None:
        """A log position that the log beside the file must reach, else it was rolled back; None if any will do."""
        return self._history.wanted_log

    def note_log(self, lsn: int, tag: bytes) -> None:
        """Tell the anchor how far the log reaches beyond the newest commit.

        Raises:
            ConflictError, CasError: as `commit`.
        """
        with self._lock:
            self._writing()
            self._anchored(lambda: self._history.note_log(lsn, tag))

    # Upkeep.

    def rekey(self, key: bytes) -> None:
        """Commit, and seal what is written from now on under another key; the next commit makes that durable.

        After it the old key opens nothing on the disk. Old blocks are sealed anew by `rekey_step`.

        Raises:
            UsageError: the last change of the key is not finished.
        """
        with self._lock:
            if len(key) != KEY_SIZE:
                raise UsageError(f"sealing key: {len(key)} bytes, wanted {KEY_SIZE}")
            self.commit()
            self._history.rekey(key)
            commit = self._history.commit
            self._content.close()
            self._take(version_of(commit) if commit else None)
            self._must_commit = True

    def rekey_step(self, limit: int) -> int:
        """Seal at most `limit` blocks of the old key anew; how many are left. Commit in between, and at the end.

        Once none is left and nobody needs an older version, a commit drops the old key.
        """
        with self._lock:
            self._writing()
            left = self._content.rekey_step(limit)
            if not left and self._history.rekeying:
                self._history.clean()
                self._must_commit = True
            return left

    @property
    def rekeying(self) -> bool:
        """Whether blocks of an old key may be left."""
        return self._history.rekeying

    def verify(self) -> int:
        """Read every block of the newest committed version from the storage; return the number of data blocks.

        Raises:
            IntegrityError: a block is not what was committed.
        """
        with self._lock:
            self._usable()
            return self._content.verify()

    # The end.

    def close(self) -> None:
        """Commit what was written, and give back the storage. Closing twice is fine.

        Raises:
            StrongroomError: an earlier write or commit failed, so that what was written since the last is lost.
            OSError, ConflictError, CasError: as `commit`.
        """
        with self._lock:
            if self.closed:
                return
            try:
                if self.writable():
                    self.commit()
                    self._anchored(self._history.settle)
                    if self._committed_here:
                        self._history.copy_slot()
            finally:
                self.discard()

    def discard(self) -> None:
        """Close without committing: the newest committed version stays the newest; a new file goes away."""
        with self._lock:
            if not self.closed:
                super().close()
                self._content.close()
                self._storage.close()
                if self.root is None:
                    with contextlib.suppress(OSError):  # what stays behind holds nothing, and is taken over by "w"
                        self.on_abandon()

    def __del__(self) -> None:
        # A commit must not depend on when the collector runs, so this discards; io.IOBase would close.
        if "_content" in self.__dict__ and not self.closed:
            if self.writable() and (self._content.changed or self._must_commit or self.root is None):
                warnings.warn(f"{self._what}: not closed, so not committed", ResourceWarning, stacklevel=2)
            self.discard()

    def __repr__(self) -> str:
        return f"<SealedFile {self._what!r} mode={self._mode!r} root={self.root}>"

    def _usable(self) -> None:
        if self.closed:
            raise ValueError(f"{self._what}: is closed")

    def _writing(self) -> None:
        self._usable()
        if not self.writable():
            raise io.UnsupportedOperation(f"{self._what}: open for reading only")
        if self._poisoned or self._content.poisoned:
            raise StrongroomError(
                f"{self._what}: an earlier write or commit failed, so this handle commits no more", hint="open it again"
            )
