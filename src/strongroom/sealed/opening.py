"""Opening a sealed file by path, by storage, or in a directory."""

from __future__ import annotations

import os
from pathlib import Path

from strongroom.crypto import KEY_SIZE
from strongroom.errors import UsageError
from strongroom.sealed import layout
from strongroom.sealed.anchor import NO_FRESHNESS, Anchor, NoFreshness, Root
from strongroom.sealed.file import DEFAULT_CACHE, SealedFile
from strongroom.sealed.layout import DEFAULT_BLOCK
from strongroom.sealed.stream import Mode
from strongroom.storage import Directory, LocalDirectory, Storage


def open_sealed(
    file: str | os.PathLike[str] | Storage,
    mode: Mode = "r",
    *,
    key: bytes,
    anchor: Anchor | NoFreshness,
    block_size: int = DEFAULT_BLOCK,
    encrypted: bool | None = None,
    at: Root | int | None = None,
    cache: int = DEFAULT_CACHE,
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
        encrypted: False makes a new file authenticated only: anybody can read its blocks, nobody can change them. An
            existing file is refused if it is not as stated; by default a reader takes either kind, which nobody without
            the key can exchange for the other, and a writer an encrypted one only.
        at: with mode ``r``, the older version to open: one that is retained, the one before the newest, or one that
            another reader has open. By its number, or by its root.
        cache: bytes of decrypted blocks that are kept for small reads and writes.

    A reader sees the version that was the newest when it opened the file, also while a writer goes on. Where the
    platform lacks locks for that, readers and a writer exclude each other.

    Raises:
        FileNotFoundError, FileExistsError: as `open` does.
        LockedError: somebody else is writing.
        UsageError: `at` names a version that is not kept.
        FormatError: it is not a sealed file, or not `encrypted` as stated.
        WrongKeyError: it was sealed under another key.
        TruncatedError: it is shorter than its root says.
        RollbackError: it is not what the anchor holds.
        TamperedError: it fails to authenticate in any other way.
    """
    if mode not in ("r", "w", "x", "r+"):
        raise UsageError(f"mode: {mode!r}, wanted r, r+, w or x")
    check_key(key)
    check_anchor(anchor)
    layout.check_block_size(block_size)
    if at is not None and mode != "r":
        raise UsageError(f"mode: {mode!r}, wanted r: an older version can only be read")
    if not isinstance(file, (str, os.PathLike)):
        return SealedFile(
            file, mode, key, anchor, block_size, what="sealed file", encrypted=encrypted, at=at, cache=cache
        )
    # A link of the caller's own is followed; below, none is: in a directory of sealed files somebody else made it.
    path = Path(os.path.realpath(file))
    return open_in(
        LocalDirectory(path.parent),
        path.name,
        mode,
        key,
        anchor,
        block_size,
        what=os.fspath(file),
        encrypted=encrypted,
        at=at,
        cache=cache,
    )


def check_key(key: object) -> None:
    """Raises UsageError unless it is one."""
    if not isinstance(key, (bytes, bytearray, memoryview)):
        raise UsageError(
            f"sealing key: {type(key).__name__}, wanted {KEY_SIZE} bytes", hint="load_key reads a key file"
        )
    if len(key) != KEY_SIZE:
        raise UsageError(f"sealing key: {len(key)} bytes, wanted {KEY_SIZE}")


def check_anchor(anchor: object) -> None:
    """Raises UsageError unless it is one, or `NO_FRESHNESS`."""
    if anchor is not NO_FRESHNESS and not (hasattr(anchor, "read") and hasattr(anchor, "advance")):
        raise UsageError(
            f"anchor: {type(anchor).__name__}, wanted an anchor or NO_FRESHNESS",
            hint="FileAnchor(path) is one in a file",
        )


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
    shared: bool = False,
    encrypted: bool | None = None,
    at: Root | int | None = None,
    cache: int = DEFAULT_CACHE,
    write_early: bool = True,
) -> SealedFile:
    """As `open_sealed`, of a file in any kind of directory.

    Args:
        what: the name to call it in errors.
        write_once: nothing will name the file before its first commit has returned: whoever names it then syncs the
            directory, and within the file one sync orders enough.
        expected: something else says that a sealed file is there, so that one too short to tell was truncated.
        shared: several processes write it, and the caller sees to it that one at a time commits, with nobody else's
            commit unseen (`SealedFile.moved`). The caller also looks for `SealedFile.wanted_log` in the log beside it.
        write_early: whether changed blocks may be written before the commit. If not, all of them stay in memory; so
            they do in a file that is `shared`.
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
            shared=shared,
            encrypted=encrypted,
            at=at,
            cache=cache,
            write_early=write_early,
        )
    except BaseException:
        storage.close()
        raise
    if file.root is None:
        file.on_abandon = lambda: directory.unlink(name)
    return file


def _open_storage(directory: Directory, name: str, mode: Mode) -> Storage:
    """Open it without the lock of a plain opener, where there are byte locks to do better with."""
    try:
        storage = directory.open(name, "x" if mode in ("w", "x") else mode, shared=True)  # type: ignore[arg-type]
    except FileExistsError:
        if mode == "x":
            raise
        storage = directory.open(name, "r+", shared=True)
    if storage.locks is None and not directory.write_once:  # an object store keeps nobody out either way
        storage.close()
        return directory.open(name, "r" if mode == "r" else "r+")
    return storage
