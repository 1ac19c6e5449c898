"""Roots, and the places where the latest one is remembered."""

from __future__ import annotations

import contextlib
import enum
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Protocol

from strongroom.errors import ConflictError, FormatError, RollbackError, UsageError, printable
from strongroom.storage import OPEN_BYTE, LocalDirectory, Storage

DIGEST_SIZE: Final = 32
LOG_TAG_SIZE: Final = 16
MAX_GROUP: Final = 64
_MAX_NUMBER: Final = (1 << 63) - 1
_TEXT = re.compile(r"([0-9]{1,19}):([0-9a-f]{64})(?:\+([0-9]{1,19}):([0-9a-f]{32}))?(?:@([0-9]{1,19}))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Root:
    """What stands for the whole content of a sealed thing: the number of its commit, and a digest.

    `sequence` and `digest` name one version. The other fields say where an anchor is in that version's history:
    `epoch` counts authorised restores, and `lsn` with `tag` (16 bytes) is how far a vault's intent log reaches; 0 and
    empty where there is no log.

    The text form is ``<sequence>:<64 hex digits>``, then ``+<lsn>:<32 hex digits>`` unless `lsn` is 0, then
    ``@<epoch>`` unless that is 0.
    """

    sequence: int
    digest: bytes
    epoch: int = 0
    lsn: int = 0
    tag: bytes = b""

    def __post_init__(self) -> None:
        if not 1 <= self.sequence <= _MAX_NUMBER:
            raise FormatError(f"root sequence: {self.sequence}, wanted 1 to 2^63 - 1")
        if len(self.digest) != DIGEST_SIZE:
            raise FormatError(f"root digest: {len(self.digest)} bytes, wanted {DIGEST_SIZE}")
        if not 0 <= self.epoch <= _MAX_NUMBER or not 0 <= self.lsn <= _MAX_NUMBER:
            raise FormatError(f"root epoch and log number: {self.epoch}, {self.lsn}, wanted 0 to 2^63 - 1")
        if len(self.tag) != (LOG_TAG_SIZE if self.lsn else 0):
            raise FormatError(f"root log tag: {len(self.tag)} bytes, wanted {LOG_TAG_SIZE}, or none without a log")

    def __str__(self) -> str:
        log = f"+{self.lsn}:{self.tag.hex()}" if self.lsn else ""
        return f"{self.sequence}:{self.digest.hex()}{log}{f'@{self.epoch}' if self.epoch else ''}"

    @classmethod
    def parse(cls, text: str) -> Root:
        """The root whose text form is `text`, and no other spelling of it.

        Raises:
            FormatError: it is none.
        """
        if match := _TEXT.fullmatch(text):
            number, digest, lsn, tag, epoch = match.groups(default="")
            with contextlib.suppress(FormatError):
                root = cls(int(number), bytes.fromhex(digest), int(epoch or 0), int(lsn or 0), bytes.fromhex(tag))
                if str(root) == text:
                    return root
        raise FormatError(f"root: {text[:90]!r}, wanted <sequence>:<64 hex digits>[+<lsn>:<32 hex digits>][@<epoch>]")

    @property
    def version(self) -> tuple[int, bytes]:
        """Which content it is: (sequence, digest)."""
        return self.sequence, self.digest

    @property
    def log(self) -> tuple[int, bytes]:
        """How far the log reaches: (lsn, tag)."""
        return self.lsn, self.tag

    def comes_after(self, old: Root | None) -> bool:
        """Whether an anchor at `old` moves forward when it moves here: by (epoch, sequence, lsn). All follow None."""
        return old is None or (self.epoch, self.sequence, self.lsn) > (old.epoch, old.sequence, old.lsn)


class Anchor(Protocol):
    """Where the latest root is remembered, out of reach of whoever holds the disk."""

    def read(self) -> Root | None:
        """The latest root, or None if there never was one."""

    def advance(self, old: Root | None, new: Root) -> None:
        """Replace `old` by `new`, durably and atomically. Succeeds if `new` is remembered already (a lost answer).

        Raises:
            ConflictError: what is remembered is neither.
        """


class NoFreshness(enum.Enum):
    """The type of `NO_FRESHNESS`."""

    NO_FRESHNESS = "no freshness"


NO_FRESHNESS: Final = NoFreshness.NO_FRESHNESS
"""In place of an anchor: accept any authentic version, however old. Whoever holds the disk can then roll it back."""


def compare_and_swap(current: Root | None, old: Root | None, new: Root) -> bool:
    """The rule of every anchor: whether `current` must be replaced by `new`, False if it is `new` already.

    Raises:
        ConflictError: `current` is neither `old` nor `new`.
    """
    if current == new:
        return False
    if current != old:
        raise ConflictError(
            f"anchor: holds {current or 'no root'}, wanted {old or 'no root'}",
            hint="another writer has committed, or the anchor belongs to something else",
        )
    return True


def _restored(current: Root | None, root: Root) -> Root:
    """What an anchor at `current` holds after an authorised restore of `root`."""
    if current is None:
        raise UsageError("anchor: holds no root, wanted one to restore from", hint="open the data with it as it is")
    return replace(root, epoch=current.epoch + 1)


class MemoryAnchor:
    """An anchor for one process's life. `history` has (old root, new root, reason) of each restore."""

    def __init__(self, root: Root | None = None) -> None:
        self._root = root
        self._lock = threading.Lock()
        self.history: list[tuple[Root, Root, str]] = []

    def read(self) -> Root | None:
        return self._root

    def advance(self, old: Root | None, new: Root) -> None:
        with self._lock:
            if compare_and_swap(self._root, old, new):
                self._root = new

    def restore(self, root: Root, *, reason: str) -> Root:
        """As `FileAnchor.restore`."""
        with self._lock:
            new, old = _restored(self._root, root), self._root
            assert old is not None  # noqa: S101  # else `_restored` had raised
            self.history.append((old, new, reason))
            self._root = new
            return new


class PinnedAnchor:
    """The anchor of what never changes again and whose root is recorded elsewhere: accepts exactly `root`."""

    def __init__(self, root: Root) -> None:
        self._root = root

    def read(self) -> Root:
        return self._root

    def advance(self, old: Root | None, new: Root) -> None:
        if new != self._root:
            raise RollbackError(
                f"root: {new}, wanted {self._root}", hint="another version lies in its place; restore it from a copy"
            )

    def restore(self, root: Root, *, reason: str) -> Root:
        """Raises UsageError: what is pinned is never restored."""
        raise UsageError(f"anchor: is pinned at {self._root}, wanted one that can be restored")


class FileAnchor:
    """An anchor in a text file, which stops accidents only: whoever can roll the data back can roll this back too.

    Keep it on another machine or medium than the data, or use a CAS.
    """

    _HEADER = "STRONGROOM-ANCHOR-1 "

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def read(self) -> Root | None:
        """Raises FormatError if the file holds no root."""
        try:
            with self.path.open("rb") as file:
                text = file.read(250).decode("ascii", "replace")
        except FileNotFoundError:
            return None
        if not text.startswith(self._HEADER) or not text.endswith("\n"):
            raise FormatError(f"{self.path}: not an anchor file, wanted a line {self._HEADER.strip()} <root>")
        return Root.parse(text.removeprefix(self._HEADER)[:-1])

    def advance(self, old: Root | None, new: Root) -> None:
        """Waits for a process that is advancing it now, or raises LockedError where there are no locks to wait for.

        Leaves ``<name>.lock`` beside the file.
        """
        with self._locked() as directory:
            if compare_and_swap(self.read(), old, new):
                self._replace(directory, new)

    def restore(self, root: Root, *, reason: str, now: int | None = None) -> Root:
        """Authorise going back to `root`: the anchor then holds it with the next epoch, which is returned.

        What was committed after it is refused from now on. First the restore is logged: a line ``<seconds since 1970>
        <old root> <new root> <reason>`` is appended to ``<name>.history`` and synced.

        Args:
            now: seconds since 1970; by default the system's clock.

        Raises:
            UsageError: the anchor holds no root.
            LockedError: another process is changing the anchor, where one cannot wait for it.
        """
        with self._locked() as directory:
            old = self.read()
            new = _restored(old, root)
            line = f"{int(time.time()) if now is None else now} {old} {new} {printable(reason)}\n"
            history = _open_or_create(directory, self.path.name + ".history")
            try:
                history.write_at(history.size(), line.encode())
                history.sync()
            finally:
                history.close()
            self._replace(directory, new)
            return new

    @contextlib.contextmanager
    def _locked(self) -> Iterator[LocalDirectory]:
        directory = LocalDirectory(self.path.parent)
        # Whoever holds it does so for two syncs, so one waits; without such locks one is refused.
        locks = directory.locks(self.path.name + ".lock")
        lock = locks or _open_or_create(directory, self.path.name + ".lock")
        try:
            if locks:
                locks.acquire(OPEN_BYTE, exclusive=True, wait=True)
            yield directory
        finally:
            lock.close()

    def _replace(self, directory: LocalDirectory, root: Root) -> None:
        try:
            self._replace_by(directory, root)
        except OSError as error:
            if error.filename is None:
                error.filename = os.fspath(self.path)
            raise

    def _replace_by(self, directory: LocalDirectory, root: Root) -> None:
        temporary = self.path.name + ".new"
        with contextlib.suppress(FileNotFoundError):
            directory.unlink(temporary)  # left by a crash
        file = directory.open(temporary, "x")
        try:
            file.write_at(0, f"{self._HEADER}{root}\n".encode())
            file.sync()
        finally:
            file.close()
        directory.rename(temporary, self.path.name)
        directory.sync()


class Grouped:
    """An anchor that need not follow every commit: for one too slow, or too far away, to be asked each time.

    At most `every_commits` commits, and `every_seconds` as far as commits ask, lie between two advances: the commit
    that reaches either limit is anchored before it returns, and so is the last one when its file closes. Each slot
    lists the roots since the anchor, so that any of them opens. **A rollback within that window goes unseen.**

    Args:
        anchor: the one that remembers.
        every_commits: 1 to 64.
        clock: seconds that only rise, `time.monotonic` as a rule.
    """

    def __init__(
        self, anchor: Anchor, *, every_commits: int = MAX_GROUP, every_seconds: float, clock: Callable[[], float]
    ) -> None:
        if not 1 <= every_commits <= MAX_GROUP:
            raise UsageError(f"commits between two advances: {every_commits}, wanted 1 to {MAX_GROUP}")
        self._anchor = anchor
        self._every_commits = every_commits
        self._every_seconds = every_seconds
        self._clock = clock
        self._last = clock()

    def read(self) -> Root | None:
        return self._anchor.read()

    def advance(self, old: Root | None, new: Root) -> None:
        self._anchor.advance(old, new)
        self._last = self._clock()

    def may_wait(self, commits: int) -> bool:
        """Whether the anchor may stay behind, with `commits` commits since it."""
        return commits < self._every_commits and self._clock() - self._last < self._every_seconds


def _open_or_create(directory: LocalDirectory, name: str) -> Storage:
    try:
        return directory.open(name, "x")
    except FileExistsError:
        return directory.open(name, "r+")
