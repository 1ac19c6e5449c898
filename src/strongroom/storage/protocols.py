"""What a storage, a directory and locks have to offer."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Buffer  # type: ignore[attr-defined,unused-ignore]  # Python 3.12

OpenMode = Literal["r", "r+", "x"]

# Where the locks of a file's own `locks` lie: behind every byte that it can hold. Locked bytes need not exist.
LOCKS_AT = 1 << 62


class ByteLocks(Protocol):
    """Shared and exclusive locks on single bytes, held by an opener of a file, not by a process or a thread.

    - Two openers in one process exclude each other as two processes do; threads that use one opener do not.
    - They end when the opener closes or its process dies, however it dies; those of a process that forked, when it
      closes, or when the last of its children that inherited them is dead too.
    """

    def acquire(self, byte: int, *, exclusive: bool, wait: bool = False) -> bool:
        """Lock `byte`, or turn the lock held on it into the other kind.

        Returns:
            False if another opener is in the way, which needs `wait` to be False. What was held before stays held
            then. With `wait`, the call returns when nobody is in the way any more.

        Raises:
            OSError: an exclusive lock of a file that is open for reading only, or the medium failed.
        """

    def release(self, byte: int) -> None:
        """Unlock `byte`; one that is not locked is fine."""

    def holders(self, first: int, last: int) -> list[int]:
        """The bytes in [`first`, `last`] on which *another* opener holds a lock of either kind, in rising order.

        Raises:
            LockedError: more than 65,536 bytes, which nobody honest locks.
        """

    def close(self) -> None:
        """Give back every lock taken here, and the descriptor if it serves for locks only; twice is fine."""


@runtime_checkable
class Storage(Protocol):
    """Bytes at offsets. Raises OSError where the medium fails."""

    @property
    def locks(self) -> ByteLocks | None:
        """Locks of this opening, to be used from `LOCKS_AT` on; None where the platform has none. Ends with it."""

    @property
    def atomic_sync(self) -> bool:
        """Whether all that was written since the last sync becomes durable at once or not at all, and in no parts
        before: no other sync is needed to order writes then.
        """

    def read_into(self, offset: int, buffer: Buffer) -> int:
        """Fill `buffer` from `offset` on; the count is smaller than its length only at the end of the file."""

    def write_at(self, offset: int, data: Buffer) -> None:
        """Write all of `data`; a gap before `offset` reads as zeros."""

    def sync(self) -> None:
        """Return once every earlier write would survive a power cut."""

    def resize(self, size: int) -> None:
        """Cut, or extend with zeros."""

    def size(self) -> int:
        """The length in bytes."""

    def close(self) -> None:
        """Give back locks and descriptors; closing twice is fine."""


class Directory(Protocol):
    """A flat set of named files. Names hold no separator."""

    @property
    def write_once(self) -> bool:
        """Whether a new file can be written until its first `sync` only, and never again."""

    def open(self, name: str, mode: OpenMode, *, shared: bool = False) -> Storage:
        """Open a file: ``r`` to read, ``r+`` to write an existing one, ``x`` to create a new one.

        Args:
            shared: take no lock and heed none: the caller coordinates by `ByteLocks`.

        Raises:
            FileNotFoundError, FileExistsError: as `open` does.
            LockedError: another opener is in the way.
        """

    def locks(self, name: str) -> ByteLocks | None:
        """Open a file that serves for locks only, created if missing; None where the platform has no such locks.

        Whoever unlinks or renames that file parts those who opened it before from those who do so after.

        Raises:
            OSError: it can neither be opened nor made. Where it can be read only, exclusive locks fail.
        """

    def rename(self, old: str, new: str) -> None:
        """Give a file another name, replacing whatever had it."""

    def unlink(self, name: str) -> None:
        """Remove a name."""

    def list(self) -> list[str]:
        """The names of all files, sorted."""

    def sync(self) -> None:
        """Return once every earlier change of names would survive a power cut."""


def is_full(error: BaseException) -> bool:
    """Whether an error says that the medium is full, or somebody's share of it: what failed can be tried again."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
