"""Who else has a sealed file open: the writer's lock, and the versions that readers have pinned.

Byte 2^62 of the file is the writer's; byte 2^62 + n is shared by the readers of version n. Without such locks all of
this is empty, and the storage itself keeps readers and writers apart.
"""

from __future__ import annotations

from typing import Final

from strongroom.errors import LockedError
from strongroom.sealed.layout import MAX_SEQUENCE
from strongroom.storage import LOCKS_AT, ByteLocks, Storage

_WRITER: Final = LOCKS_AT


class Pins:
    """The locks that one opener of a sealed file has, and what it can see of others'."""

    def __init__(self, storage: Storage, what: str) -> None:
        # Storages of tests and of callers may know nothing of locks.
        self._locks: ByteLocks | None = getattr(storage, "locks", None)
        self._what = what
        self._pinned: set[int] = set()

    def lock_writer(self) -> None:
        """Raises LockedError if somebody else is writing."""
        if self._locks and not self._locks.acquire(_WRITER, exclusive=True):
            raise LockedError(
                f"{self._what}: in use by another opener that writes", hint="close it there, then try again"
            )

    def check_no_writer(self) -> None:
        """Raises LockedError if somebody is writing."""
        if self._locks and self._locks.holders(_WRITER, _WRITER):
            raise LockedError(
                f"{self._what}: being written by another opener for the first time", hint="wait until it has committed"
            )

    def pin(self, sequence: int) -> None:
        """Pin a version, besides the one pinned so far.

        It counts only if the slots, read again, still name that version: then whoever writes will see the pin.
        """
        if self._locks and sequence not in self._pinned:
            if not self._locks.acquire(LOCKS_AT + sequence, exclusive=False):
                raise LockedError(f"{self._what}: version {sequence} is locked", hint="close what has locked it")
            self._pinned.add(sequence)

    def keep(self, *sequences: int | None) -> None:
        """Unpin every other version."""
        for other in self._pinned.difference(sequences):
            if self._locks:
                self._locks.release(LOCKS_AT + other)
            self._pinned.discard(other)

    def others(self) -> set[int]:
        """The versions that other openers have pinned."""
        if not self._locks:
            return set()
        return {byte - LOCKS_AT for byte in self._locks.holders(LOCKS_AT + 1, LOCKS_AT + MAX_SEQUENCE)}
