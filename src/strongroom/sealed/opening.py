"""Opening a sealed file by path, by storage, or in a directory."""

from __future__ import annotations

import os
from pathlib import Path

from strongroom.crypto import KEY_SIZE
from strongroom.errors import UsageError
from strongroom.sealed import layout
from strongroom.sealed.anchor import Anchor, NoFreshness
from strongroom.sealed.file import Mode, SealedFile
from strongroom.sealed.layout import DEFAULT_BLOCK
from strongroom.storage import Directory, LocalDirectory, Storage


def open_sealed(
    file: str | os.PathLike[str] | Storage,
    mode: Mode = "r",
    *,
    key: bytes,
    anchor: Anchor | NoFreshness,
    block_size: int = DEFAULT_BLOCK,
) -> SealedFile:
    """Open a sealed file; use it like one that `open` gave in binary mode.

    Nothing that is written counts before `commit`, which `close` and the end of a ``with`` block call too; a ``with``
    block that an exception ends discards what was not committed.

    Args:
        file: a path, or a storage, which the sealed file then owns.
        mode: ``r`` to read, ``r+`` to read and write, ``x`` to create, ``w`` to create or to replace the content.
        key: 32 bytes.
        anchor: where the latest root is remembered, or `NO_FRESHNESS` to accept any authentic version, however old.
        block_size: of a new file, a power of two from 4 KiB to 4 MiB; others have theirs.

    Raises:
        FileNotFoundError, FileExistsError: as `open` does.
        LockedError: somebody else is writing.
        FormatError: it is not a sealed file.
        WrongKeyError: it was sealed under another key.
        TruncatedError: it is shorter than its root says.
        RollbackError: it is not what the anchor holds.
        TamperedError: it fails to authenticate in any other way.
    """
    if mode not in ("r", "w", "x", "r+"):
        raise UsageError(f"mode: {mode!r}, wanted r, r+, w or x")
    if len(key) != KEY_SIZE:
        raise UsageError(f"sealing key: {len(key)} bytes, wanted {KEY_SIZE}")
    layout.check_block_size(block_size)
    if not isinstance(file, (str, os.PathLike)):
        return SealedFile(file, mode, key, anchor, block_size, what="sealed file")
    path = Path(file)
    return open_in(LocalDirectory(path.parent), path.name, mode, key, anchor, block_size, what=str(path))


def open_in(
    directory: Directory,
    name: str,
    mode: Mode,
    key: bytes,
    anchor: Anchor | NoFreshness,
    block_size: int = DEFAULT_BLOCK,
    *,
    what: str,
    write_once: bool = False,
    expected: bool = False,
) -> SealedFile:
    """As `open_sealed`, of a file in any kind of directory.

    Args:
        what: the name to call it in errors.
        write_once: nothing will name the file before its first commit has returned: whoever names it then syncs the
            directory, and within the file one sync orders enough.
        expected: something else says that a sealed file is there, so that one too short to tell was truncated.
    """
    storage = _open_storage(directory, name, mode)
    try:
        home = None if write_once else directory
        file = SealedFile(
            storage,
            mode,
            key,
            anchor,
            block_size,
            what=what,
            directory=home,
            write_once=write_once,
            expected=expected,
        )
    except BaseException:
        storage.close()
        raise
    if file.root is None:
        file.on_abandon = lambda: directory.unlink(name)
    return file


def _open_storage(directory: Directory, name: str, mode: Mode) -> Storage:
    if mode == "r" or mode == "r+":
        return directory.open(name, mode)
    try:
        return directory.open(name, "x")
    except FileExistsError:
        if mode == "x":
            raise
        return directory.open(name, "r+")
