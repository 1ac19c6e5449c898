"""Roots, and the places where the latest one is remembered."""

from __future__ import annotations

import contextlib
import enum
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from strongroom.errors import ConflictError, FormatError, RollbackError
from strongroom.storage import LocalDirectory, Storage

DIGEST_SIZE: Final = 32
_MAX_SEQUENCE: Final = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class Root:
    """What stands for the whole content of a sealed thing: the number of its commit, and a digest.

    The text form is ``<sequence>:<64 hex digits>``.
    """

    sequence: int
    digest: bytes

    def __post_init__(self) -> None:
        if not 1 <= self.sequence <= _MAX_SEQUENCE:
            raise FormatError(f"root sequence: {self.sequence}, wanted 1 to 2^63 - 1")
        if len(self.digest) != DIGEST_SIZE:
            raise FormatError(f"root digest: {len(self.digest)} bytes, wanted {DIGEST_SIZE}")

    def __str__(self) -> str:
        return f"{self.sequence}:{self.digest.hex()}"

    @classmethod
    def parse(cls, text: str) -> Root:
        """The root whose text form is `text`, and no other spelling of it.

        Raises:
            FormatError: it is none.
        """
        number, _, digest = text.partition(":")
        # The lengths are checked first: `int` of a long digit string is slow, and then raises.
        if len(number) <= 19 and len(digest) == 2 * DIGEST_SIZE and text.isascii() and number.isdigit():
            with contextlib.suppress(ValueError):
                root = cls(int(number), bytes.fromhex(digest))
                if str(root) == text:
                    return root
        raise FormatError(f"root: {text[:90]!r}, wanted <sequence>:<64 hex digits>")


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


class MemoryAnchor:
    """An anchor for one process's life."""

    def __init__(self, root: Root | None = None) -> None:
        self._root = root
        self._lock = threading.Lock()

    def read(self) -> Root | None:
        return self._root

    def advance(self, old: Root | None, new: Root) -> None:
        with self._lock:
            if compare_and_swap(self._root, old, new):
                self._root = new


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
                text = file.read(200).decode("ascii", "replace")
        except FileNotFoundError:
            return None
        if not text.startswith(self._HEADER) or not text.endswith("\n"):
            raise FormatError(f"{self.path}: not an anchor file, wanted a line {self._HEADER.strip()} <root>")
        return Root.parse(text.removeprefix(self._HEADER)[:-1])

    def advance(self, old: Root | None, new: Root) -> None:
        """Raises LockedError if another process is advancing it now. Leaves ``<name>.lock`` beside the file."""
        directory = LocalDirectory(self.path.parent)
        lock = _open_or_create(directory, self.path.name + ".lock")
        try:
            if not compare_and_swap(self.read(), old, new):
                return
            temporary = self.path.name + ".new"
            with contextlib.suppress(FileNotFoundError):
                directory.unlink(temporary)  # left by a crash
            file = directory.open(temporary, "x")
            try:
                file.write_at(0, f"{self._HEADER}{new}\n".encode())
                file.sync()
            finally:
                file.close()
            directory.rename(temporary, self.path.name)
            directory.sync()
        finally:
            lock.close()


def _open_or_create(directory: LocalDirectory, name: str) -> Storage:
    try:
        return directory.open(name, "x")
    except FileExistsError:
        return directory.open(name, "r+")
