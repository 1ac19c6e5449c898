"""A vault that attacks are tried on: its disk as bytes, so that each attempt starts from a copy of it."""

from __future__ import annotations

import random

from strongroom.errors import StrongroomError
from strongroom.sealed import NO_FRESHNESS, Anchor, MemoryAnchor, NoFreshness
from strongroom.storage import MemoryDirectory
from strongroom.vault.rows import Packed, Tree
from strongroom.vault.vault import Vault

KEY = bytes(range(32))
BLOCK = 4096
_random = random.Random(20)  # noqa: S311  # the same vault each time
CONTENTS = {
    "inline": _random.randbytes(500),
    "train/packed": _random.randbytes(3000),
    "train/packed-too": _random.randbytes(3000),
    "train/images": _random.randbytes(70_000),
    "train/labels": _random.randbytes(70_000),
}

Disk = dict[str, bytes]


def open_disk(disk: Disk | MemoryDirectory, mode="r", anchor: Anchor | NoFreshness = NO_FRESHNESS, *, log=False):
    """An opening of a vault on a disk; on a copy of it if it is given as bytes."""
    directory = disk if isinstance(disk, MemoryDirectory) else MemoryDirectory(disk)
    return Vault(directory, mode, KEY, anchor, what="vault", log=log)


def made() -> tuple[MemoryDirectory, MemoryAnchor]:
    """A vault with files of each kind, in two commits."""
    directory, anchor = MemoryDirectory(), MemoryAnchor()
    with open_disk(directory, "x", anchor) as opened:
        opened.mkdir("train")
        opened.commit()
        for path, content in CONTENTS.items():
            with opened.open(path, "xb", block_size=BLOCK) as file:
                file.write(content)
    return directory, anchor


def copied(directory: MemoryDirectory) -> Disk:
    return {name: bytes(file.data) for name, file in directory.files.items()}


def read_all(disk: Disk | MemoryDirectory, anchor: Anchor | NoFreshness = NO_FRESHNESS) -> dict[str, bytes]:
    """The content of every file, all blocks of which were read from the disk."""
    with open_disk(disk, "r", anchor) as opened:
        opened.verify()
        return {path: opened.read_bytes(path) for path in opened.files()}


def body_of(disk: Disk | MemoryDirectory, path: str):
    with open_disk(disk) as opened:
        return opened.inode(opened.stat(path).inode).body


def data_file(disk: Disk | MemoryDirectory, path: str) -> str:
    """The name of the file that a path's content lies in."""
    body = body_of(disk, path)
    assert isinstance(body, (Packed, Tree))
    return (body.pack if isinstance(body, Packed) else body.file).hex()


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def swapped(data: bytes, one: int, two: int, size: int) -> bytes:
    """`data` with the `size` bytes at two offsets exchanged."""
    changed = bytearray(data)
    changed[one : one + size], changed[two : two + size] = data[two : two + size], data[one : one + size]
    return bytes(changed)


def outcome(disk: Disk, expected: dict[str, bytes], anchor: Anchor | NoFreshness) -> str:
    """``refused``, ``noted`` (repaired and reported), or ``same``; anything else read is a failure.

    `anchor` stays as it is.
    """
    own = MemoryAnchor(anchor.read()) if not isinstance(anchor, NoFreshness) else anchor
    try:
        with open_disk(disk, "r", own) as opened:
            found = {path: opened.read_bytes(path) for path in opened.files()}
            notes = opened.notes
    except StrongroomError:
        return "refused"
    assert found == expected
    return "noted" if notes else "same"
