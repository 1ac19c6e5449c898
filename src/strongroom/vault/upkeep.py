"""Keeping a vault small, and taking it out of reach of whoever knew its key."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from strongroom.crypto import equal
from strongroom.errors import LockedError, UsageError
from strongroom.storage import LOCKS_AT
from strongroom.vault.kind import meta_key
from strongroom.vault.rows import Packed, Tree

if TYPE_CHECKING:
    from strongroom.sealed import Root
    from strongroom.vault.engine import Engine

_STEP: Final = 4096  # blocks moved between two commits
_REKEY_STEP: Final = 1024
_BATCH: Final = 64 << 20  # bytes sealed anew between two commits


def compact(vault: Engine) -> int:
    """Give back space that nothing needs; by how many bytes the vault's files are smaller now.

    Pieces of packs that are less than three quarters in use are written anew, blocks at the end of data files move to
    free places before them, and so do those of `meta`. Files that another process is writing to stay as they are.
    """
    with vault._lock:
        before = _size(vault)
        vault.commit()
        for pack, size, live in vault._state.packs():
            if live * 4 < size * 3:
                for number in vault._state.packed(pack):
                    _rewrite(vault, number)
                vault.commit()
        trees = [inode.id for inode in vault._state.inodes() if isinstance(inode.body, Tree)]
        if not vault._files.write_once:
            for number in trees:
                _compact_tree(vault, number)
        vault._compact_meta()
        return before - _size(vault)


def _compact_tree(vault: Engine, number: int) -> None:
    node = vault._files.node(number)
    node.handles += 1
    try:
        idle = 0
        while idle < 2:  # the version before the last step must be gone, too
            idle = 0 if node.compact(_STEP) else idle + 1
            vault.commit()
    except LockedError:
        pass
    finally:
        node.handles -= 1
        if not node.handles:
            vault._files.release(node)


def rekey(vault: Engine, key: bytes, progress: Callable[[int], None]) -> Root:
    """As `Engine.rekey`: contents first, under new file keys, then `meta`, which holds these."""
    journal, meta = vault._journal, vault._meta
    _check_alone(vault)
    if meta.rekeying and not equal(key, vault._key):
        raise UsageError(
            f"{vault.name}: its last change of the key is not finished", hint="finish it: rekey to that key"
        )
    if not meta.rekeying:
        _rewrite_all(vault, progress)
    with vault._breaking(), vault._commit_lock():
        if not meta.rekeying:
            meta.rekey(meta_key(key, encrypted=vault.encrypted))
            meta.commit(log=journal.position)
        while meta.rekey_step(_REKEY_STEP):
            meta.commit(log=journal.position)
        root = meta.commit(log=journal.position)
        state = vault._state
        state.base = root.sequence
        # The old key goes when no version that can still be opened needs it.
        while meta.rekeying:
            _check_alone(vault)
            state.set_info("rekeyed", root.sequence.to_bytes(8, "little"))
            state.flush(meta.live_sequences(after_commit=True))
            root = meta.commit(log=journal.position)
            state.committed(root.sequence)
        vault._key = key
        journal.rekeyed(vault._meta_key)
    return root


def _check_alone(vault: Engine) -> None:
    # What another opening reads must stay under the key that it knows.
    if vault._locks and vault._locks.holders(LOCKS_AT, LOCKS_AT + (1 << 60) - 1):
        raise LockedError(f"{vault.name}: somebody has it open", hint="close it there, then try again")


def _rewrite_all(vault: Engine, progress: Callable[[int], None]) -> None:
    """Seal every content anew under a new file key, in commits of some size.

    Args:
        progress: told of each file's length.

    Raises:
        LockedError: another process is writing to a file.
    """
    done = 0
    for number, size in [(i.id, i.size) for i in vault._state.inodes() if isinstance(i.body, (Packed, Tree))]:
        if vault._state.find(number) is not None:
            _rewrite(vault, number)
            done += size
            progress(size)
        if done >= _BATCH:
            vault.commit()
            done = 0
    vault.commit()


def _rewrite(vault: Engine, number: int) -> None:
    node = vault._files.node(number)
    node.handles += 1
    try:
        node.rewrite()
    finally:
        node.handles -= 1
        if not node.handles:
            vault._files.release(node)


def _size(vault: Engine) -> int:
    total = 0
    for name in vault.directory.list():
        storage = vault.directory.open(name, "r", shared=True)
        try:
            total += storage.size()
        finally:
            storage.close()
    return total
