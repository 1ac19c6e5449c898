"""The sealed file as a Python file object, and its commit."""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from strongroom.crypto import KEY_SIZE
from strongroom.errors import StrongroomError, UsageError
from strongroom.sealed import slots
from strongroom.sealed.anchor import Anchor, NoFreshness, Root
from strongroom.sealed.commits import Commits
from strongroom.sealed.content import Content, Scrub, Version
from strongroom.sealed.history import History
from strongroom.sealed.pins import Pins
from strongroom.sealed.slots import version_of
from strongroom.sealed.stream import Mode
from strongroom.storage import ByteLocks, Directory, Storage

if TYPE_CHECKING:
    from collections.abc import Buffer  # type: ignore[attr-defined,unused-ignore]  # Python 3.12

DEFAULT_CACHE: Final = 4 << 20


class SealedFile(Commits):
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
        super().__init__(mode, storage, what=what, directory=directory, write_once=write_once, shared=shared)
        self.on_abandon: Callable[[], None] = lambda: None
        self._cache = cache
        self._process = os.getpid()
        self._write_early = write_early and not shared  # free places are known only while nobody else commits
        pins = Pins(storage, what)
        self._history = History(storage, key, anchor, pins, what=what, log=shared, reader=mode == "r")
        if mode == "r":
            if slots.is_new(storage):
                pins.check_no_writer()
        elif not shared:
            pins.lock_writer()
        if mode in ("w", "x") and slots.is_new(storage):
            self._history.create(block_size, encrypted=encrypted is not False)
            self._take(None)
            return
        if mode == "x":
            raise FileExistsError(f"{what}: holds a sealed file already")
        # Who writes must have asked for a file whose blocks lie in clear: another one might have been put in its place.
        wanted = True if encrypted is None and mode != "r" else encrypted
        version = self._history.load(pin=mode == "r" or shared, at=at, expected=expected, encrypted=wanted)
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
            authenticated_only=not header.encrypted,
        )

    # What it is.

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
        return self._content.read_at(offset, buffer)

    def read_blocks(self, indices: Sequence[int], out: Buffer, rows: Sequence[int] | None = None) -> None:
        """Put block `indices[k]` into the `rows[k]`-th block of `out`, for all k; into the k-th without `rows`.

        For many small reads that are known together. What lies behind the end reads as zeros; blocks of `out` that no
        row names stay as they are.

        Raises:
            UsageError: a block or a row is negative, or a row lies behind the end of `out`.
            TamperedError, TruncatedError: a block is not what was committed; all rows named are then zeros.
        """
        self._content.read_blocks(indices, out, rows)

    def read_pieces(self, pieces: Sequence[tuple[int, int, int]], out: Buffer) -> None:
        """For each (offset, count, start): put `count` blocks from byte `offset` on into `out`, from byte `start` on.

        As `read_blocks`, for pieces that are long and whose places in `out` are no blocks of it.

        Raises:
            UsageError: an offset is no multiple of the block size, or a piece does not fit into `out`.
            TamperedError, TruncatedError: a block is not what was committed; all pieces of `out` are then zeros.
        """
        self._content.read_pieces(pieces, out)

    # Writing.

    def write_at(self, offset: int, data: Buffer) -> None:
        """Write all of `data` at `offset`, whatever the position is; a gap behind the end becomes a hole."""
        with self._lock:
            self._writing()
            self._content.write_at(offset, data)

    def write_blocks(self, pieces: Sequence[tuple[int, Buffer]]) -> None:
        """Write pieces of whole blocks, each at its offset, a multiple of the block size; they do not overlap.

        For many pieces that are known together: what one call costs is paid once, and they share the threads.

        Raises:
            UsageError: a piece is not of whole blocks.
        """
        with self._lock:
            self._writing()
            self._content.write_blocks(pieces)

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

    def compact(self, step: int = 4096) -> int:
        """Commit, and move blocks from the end of the file into free places; by how many bytes the file is now shorter.

        Every `step` blocks are a commit. Versions that are retained, or pinned by readers, stay where they are.
        """
        with self._lock:
            self.commit()
            size, idle = self._storage.size(), 0
            while idle < 2:  # the version before the last step must be gone, too
                idle = 0 if self._content.compact(step) else idle + 1
                self._must_commit = True
                self.commit()
            return size - self._storage.size()

    def scrub(self) -> Scrub:
        """Read every block of every version that counts, and go on where one is damaged; what was found.

        In a reader, of its own version only.
        """
        with self._lock:
            self._usable()
            return self._content.scrub()

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

    def leave_to_parent(self) -> None:
        """In a forked child: give back the parent's file, whose locks would else outlive the parent with the child.

        Takes no lock, since another thread of the parent may have held any. Nothing else may be called afterwards.
        """
        leave = getattr(self._storage, "leave_to_parent", None)
        if leave is not None:
            leave()

    def close(self) -> None:
        """Commit what was written, and give back the storage. Closing twice is fine.

        A file that is `shared` is closed while nobody else can commit.

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
                        self._copy_slot()
            finally:
                self.discard()

    def discard(self) -> None:
        """Close without committing: the newest committed version stays the newest; a new file goes away."""
        with self._lock:
            if not self.closed:
                super().close()
                self._content.close()
                self._storage.close()
                if self.root is None and self._process == os.getpid():
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
