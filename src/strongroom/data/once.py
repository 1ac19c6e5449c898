"""Loading data once: made at the first start, found by every later one, also after a crash at any instant.

- The file is made under another name, ``<name>.new``, and gets its own when it is whole and its anchor holds its root.
- So a file that has its name is whole. One without it counts if the anchor holds its root; else it is made again.
- One process makes it at a time; others wait, and find it. The lock is ``<name>.lock``, which stays.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, Literal

import numpy.typing as npt

from strongroom.data.normalise import Normalise
from strongroom.data.write import BLOCK_SIZE, seal_arrays
from strongroom.errors import RollbackError
from strongroom.sealed import Anchor, NoFreshness, SealedFile, layout
from strongroom.sealed.opening import check_anchor, check_key, open_in
from strongroom.storage import OPEN_BYTE, Directory, LocalDirectory, Storage

Make = Callable[[], Mapping[str, npt.ArrayLike]]


def seal_once(
    file: str | os.PathLike[str],
    make: Make,
    *,
    key: bytes,
    anchor: Anchor | NoFreshness,
    block_size: int = BLOCK_SIZE,
    normalise: Mapping[str, Normalise] | None = None,
    bfloat16: Collection[str] = (),
) -> bool:
    """As `seal_arrays`, unless the file is there already: a training that starts again does not load its data again.

    Whenever the process is killed or the power fails, the next call finds the file whole or makes it; nobody finds a
    part of it. What one call makes, another one that runs meanwhile waits for.

    Args:
        make: is called for the arrays if they are needed.
        anchor: of this file alone.

    Returns:
        Whether the file was made now.

    Raises:
        RollbackError: the file is gone, but its anchor holds a root; or the file is there, and its anchor holds none.
        IntegrityError: what is there is not what the anchor holds. Of its blocks that is told when they are read.
        LockedError: another process is making it, where one cannot wait for that.
        UsageError: as `seal_arrays`.
    """
    path = Path(os.path.realpath(file))
    layout.check_block_size(block_size)

    def write(sealed: BinaryIO) -> None:
        seal_arrays(sealed, make(), normalise=normalise, bfloat16=bfloat16)

    return _Once(LocalDirectory(path.parent), path.name, os.fspath(file), key, anchor).get(write, block_size)


class _Once:
    """What is made once, in any kind of directory."""

    def __init__(self, directory: Directory, name: str, what: str, key: bytes, anchor: Anchor | NoFreshness) -> None:
        check_key(key)
        check_anchor(anchor)
        self._directory = directory
        self._name = name
        self._new = name + ".new"
        self._what = what
        self._key = key
        self._anchor = anchor

    def get(self, write: Callable[[BinaryIO], object], block_size: int) -> bool:
        """Whether it was made now, by `write`.

        1. It has its name: look at its root.                              else RollbackError, IntegrityError
        2. The anchor holds a root: what has no name yet is whole.         else RollbackError, IntegrityError
        3. What has no name yet, and no root in the anchor, is dropped, and all is made.
        4. It gets its name.
        """
        if self._is_there():  # 1
            return False
        with self._locked():
            if self._is_there():  # 1, by another process meanwhile
                return False
            left = self._new in self._directory.list()
            made = not self._is_anchored()
            if made:  # 3
                if left:
                    self._directory.unlink(self._new)
                with self._open(self._new, "x", block_size) as file:
                    write(file)  # type: ignore[arg-type]
            elif left:  # 2
                self._open(self._new, "r").close()
            else:
                raise RollbackError(
                    f"{self._what}: is missing, and its anchor holds a root",
                    hint="restore it from a copy; to load it again, use another anchor",
                )
            self._directory.rename(self._new, self._name)  # 4
            self._directory.sync()
            return made

    def _is_there(self) -> bool:
        if self._name not in self._directory.list():
            return False
        self._open(self._name, "r").close()
        return True

    def _is_anchored(self) -> bool:
        return not isinstance(self._anchor, NoFreshness) and self._anchor.read() is not None

    def _open(self, name: str, mode: Literal["r", "x"], block_size: int = BLOCK_SIZE) -> SealedFile:
        return open_in(self._directory, name, mode, self._key, self._anchor, block_size, what=self._what, expected=True)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        name = self._name + ".lock"
        locks = self._directory.locks(name)
        # Where there are none to wait for, whoever comes second is refused.
        lock = locks or self._open_or_create(name)
        try:
            if locks:
                locks.acquire(OPEN_BYTE, exclusive=True, wait=True)
            yield
        finally:
            lock.close()

    def _open_or_create(self, name: str) -> Storage:
        try:
            return self._directory.open(name, "x")
        except FileExistsError:
            return self._directory.open(name, "r+")
