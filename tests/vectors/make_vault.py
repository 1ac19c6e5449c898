"""Makes the vectors of the vault: ``python -m tests.vectors.make_vault`` from the repository's root.

Keys and nonces are random, so that each run makes others. Each folder of `FOLDER` is a vault's directory as it lay on
the disk; `index.json` lists the vectors: a folder, what was done to its files, key, anchor, and the verdict; with
``"encrypted": false`` it must be authenticated only.

A change of a file is one of ``{"cut": length}``, ``{"flip": bit}``, ``{"swap": [offset, offset, length]}``,
``{"zero": [offset, length]}``, ``{"delete": true}`` and ``{"from": [folder, file]}``.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from pathlib import Path

from strongroom.sealed import NO_FRESHNESS, MemoryAnchor
from strongroom.sealed.layout import SLOT_SIZE, SLOTS_SIZE
from strongroom.storage import MemoryDirectory
from strongroom.vault.rows import Packed, Tree
from strongroom.vault.vault import Vault

FOLDER = Path(__file__).with_name("vault")
KEY = bytes(range(32))
BLOCK = 4096
NOW = 1_700_000_000_000_000_000  # nanoseconds

Files = dict[str, bytes]
Change = dict[str, object]


def load(folder: str) -> Files:
    return {path.name: path.read_bytes() for path in (FOLDER / folder).iterdir()}


def changed(files: Files, changes: list[tuple[str, Change]] | list[list]) -> Files:
    """`files` with the changes of a vector made to it."""
    files = dict(files)
    for name, change in changes:
        data = bytearray(files.get(name, b""))
        if "cut" in change:
            del data[change["cut"] :]
        elif "flip" in change:
            data[change["flip"] // 8] ^= 1 << change["flip"] % 8
        elif "swap" in change:
            one, two, size = change["swap"]
            data[one : one + size], data[two : two + size] = data[two : two + size], data[one : one + size]
        elif "zero" in change:
            at, size = change["zero"]
            data[at : at + size] = bytes(size)
        elif "from" in change:
            folder, other = change["from"]
            data = bytearray(load(folder)[other])
        files[name] = bytes(data)
        if "delete" in change:
            del files[name]
    return files


def judged(tree: dict[str, bytes | str | None]) -> dict[str, str | None]:
    """A vault's content as the index has it: the SHA-256 of a file, ``->`` and the target of a link, or None."""
    return {
        path: None if what is None else f"-> {what}" if isinstance(what, str) else hashlib.sha256(what).hexdigest()
        for path, what in sorted(tree.items())
    }


def tree_of(opened: Vault) -> dict[str, bytes | str | None]:
    """The same shape as `vault_reader.read_vault` gives."""
    found: dict[str, bytes | str | None] = {}
    for top, directories, names in opened.walk():
        for name in directories:
            found[f"{top}/{name}" if top else name] = None
        for name in names:
            path = f"{top}/{name}" if top else name
            is_link = opened.stat(path, follow=False).is_link
            found[path] = opened.readlink(path) if is_link else opened.read_bytes(path)
    return found


class Maker:
    """One vault and the folders that show how it lay on the disk."""

    def __init__(self) -> None:
        self.rng = random.Random(1)  # noqa: S311
        self.disk, self.anchor = MemoryDirectory(), MemoryAnchor()
        self.anchors: dict[str, str] = {}
        self.trees: dict[str, dict[str, str | None]] = {}

    def open(self, mode: str, **options: bool) -> Vault:
        return Vault(
            self.disk, mode, KEY, self.anchor, what="vault", clock=lambda: 1_700_000_000_000_000_000, **options
        )

    def save(self, folder: str, tree: dict[str, bytes | str | None]) -> None:
        (FOLDER / folder).mkdir(parents=True)
        for name, file in self.disk.files.items():
            data = bytes(file.data)
            (FOLDER / folder / name).write_bytes(data.rstrip(b"\0") if name == "log" else data)
        self.anchors[folder] = str(self.anchor.read())
        self.trees[folder] = judged(tree)

    def make(self) -> None:
        with self.open("x") as opened:
            opened.write_bytes("inline", b"in the row")
            opened.write_bytes("empty", b"")
            opened.write_bytes("packed", self.rng.randbytes(3000))
            opened.write_bytes("folder/packed", self.rng.randbytes(3000))
            with opened.open("folder/tree", "xb", block_size=BLOCK) as file:
                file.write(self.rng.randbytes(66_000))
            opened.symlink("folder/tree", "link")
            opened.mkdir("nothing")
            opened.link_at(opened.stat("packed").inode, 1, b"packed again")
        with self.open("r") as opened:
            self.save("whole", tree_of(opened))
        with self.open("r+") as opened:
            opened.write_bytes("inline", b"newer")
            with opened.open("folder/tree", "r+b") as file:
                file.write_at(5000, b"newer")
        with self.open("r") as opened:
            self.save("newer", tree_of(opened))
        opened = self.open("r+", log=True)
        for number, folder in enumerate(("logged-1", "logged-2", "logged-3")):
            with opened.open("inline", "r+b") as file:
                file.truncate(3)
                file.write_at(6, b"log %d" % number)
            with opened.open("folder/tree", "r+b") as file:
                file.write_at(BLOCK * number, b"logged")
            if number == 1:
                opened.rename("packed", "folder/renamed")
                opened.remove("empty")
                opened.symlink("inline", "new link")
            opened.fsync(opened.stat("folder/tree").inode)
            opened.fsync(opened.stat("inline").inode)
            tree = tree_of(opened)
            if number != 1:
                self.save(folder, tree)
        opened.discard()

    def make_clear(self) -> None:
        """A vault that is authenticated only, with a record in the log."""
        self.disk, self.anchor = MemoryDirectory(), MemoryAnchor()
        with self.open("x", encrypted=False) as opened:
            opened.write_bytes("small", b"in a pack, though it is small")
            opened.write_bytes("empty", b"")
            opened.write_bytes("packed", self.rng.randbytes(3000))
            with opened.open("folder/tree", "xb", block_size=BLOCK) as file:
                file.write(self.rng.randbytes(66_000))
            opened.symlink("folder/tree", "link")
        opened = self.open("r+", log=True, encrypted=False)
        with opened.open("folder/tree", "r+b") as file:
            file.write_at(BLOCK, b"logged")
        opened.fsync(opened.stat("folder/tree").inode)
        self.save("clear", tree_of(opened))
        opened.discard()

    def with_row(self, folder: str, *statements: tuple[str, tuple[object, ...]]) -> None:
        """A vault that its maker wrote a wrong row into."""
        self.disk, self.anchor = MemoryDirectory(), MemoryAnchor()
        with self.open("x") as opened:
            opened.write_bytes("inline", b"in the row")
            opened.commit()
            for sql, values in statements:
                opened._state._db.change(sql, *values)
            opened._state._db.settle()
            opened._meta.commit()
            opened.discard()
        self.save(folder, {})


def places(folder: str, *, encrypted: bool = True) -> dict[str, tuple[str, int]]:
    """Path -> (data file, offset of its first block or piece) of a folder's vault."""
    found = {}
    directory = MemoryDirectory(load(folder))
    with Vault(directory, "r", KEY, NO_FRESHNESS, what="vault", encrypted=encrypted) as opened:
        for path in opened.files():
            body = opened.inode(opened.stat(path).inode).body
            if isinstance(body, Packed):
                found[path] = body.pack.hex(), body.offset
            elif isinstance(body, Tree):
                found[path] = body.file.hex(), 0
    return found


def main() -> None:
    shutil.rmtree(FOLDER, ignore_errors=True)
    maker = Maker()
    maker.make()
    maker.with_row("version-2", ("UPDATE info SET value = 2 WHERE name = 'version'", ()))
    maker.with_row("name", ("INSERT INTO entry VALUES (1, ?, (SELECT max(id) FROM inode), 1)", (b"..",)))
    maker.with_row("view", ("CREATE VIEW more AS SELECT 1", ()))
    maker.make_clear()
    vectors: list[dict[str, object]] = []

    def vector(
        name: str, why: str, folder: str, *changes, refused=None, tree=None, anchor=None, key=KEY, encrypted=True
    ) -> None:
        found = {"name": name, "why": why, "folder": folder, "key": key.hex()}
        if not encrypted:
            found["encrypted"] = False
        if changes:
            found["changes"] = [*changes]
        if anchor != "none":
            found["anchor"] = maker.anchors[anchor or folder]
        found |= {"refused": refused} if refused else {"tree": maker.trees[tree or folder]}
        vectors.append(found)

    at = places("whole")
    (tree, _), (pack, one), (_, two) = at["folder/tree"], at["packed"], at["folder/packed"]
    vector("whole", "files of every kind, links and an empty directory", "whole")
    vector("no_anchor", "the same without an anchor", "whole", anchor="none")
    vector("wrong_key", "another key", "whole", key=KEY[::-1], refused="wrong-key")
    vector("newer", "the next commit, which changed a data file in place", "newer")
    vector("one_behind", "the anchor has not heard of the newest commit", "newer", anchor="whole")
    vector("rolled_back", "the version before", "whole", anchor="newer", refused="rollback")
    old_meta = ["meta", {"from": ["whole", "meta"]}]
    vector("meta_rolled_back", "`meta` alone is that of the version before", "newer", old_meta, refused="rollback")
    first_block = ["meta", {"flip": SLOTS_SIZE * 8 + 77}]
    vector("meta_block_bit", "a bit of the first block", "whole", first_block, refused="tampered")
    vector("slots_zero", "no slot", "whole", ["meta", {"zero": [0, 4 * SLOT_SIZE]}], refused="format")
    vector("missing", "a data file is gone", "whole", [tree, {"delete": True}], refused="tampered")
    vector("cut", "a data file lacks its end", "whole", [tree, {"cut": 60_000}], refused="truncated")
    vector("block_bit", "a bit of a block", "whole", [tree, {"flip": 5 * BLOCK * 8}], refused="tampered")
    swap = [tree, {"swap": [BLOCK, 2 * BLOCK, BLOCK]}]
    vector("blocks_swapped", "blocks in each other's places", "whole", swap, refused="tampered")
    old_file = [tree, {"from": ["whole", tree]}]
    vector("file_rolled_back", "a data file of the version before, shorter", "newer", old_file, refused="truncated")
    vector("piece_bit", "a bit of a piece", "whole", [pack, {"flip": one * 8}], refused="tampered")
    vector("pieces_swapped", "two pieces of a pack", "whole", [pack, {"swap": [one, two, 3000]}], refused="tampered")
    vector("pack_cut", "a pack lacks its end", "whole", [pack, {"cut": 5999}], refused="truncated")
    vector("logged", "six records that no commit has taken in", "logged-3")
    end = len(load("logged-3")["log"])
    vector("log_cut", "the last byte of the log is gone", "logged-3", ["log", {"cut": end - 1}], refused="rollback")
    vector("log_gone", "there is no log", "logged-3", ["log", {"delete": True}], refused="rollback")
    vector("log_bit", "a bit of the first record", "logged-3", ["log", {"flip": 60 * 8}], refused="rollback")
    older = ["log", {"from": ["logged-1", "log"]}]
    vector("log_rolled_back", "the log as it was", "logged-3", older, refused="rollback")
    vector("log_no_anchor", "the same: what is left counts", "logged-3", older, anchor="none", tree="logged-1")
    vector("log_gone_no_anchor", "so do commits", "logged-3", ["log", {"delete": True}], anchor="none", tree="newer")
    vector("version_2", "another version", "version-2", refused="format")
    vector("name_dot_dot", "an entry named ..", "name", refused="format")
    vector("view", "a view among the tables", "view", refused="format")
    at = places("clear", encrypted=False)
    (tree, _), (pack, one), (_, two) = at["folder/tree"], at["packed"], at["small"]
    clear = {"encrypted": False}
    vector("clear", "authenticated only, with a record in the log", "clear", **clear)
    vector("clear_as_encrypted", "the same, taken for an encrypted one", "clear", refused="wrong-key")
    vector("encrypted_as_clear", "an encrypted one, taken for it", "whole", refused="wrong-key", **clear)
    block = [tree, {"flip": 5 * BLOCK * 8}]
    vector("clear_block_bit", "a bit of a block", "clear", block, refused="tampered", **clear)
    vector("clear_piece_bit", "a bit of a piece", "clear", [pack, {"flip": one * 8}], refused="tampered", **clear)
    swap = [pack, {"swap": [one, two, 29]}]
    vector("clear_pieces_swapped", "the bytes of one in the other", "clear", swap, refused="tampered", **clear)
    vector("clear_cut", "a data file lacks its end", "clear", [tree, {"cut": 60_000}], refused="truncated", **clear)
    gone = ["log", {"delete": True}]
    vector("clear_log_gone", "there is no log", "clear", gone, refused="rollback", **clear)
    (FOLDER / "index.json").write_text(json.dumps(vectors, indent=1) + "\n")


if __name__ == "__main__":
    main()
