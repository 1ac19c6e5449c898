"""Makes the files and the index of this folder: ``python -m tests.vectors.sealed.generate``, in the repository's root.

The same bytes come out each time. The trees are built by hand here, so that they can be wrong in ways in which no
writer of ours makes them wrong.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

from strongroom.crypto import BlockCipher
from strongroom.sealed import layout
from strongroom.sealed.anchor import Root
from strongroom.sealed.layout import HOLE, POINTER, Commit, Header

FOLDER = Path(__file__).parent
BLOCK = 4096
KEY, OTHER_KEY = bytes(range(32)), bytes(range(1, 33))
TAG = bytes(range(16))
TEXT = b"What the slots say counts.\n"


class File:
    """A sealed file in the making."""

    def __init__(self, name: str, *, flags: int = 0, key: bytes = KEY) -> None:
        self.name, self.data, self.nonces = name, bytearray(4 * 4096), 0
        file_id = hashlib.sha256(name.encode()).digest()[:16]
        self.header = Header(BLOCK, file_id, layout.commitment(key, file_id), flags)
        self.key = layout.block_key(key, file_id)

    def nonce(self) -> bytes:
        self.nonces += 1
        return hashlib.sha256(f"{self.name} {self.nonces}".encode()).digest()[:24]

    def put(self, at: int, data: bytes) -> None:
        self.data.extend(bytes(max(0, at + len(data) - len(self.data))))
        self.data[at : at + len(data)] = data

    def block(self, place: int, index: int, data: bytes, *, level: int = 0, generation: int = 0, key: bytes = b""):
        """Seal a block; its pointer."""
        cipher, nonce = BlockCipher(key or self.key), self.nonce()
        aad = layout.block_aad(self.header.file_id, self.header.flags) + layout.pack_level_index(level, index)
        block = data.ljust(BLOCK, b"\0")
        if self.header.encrypted:
            box = cipher.encrypt(nonce, block, aad)
            block, tag = box[:BLOCK], box[BLOCK:]
        else:
            tag = cipher.encrypt(nonce, b"", aad + block)
        self.put(place * BLOCK, block)
        return POINTER.pack(generation << 56 | place, nonce, tag)

    def slot(self, at: int, commit: Commit) -> Root:
        """Seal a slot; its root."""
        self.put(at * 4096, layout.seal_slot(BlockCipher(self.key), self.header, commit, self.nonce()))
        return commit.root(self.header)


def after(file: File, commit: Commit, **changes: object) -> Commit:
    """A commit that follows `commit`."""
    root = commit.root(file.header)
    fields = {"retained": (), "since": ()} | changes
    return replace(commit, sequence=commit.sequence + 1, previous=Root(*root.version), **fields)  # type: ignore[arg-type]


def one_block(name: str, text: bytes = TEXT, **kind: object) -> tuple[File, Commit]:
    file = File(name, **kind)  # type: ignore[arg-type]
    return file, Commit(1, len(text), 5, file.block(4, 0, text), None)


def tree(name: str, **kind: object) -> tuple[File, Commit, bytes]:
    """Three blocks, the second a hole, under an interior one."""
    file = File(name, **kind)  # type: ignore[arg-type]
    content = bytes(range(256)) * 16 + bytes(BLOCK) + TEXT
    pointers = [file.block(4, 0, content[:BLOCK]), HOLE, file.block(5, 2, TEXT)]
    return file, Commit(1, len(content), 7, file.block(6, 0, b"".join(pointers), level=1), None), content


class Index:
    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.vectors: list[dict[str, object]] = []

    def add(self, name: str, file: File | str, expect: bytes | str, *, why: str, **how: object) -> None:
        """One vector: `expect` is the content, or the verdict. A file's name stands for a file added before."""
        if isinstance(file, File):
            self.files[f"{name}.sealed"] = bytes(file.data)
            file = name
        result = {"refused": expect} if isinstance(expect, str) else {"sha256": hashlib.sha256(expect).hexdigest()}
        vector = {"name": name, "why": why, "file": f"{file}.sealed", "key": KEY.hex()}
        self.vectors.append(vector | how | result)


def make() -> tuple[dict[str, bytes], list[dict[str, object]]]:
    """The files by name, and the index."""
    index = Index()
    _whole(index)
    _slots(index)
    _freshness(index)
    _blocks(index)
    return index.files, index.vectors


def _whole(index: Index) -> None:
    file = File("empty")
    file.slot(0, Commit(1, 0, 4, HOLE, None))
    index.add("empty", file, b"", why="no block at all")

    file, commit, content = tree("tree")
    root = file.slot(0, commit)
    index.add("tree", file, content, why="two levels and a hole; the anchor holds its root", anchor=str(root))
    index.add("tree_first_commit_of_a_log", "tree", "rollback", why="a log is wanted", anchor=f"{root}+1:{TAG.hex()}")
    index.add("wrong_key", "tree", "wrong-key", why="another key", key=OTHER_KEY.hex())
    index.add("tree_clear_wanted", "tree", "format", why="is encrypted, wanted authenticated only", encrypted=False)

    file, commit, content = tree("authenticated_only", flags=1)
    file.slot(0, commit)
    index.add("authenticated_only", file, content, why="blocks lie in clear")
    index.add(
        "authenticated_only_encryption_wanted", "authenticated_only", "format", why="lies in clear", encrypted=True
    )
    file.data[10] = 0
    index.add("flag_stripped", file, "tampered", why="the flag of a file in clear was cleared")

    file, commit = one_block("retained")
    first = commit
    kept = (first.as_retained(file.header),)
    for n in range(2, 5):
        text = TEXT * n
        commit = after(file, commit, pointer=file.block(3 + n, 0, text), length=len(text), places=4 + n, retained=kept)
    file.slot(0, commit)
    index.add("retained", file, TEXT * 4, why="the newest of four versions")
    index.add("retained_opened", "retained", TEXT, why="the first of them, which is retained", at=1)
    index.add("not_retained", "retained", "usage", why="the second, which nothing names", at=2)

    file, commit, content = tree("key_changed")
    old = file.key
    file.header = replace(file.header, commitment=layout.commitment(OTHER_KEY, file.header.file_id))
    file.key = layout.block_key(OTHER_KEY, file.header.file_id)
    new = b"new".ljust(BLOCK, b"\0")
    pointers = file.block(7, 0, new, generation=1) + HOLE + file.block(5, 2, TEXT, key=old)
    node = file.block(8, 0, pointers, level=1, generation=1)
    commit = after(file, commit, pointer=node, places=9, generation=1, old_key=old)
    file.slot(0, commit)
    index.add(
        "key_changed", file, new + content[BLOCK:], why="blocks of two generations of the key", key=OTHER_KEY.hex()
    )
    index.add("key_changed_old_key", "key_changed", "wrong-key", why="the key before")


def _slots(index: Index) -> None:
    file, commit = one_block("not_sealed")
    index.add("not_sealed", file, "format", why="slots of zeros")
    file.slot(0, commit)
    file.data[8] = 2
    index.add("version_2", file, "format", why="a version of the future")

    file, commit = one_block("unknown_flag", flags=2)
    file.slot(0, commit)
    index.add("unknown_flag", file, "format", why="a flag of the future")

    file, commit = one_block("body_unused_byte")
    body = layout._pack_body
    layout._pack_body = lambda commit: body(commit)[:-1] + b"\1"
    try:
        file.slot(0, commit)
    finally:
        layout._pack_body = body
    index.add("body_unused_byte", file, "format", why="the last byte of the body, which is not used")

    file, commit = one_block("retained_out_of_order")
    kept = commit.as_retained(file.header)
    later = after(file, after(file, commit))
    file.slot(0, replace(later, retained=(replace(kept, sequence=2), kept)))
    index.add("retained_out_of_order", file, "format", why="retained roots that do not rise")

    file, commit = one_block("twin_torn")
    file.slot(0, commit)
    file.slot(1, commit)
    file.data[1000:1512] = bytes(512)
    index.add("twin_torn", file, TEXT, why="one of two copies of the slot is torn", damaged=[0])

    file, commit = one_block("twin_other")
    file.slot(0, commit)
    file.slot(1, replace(commit, length=3))
    index.add("twin_other", file, "tampered", why="two commits of one sequence")

    file, commit = one_block("slot_of_another_file")
    file.slot(0, commit)
    other, commit = one_block("another file")
    other.slot(1, commit)
    file.data[4096:8192] = other.data[4096:8192]
    index.add("slot_of_another_file", file, "tampered", why="a slot of another file under the same key")

    file, commit, _ = tree("truncated")
    file.slot(0, commit)
    del file.data[-1:]
    index.add("truncated", file, "truncated", why="the last byte is missing")


def _freshness(index: Index) -> None:
    file, first = one_block("history", TEXT)
    second = after(file, first, pointer=file.block(5, 0, TEXT * 2), length=len(TEXT * 2), places=6)
    third = after(file, second, pointer=file.block(6, 0, TEXT * 3), length=len(TEXT * 3), places=7)
    roots = [file.slot(at, commit) for at, commit in enumerate((first, second, third))]
    index.add("history", file, TEXT * 3, why="the newest of three slots", anchor=str(roots[2]))
    index.add("history_before", "history", TEXT * 2, why="the version before the newest", at=2)
    index.add("successor", "history", TEXT * 3, why="the anchor is one commit behind", anchor=str(roots[1]))
    index.add("two_behind", "history", "rollback", why="the anchor is two commits behind", anchor=str(roots[0]))
    ahead = Root(4, bytes(32))
    index.add("older_root", "history", "rollback", why="the anchor knows a newer commit", anchor=str(ahead))
    fork = Root(2, bytes(32))
    index.add("fork", "history", "rollback", why="follows another commit than the anchor's", anchor=str(fork))
    restored = replace(roots[2], epoch=1)
    index.add("restored", "history", TEXT * 3, why="a restore of this version was authorised", anchor=str(restored))
    left = replace(roots[1], epoch=1)
    index.add("branch_left", "history", "rollback", why="follows what was restored, epoch before", anchor=str(left))
    logged = replace(roots[1], lsn=1, tag=TAG)
    index.add("lost_race", "history", "rollback", why="has not taken in the anchor's log", anchor=str(logged))
    file.data[2 * 4096 + 2000] ^= 1
    index.add("torn_newest", file, TEXT * 2, why="the newest slot is torn: the one before", damaged=[2])
    index.add("torn_newest_seen", "torn_newest", "rollback", why="the anchor knows of it", anchor=str(roots[2]))

    file, commit = one_block("grouped")
    roots = [commit.root(file.header)]
    for _ in range(4):
        commit = after(file, commit, since=tuple(root.digest for root in roots[1:]))
        roots.append(commit.root(file.header))
    file.slot(0, commit)
    index.add("grouped", file, TEXT, why="the anchor is the first that the slot lists", anchor=str(roots[1]))
    index.add(
        "grouped_behind", "grouped", "rollback", why="the anchor is none that the slot lists", anchor=str(roots[0])
    )


def _blocks(index: Index) -> None:
    file, commit, _ = tree("block_bit")
    file.slot(0, commit)
    file.data[5 * BLOCK] ^= 0x80
    index.add("block_bit", file, "tampered", why="one bit of a data block")

    file, commit, _ = tree("blocks_swapped")
    file.slot(0, commit)
    file.data[4 * BLOCK : 6 * BLOCK] = file.data[5 * BLOCK : 6 * BLOCK] + file.data[4 * BLOCK : 5 * BLOCK]
    index.add("blocks_swapped", file, "tampered", why="two data blocks changed places")

    file = File("place_in_slots")
    file.put(4 * BLOCK, bytes(BLOCK))
    file.slot(0, Commit(1, 5, 5, file.block(3, 0, TEXT), None))
    index.add("place_in_slots", file, "tampered", why="a pointer to a place of a slot")

    file = File("place_behind_end")
    file.slot(0, Commit(1, 5, 5, file.block(5, 0, TEXT), None))
    index.add("place_behind_end", file, "tampered", why="a pointer behind the places of its version")

    file = File("place_twice")
    pointer = file.block(4, 0, TEXT)
    node = file.block(5, 0, pointer + pointer, level=1)
    file.slot(0, Commit(1, 2 * BLOCK, 6, node, None))
    index.add("place_twice", file, "tampered", why="two pointers to one place")

    file = File("generation_unknown")
    file.slot(0, Commit(1, 5, 5, file.block(4, 0, TEXT, generation=7), None))
    index.add("generation_unknown", file, "wrong-key", why="a block of a generation that the slot has no key of")


if __name__ == "__main__":
    files, vectors = make()
    for old in FOLDER.glob("*.sealed"):
        old.unlink()
    for name, data in files.items():
        (FOLDER / name).write_bytes(data)
    (FOLDER / "index.json").write_text(json.dumps(vectors, indent=1) + "\n")
