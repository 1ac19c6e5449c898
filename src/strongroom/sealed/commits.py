"""The commits of a sealed file, its older versions, and other processes that commit to it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

from strongroom.errors import ConflictError, UsageError
from strongroom.sealed.anchor import Root
from strongroom.sealed.content import Content, Version
from strongroom.sealed.history import History
from strongroom.sealed.slots import version_of
from strongroom.sealed.stream import Mode, Stream
from strongroom.storage import Directory, Storage


class Commits(Stream):
    """The half of `SealedFile` that commits; the other half has the bytes.

    Args:
        shared: others write too, so each commit looks first whether it is on top of the newest.
        write_once, directory: as `SealedFile` says.
    """

    _history: History
    _content: Content

    def __init__(
        self,
        mode: Mode,
        storage: Storage,
        *,
        what: str,
        directory: Directory | None,
        write_once: bool,
        shared: bool,
    ) -> None:
        super().__init__(mode)
        self._storage = storage
        self._what = what
        self._directory = directory
        self._write_once = write_once
        self._shared = shared
        self._poisoned = False
        self._committed_here = False
        self._must_commit = False  # the next slot says something new, whether or not the content changed
        self._released: set[int] = set()
        self._at: Root | None = None

    @abstractmethod
    def _take(self, version: Version | None) -> None:
        """Make the content that of a committed version; what was not committed is dropped."""

    @abstractmethod
    def _writing(self) -> None:
        """Raises unless something can be written."""

    @property
    def poisoned(self) -> bool:
        """Whether a write or sync failed, so that this opening commits no more."""
        return self._poisoned or self._content.poisoned

    @property
    def root(self) -> Root | None:
        """The root of the newest committed version, or of the one asked for; None before the first commit."""
        return self._at or self._history.root

    # The commit.

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
            while not self._overwrite_stale():
                self._commit_once()
            root = history.root
            assert root is not None  # noqa: S101  # there was one, or it was just made
            return root

    def _commit_once(self, *, retain: bool = False, log: tuple[int, bytes] | None = None) -> None:
        history = self._history
        if self._shared and history.moved():
            raise ConflictError(f"{self._what}: another process has committed", hint="take in its commit first")
        plan = history.plan(retain=retain, release=self._released, log=log)
        version = self._content.prepare()
        self._poisoned = True
        if not self._write_once and not getattr(self._storage, "atomic_sync", False):
            self._storage.sync()
        first = history.commit is None
        history.write(version, plan, twice=self._write_once)
        if first and self._directory:
            self._directory.sync()
        if self._shared:
            history.pin_newest()
        self._content.committed(version)
        self._content.hold(history.held())
        self._must_commit = False
        self._released.clear()
        self._committed_here = True
        self._poisoned = False
        self._anchored(lambda: history.settle(wait=True))

    def _copy_slot(self) -> None:
        """A second copy of the newest slot, so that one damaged sector does not cost the last commit."""
        if self._shared and self._history.moved():
            return  # the slot that it would go into may hold another's commit
        self._history.copy_slot()

    def _overwrite_stale(self) -> bool:
        if self._shared and self._history.moved():
            return True
        if self._history.stale:  # what the old key opens goes only once the anchor knows what replaces it
            self._anchored(self._history.settle)
        self._poisoned = True
        done = self._history.overwrite_stale()
        self._poisoned = False
        return done

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

    def live_sequences(self, *, after_commit: bool = False) -> list[int]:
        """The numbers of all versions that count now: the newest, the one before, those retained and those pinned.

        Args:
            after_commit: those of them that will still count after the next commit.
        """
        with self._lock:
            return sorted(self._history.live(after_commit=after_commit))

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
            encrypted = self._history.header.encrypted
            version = self._history.load(pin=self._mode == "r" or self._shared, expected=True, encrypted=encrypted)
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
