"""Copies of a vault as it is on the disk: made while others write, and put back.

A backup is a vault: the same ciphertext under the same keys, at the one commit it was made at. Rules:

- The commit is pinned by a reader, so nothing that it reaches is overwritten or unlinked meanwhile. Its slot is read
  first, then the data files, then the blocks of `meta`, in that order; slots of other commits are left out of the copy,
  since what they name need not be in it.
- No more of a file is copied than the commit says it needs: whoever holds the disk can make it as long as they like.
- What is put in place of a vault is a copy of the backup, made beside the vault and verified there: whoever holds the
  medium of the backup cannot exchange it between the check and the use. What was there is kept under another name.
- The anchor moves last. A crash before that leaves a vault that the anchor refuses, and the same call mends it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

from strongroom.errors import FormatError, LockedError, StrongroomError, TamperedError, UsageError
from strongroom.sealed import NO_FRESHNESS, Anchor, FileAnchor, MemoryAnchor, NoFreshness, Root
from strongroom.sealed.layout import SLOT_SIZE, SLOTS_SIZE, block_cipher, open_slot, parse_header
from strongroom.storage import LOCKS_AT, Directory, LocalDirectory, Storage
from strongroom.vault.access import VaultKey, unlock
from strongroom.vault.check import find_problems
from strongroom.vault.engine import MAX_LOG, META
from strongroom.vault.files import parse_data_name
from strongroom.vault.journal import LOG
from strongroom.vault.keys import KEYS
from strongroom.vault.kind import meta_key
from strongroom.vault.rows import ROOT_INODE, Tree
from strongroom.vault.transfer import walk_vault
from strongroom.vault.vault import Vault
from strongroom.vault.vault import open as open_vault

Progress = Callable[[str, int], None]

_CHUNK: Final = 1 << 20
_ZEROS: Final = memoryview(bytes(_CHUNK))
_ATTEMPTS: Final = 5
_MAX_KEYS: Final = 16 << 20  # far more than that file may have; who reads it says so
_HIGHEST_BYTE: Final = (1 << 63) - 1


def backup(
    path: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    key: VaultKey,
    anchor: Anchor | NoFreshness,
    progress: Progress | None = None,
) -> Root:
    """Copy a vault, at its newest commit, into a new directory. Others may write to it meanwhile.

    What is copied is ciphertext and not checked: `verify_copy` does that. What a mount's fsync made durable after its
    last commit, a few seconds ago at most, is not in it.

    Args:
        key, anchor: as `vault.open` has them.
        progress: is told of names of data files, and of how many more bytes were copied.

    Returns:
        the root of the copy.

    Raises:
        FileExistsError: `destination` is not empty.
        LockedError: commits came so fast that none could be pinned.
        UsageError: nothing was ever committed.
        As `vault.open`.
    """
    top = Path(destination)
    top.mkdir(mode=0o700, parents=True, exist_ok=True)
    if any(top.iterdir()):
        raise FileExistsError(f"{top}: is not empty")
    for _ in range(_ATTEMPTS):
        with open_vault(path, "r", key=key, anchor=anchor) as vault:
            root = vault.root
            if root is None:
                raise UsageError(f"{vault.name}: nothing was ever committed to it")
            slots = _own_slots(vault, root)
            if slots is None:
                continue  # four commits came between the pin and this
            _copy_pinned(vault, slots, LocalDirectory(top), progress)
        LocalDirectory(top.absolute().parent).sync()
        return root
    raise LockedError(f"{os.fspath(path)}: commits come too fast to pin one", hint="try again when less is written")


def _copy_pinned(vault: Vault, slots: bytes, target: Directory, progress: Progress | None) -> None:
    for name, size in sorted(_data_sizes(vault).items()):
        _copy(vault.directory, target, name, size, progress)
    _copy(vault.directory, target, META, _meta_size(vault._meta_key, slots), progress, head=slots)
    if KEYS in vault.directory.list():
        _copy(vault.directory, target, KEYS, _MAX_KEYS, progress)
    target.sync()


def _own_slots(vault: Vault, root: Root) -> bytes | None:
    """The slots of `meta` without those of other commits than `root`; None if none is left."""
    raw = bytearray(SLOTS_SIZE)
    storage = vault.directory.open(META, "r", shared=True)
    try:
        storage.read_into(0, raw)
    finally:
        storage.close()
    kept = False
    for at in range(0, SLOTS_SIZE, SLOT_SIZE):
        if _is_of(vault, bytes(raw[at : at + SLOT_SIZE]), root):
            kept = True
        else:
            raw[at : at + SLOT_SIZE] = bytes(SLOT_SIZE)
    return bytes(raw) if kept else None


def _is_of(vault: Vault, slot: bytes, root: Root) -> bool:
    try:
        header = parse_header(slot)
        if header is None or not header.check_key(vault._meta_key):
            return False
        commit = open_slot(block_cipher(vault._meta_key, header.file_id), slot)
    except (FormatError, TamperedError):
        return False
    return commit.root(header).version == root.version


def _data_sizes(vault: Vault) -> dict[str, int]:
    """The data files of a commit by name, and how much of each it reaches."""
    sizes = {pack[0].hex(): pack[1] for pack in vault._state.packs()}
    for _, inode in walk_vault(vault, ROOT_INODE):
        if isinstance(body := inode.body, Tree):
            name = body.file.hex()
            sizes[name] = max(sizes.get(name, 0), body.version.places * body.block_size)
    return sizes


def _meta_size(key: bytes, slots: bytes) -> int:
    """How much of `meta` the commits in its slots reach, and the older versions that they retain."""
    size = SLOTS_SIZE
    for at in range(0, SLOTS_SIZE, SLOT_SIZE):
        slot = slots[at : at + SLOT_SIZE]
        try:
            header = parse_header(slot)
            if header is None or not header.check_key(key):
                continue
            commit = open_slot(block_cipher(key, header.file_id), slot)
        except (FormatError, TamperedError):
            continue
        size = max(size, header.block_size * max([commit.places, *(older.places for older in commit.retained)]))
    return size


def _copy(
    source: Directory, target: Directory, name: str, limit: int, progress: Progress | None, *, head: bytes = b""
) -> None:
    """Copy at most `limit` bytes of a file; its first bytes are `head` in the copy."""
    old = source.open(name, "r", shared=True)
    try:
        new = target.open(name, "x", shared=True)
        try:
            if head:
                new.write_at(0, head)
            _copy_bytes(old, new, len(head), limit, name, progress)
            new.sync()
        finally:
            new.close()
    finally:
        old.close()


def _copy_bytes(old: Storage, new: Storage, at: int, limit: int, name: str, progress: Progress | None) -> None:
    buffer = memoryview(bytearray(_CHUNK))
    while at < limit and (count := old.read_into(at, buffer[: limit - at])):
        if buffer[:count] != _ZEROS[:count]:
            new.write_at(at, buffer[:count])
        else:
            new.resize(at + count)  # holes stay holes
        at += count
        if progress:
            progress(name, count)


def verify_copy(
    path: str | os.PathLike[str], key: VaultKey, expected: Root | None = None, *, progress: Progress | None = None
) -> Root:
    """Read every block of a backup; its root.

    Args:
        expected: the version that it must be; None accepts any authentic one.

    Raises:
        IntegrityError: it is not what was committed. The message names the first path, and counts the others.
        UsageError: it is another version.
    """
    with open_vault(path, "r", key=key, anchor=NO_FRESHNESS) as copy:
        root = copy.root
        if root is None:
            raise UsageError(f"{copy.name}: nothing was ever committed to it")
        if expected is not None and root.version != expected.version:
            raise UsageError(f"{copy.name}: is version {root.sequence}, wanted {expected.sequence}")
        problems = find_problems(copy, progress=progress)
    if problems:
        first = problems[0]
        more = f", and {len(problems) - 1} more" if len(problems) > 1 else ""
        raise type(first.error)(f"{copy.name}: {first.path}: {first.error.message}{more}", hint=first.error.hint)
    return root


def restore(
    source: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    key: VaultKey,
    anchor: FileAnchor | MemoryAnchor,
    reason: str,
    progress: Progress | None = None,
) -> tuple[Root, Path | None]:
    """Put a backup in the place of a vault, and authorise that at the anchor, which logs it.

    Versions that were committed after the backup are refused from then on.

    Args:
        source: the backup; it stays as it is.
        path: the vault, which nobody may have open; or where it was.
        reason: why; the anchor's history keeps it.

    Returns:
        what the anchor holds now, and where the vault that was replaced lies, if there was one.

    Raises:
        IntegrityError: the backup is not what was once committed. Nothing was changed.
        LockedError: somebody has the vault open. Nothing was changed.
        UsageError: the anchor holds no root, or the backup is what the anchor wants anyhow and the vault is there.
    """
    top, old = Path(source), Path(path).absolute()
    if not reason.strip():
        raise UsageError("reason: is empty, wanted why an older version is to be accepted")
    if anchor.read() is None:
        raise UsageError("anchor: holds no root, wanted that of the vault", hint="the backup opens with a new anchor")
    if not top.is_dir():
        raise UsageError(f"backup: {top} is not a directory")
    if top.resolve() == old.resolve():
        raise UsageError(f"backup: {top} is the vault itself")
    new = _free_name(old, "restoring")
    old.parent.mkdir(parents=True, exist_ok=True)
    try:
        _copy_tree(top, new, key, progress)
        root = verify_copy(new, key, progress=progress)
        replaced = _swap(old, new)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    try:
        restored = anchor.restore(root, reason=reason)
    except StrongroomError:
        _undo(old, replaced)
        raise
    return restored, replaced


def _copy_tree(top: Path, new: Path, key: VaultKey, progress: Progress | None) -> None:
    source, target = LocalDirectory(top), LocalDirectory(new)
    new.mkdir(mode=0o700)
    names = source.list()
    if KEYS in names:
        _copy(source, target, KEYS, _MAX_KEYS, progress)
    slots = bytearray(SLOTS_SIZE)
    storage = source.open(META, "r", shared=True)
    try:
        storage.read_into(0, slots)
    finally:
        storage.close()
    found = unlock(target, key).key
    sizes_of_meta = [_meta_size(meta_key(found, encrypted=kind), bytes(slots)) for kind in (True, False)]
    _copy(source, target, META, max(sizes_of_meta), progress)
    with open_vault(new, "r", key=key, anchor=NO_FRESHNESS) as copy:
        sizes = _data_sizes(copy)
        if LOG in names:
            _copy(source, target, LOG, 2 * MAX_LOG, progress)
            if copy._journal.pending():  # what it takes in may reach more
                sizes = {name: LOCKS_AT for name in names if parse_data_name(name)}
    for name in sorted(sizes.keys() & set(names)):
        _copy(source, target, name, sizes[name], progress)
    target.sync()


def _swap(old: Path, new: Path) -> Path | None:
    """Give `new` the name of `old`; where `old` went."""
    replaced = None
    if old.exists():
        _check_unused(old)
        replaced = _free_name(old, "replaced")
        old.rename(replaced)
    try:
        new.rename(old)
    except OSError:
        if replaced:
            replaced.rename(old)
        raise
    LocalDirectory(old.parent).sync()
    return replaced


def _undo(old: Path, replaced: Path | None) -> None:
    shutil.rmtree(old, ignore_errors=True)
    if replaced:
        replaced.rename(old)
    LocalDirectory(old.parent).sync()


def _check_unused(path: Path) -> None:
    if not (path / META).exists():
        return
    locks = LocalDirectory(path).locks(META)
    if locks is None:
        return  # no such locks here: who has it open keeps writing to what was replaced
    try:
        if locks.holders(LOCKS_AT, _HIGHEST_BYTE):
            raise LockedError(f"{path}: somebody has it open", hint="close or unmount it, then try again")
    finally:
        locks.close()


def _free_name(path: Path, word: str) -> Path:
    number = 1
    while (found := path.with_name(f"{path.name}.{word}-{number}")).exists():
        number += 1
    return found
