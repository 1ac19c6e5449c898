"""Looking a vault over: every block of it, and what it consists of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from strongroom.errors import FormatError, IntegrityError, StrongroomError
from strongroom.storage import LocalDirectory
from strongroom.vault.engine import META
from strongroom.vault.files import parse_data_name
from strongroom.vault.journal import LOG
from strongroom.vault.keys import KEYS, KeyRing
from strongroom.vault.paths import show
from strongroom.vault.rows import ROOT_INODE, Inline, Packed, Tree
from strongroom.vault.stream import VaultFile
from strongroom.vault.transfer import walk_vault
from strongroom.vault.vault import Vault

__all__ = ["Description", "Problem", "describe", "find_problems"]


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with one path of a vault."""

    path: str
    error: StrongroomError


def find_problems(vault: Vault, *, progress: Callable[[str, int], None] | None = None) -> list[Problem]:
    """Read every block of every file from the disk, and go on where one is wrong.

    Names and attributes are read on the way; if they are damaged, what is below them is not found, and the problem is
    that of the directory.

    Args:
        progress: is told of each path, and the length of the file.

    Returns:
        what is wrong, in the order of paths; most often nothing.
    """
    problems: list[Problem] = []
    left = [("", vault.inode(ROOT_INODE))]
    while left:
        path, inode = left.pop()
        try:
            if inode.is_dir:
                below = f"{path}/" if path else ""
                left += [(below + show(name), found) for name, found in vault.entries(inode.id)][::-1]
                continue
            if inode.is_file:
                with VaultFile(vault, vault.hold(inode.id), "rb", path) as file:
                    file.verify()
        except (IntegrityError, FormatError) as error:
            problems.append(Problem(path or "/", error))
        if progress and not inode.is_dir:
            progress(path, inode.size)
    return problems


@dataclass(frozen=True, slots=True)
class Description:
    """What a vault consists of.

    Attributes:
        encrypted: whether contents are ciphertext on the disk; else they are authenticated only.
        files, directories, links, others: how many there are; the top directory is not counted.
        size: the lengths of all files, in bytes.
        stored: bytes on the disk, all told; None where the storage does not say.
        inline, packed, large: how many files lie in `meta`, in packs, in a data file of their own.
        block_sizes: of the large ones: block size -> how many.
        packs, pack_bytes, pack_live: how many there are, their bytes, and those of them in use.
        log: bytes of the file `log`; None if there is none.
        slots: how many key slots there are; None without a `keys` file.
        changed: when `meta` was last written by the host's clock, in seconds since 1970; None if that is not known.
    """

    encrypted: bool
    files: int
    directories: int
    links: int
    others: int
    size: int
    stored: int | None
    inline: int
    packed: int
    large: int
    block_sizes: dict[int, int]
    packs: int
    pack_bytes: int
    pack_live: int
    log: int | None
    slots: int | None
    changed: float | None


def describe(vault: Vault) -> Description:
    """Count a vault's files and what holds them.

    Raises:
        IntegrityError, FormatError: names or attributes are not what was committed.
    """
    kinds: Counter[str] = Counter()
    blocks: Counter[int] = Counter()
    size = 0
    for _, inode in walk_vault(vault, ROOT_INODE):
        kinds["dir" if inode.is_dir else "file" if inode.is_file else "link" if inode.is_link else "other"] += 1
        if not inode.is_file:
            continue
        size += inode.size
        if isinstance(inode.body, Tree):
            kinds["large"] += 1
            blocks[inode.body.block_size] += 1
        elif isinstance(inode.body, Packed):
            kinds["packed"] += 1
        elif isinstance(inode.body, Inline) or inode.body is None:
            kinds["inline"] += 1
    packs = vault._state.packs()
    stored, log, changed = _on_disk(vault)
    ring = KeyRing.load(vault.directory)
    return Description(
        encrypted=vault.encrypted,
        files=kinds["file"],
        directories=kinds["dir"],
        links=kinds["link"],
        others=kinds["other"],
        size=size,
        stored=stored,
        inline=kinds["inline"],
        packed=kinds["packed"],
        large=kinds["large"],
        block_sizes=dict(sorted(blocks.items())),
        packs=len(packs),
        pack_bytes=sum(pack[1] for pack in packs),
        pack_live=sum(pack[2] for pack in packs),
        log=log,
        slots=len(ring.slots) if ring else None,
        changed=changed,
    )


def _on_disk(vault: Vault) -> tuple[int | None, int | None, float | None]:
    if not isinstance(vault.directory, LocalDirectory):
        return None, None, None
    path = vault.directory.path
    stored, log, changed = 0, None, None
    for name in vault.directory.list():
        if name not in (META, LOG, KEYS) and parse_data_name(name) is None:
            continue
        try:
            status = (path / name).stat()
        except FileNotFoundError:
            continue  # removed by a commit just now
        stored += getattr(status, "st_blocks", -(-status.st_size // 512)) * 512
        if name == LOG:
            log = status.st_size
        if name == META:
            changed = status.st_mtime
    return stored, log, changed
