"""What a vault says at one moment: its rows, with the changes that no commit holds yet.

Inode rows are kept as objects and written to the database once, at `flush`; entries go to the database at once. Both
are remembered as changed until the next commit, so that they can be logged, or replayed when another process was
faster.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final

from strongroom.crypto import KEY_SIZE, random_bytes
from strongroom.errors import ConflictError, FormatError
from strongroom.sealed.content import Version
from strongroom.vault.database import Database, PageFile
from strongroom.vault.rows import (
    ROOT_INODE,
    SCHEMA,
    Body,
    Change,
    Inode,
    Packed,
    Tree,
    check_schema,
    pack_version,
    parse_body,
    parse_entry,
    parse_id,
    parse_pack,
    parse_span,
    parse_version,
)

VERSION: Final = 1
_CACHED_ROWS: Final = 100_000
_COLUMNS: Final = "id, mode, links, uid, gid, size, atime, mtime, ctime, body, changed"


@dataclass(slots=True)
class Pending:
    """Changes that no commit holds: rows (None: removed) and entries (0: removed), on top of commit `base`."""

    base: int
    inodes: dict[int, Inode | None]
    entries: dict[tuple[int, bytes], int]
    info: dict[str, bytes]
    attributes: set[int]  # directories of which mode or owner was changed


class State:
    """The rows of a vault at commit `base`, and what was changed since.

    Args:
        pages: the sealed `meta`.
        base: number of the commit it holds; 0 for a new vault.
    """

    def __init__(self, pages: PageFile, base: int, *, writable: bool) -> None:
        self.base = base
        self.writable = writable
        self._db = Database(pages, writable=writable)
        self._rows: dict[int, Inode] = {}
        self.changed_info: dict[str, bytes] = {}
        self.changed_attributes: set[int] = set()
        self.changed_inodes: set[int] = set()
        self.changed_entries: set[tuple[int, bytes]] = set()
        # Those of them that no record of the log holds.
        self.unlogged_inodes: set[int] = set()
        self.unlogged_entries: set[tuple[int, bytes]] = set()
        self.new_packs: dict[bytes, tuple[bytes, int]] = {}  # id: (key, size), not in the database yet
        try:
            if pages.length == 0 and writable:
                for statement in SCHEMA:
                    self._db.change(statement)
                self._db.change("INSERT INTO info VALUES ('version', ?)", VERSION)
            check_schema(self._db.rows("SELECT sql FROM sqlite_schema"))
            found = self._db.row("SELECT value FROM info WHERE name = 'version'")
            if found is None or found[0] != VERSION:
                raise FormatError(
                    f"vault version: {None if found is None else str(found[0])[:20]}, wanted {VERSION}",
                    hint="a newer strongroom may read it",
                )
        except BaseException:
            self._db.close()
            raise

    @property
    def changed(self) -> bool:
        return bool(self.changed_inodes or self.changed_entries or self.new_packs or self.changed_info)

    def close(self) -> None:
        """Drop everything that is not committed."""
        self._rows.clear()
        self._db.close()

    # Small things that a vault remembers beside its tree.

    def info(self, name: str) -> bytes | None:
        if name in self.changed_info:
            return self.changed_info[name]
        return row[0] if (row := self._db.row("SELECT value FROM info WHERE name = ?", name)) else None

    def set_info(self, name: str, value: bytes) -> None:
        """Remember `value` with the next commit; of two processes that do so at once the last one's stays."""
        self.changed_info[name] = value

    # Inodes.

    def find(self, number: int) -> Inode | None:
        """The inode of a number, or None. Whoever changes it calls `touch`."""
        inode = self._rows.get(number)
        if inode is None and number not in self.changed_inodes:
            row = self._db.row(f"SELECT {_COLUMNS} FROM inode WHERE id = ?", number)  # noqa: S608
            if row is not None:
                inode = Inode.of(row)
                self._remember(inode)
        return inode

    def _remember(self, inode: Inode) -> None:
        if len(self._rows) >= _CACHED_ROWS:
            self._rows = {number: row for number, row in self._rows.items() if number in self.changed_inodes}
        self._rows[inode.id] = inode

    def touch(self, inode: Inode) -> None:
        """Note that `inode`, which `find` or `add` gave, has changed."""
        self._rows[inode.id] = inode
        self.changed_inodes.add(inode.id)
        self.unlogged_inodes.add(inode.id)

    def add(self, inode: Inode) -> Inode:
        """A new inode, with a number drawn at random unless it has one."""
        while not inode.id or self.find(inode.id):
            inode.id = int.from_bytes(random_bytes(8), "little") >> 2 | 1 << 61
        self.touch(inode)
        return inode

    def drop(self, number: int) -> None:
        """Remove an inode."""
        self._rows.pop(number, None)
        self.changed_inodes.add(number)
        self.unlogged_inodes.add(number)

    def inodes(self) -> Iterable[Inode]:
        """Every inode there is."""
        for (number,) in self._db.rows("SELECT id FROM inode"):
            if inode := self.find(number):
                yield inode
        known = {number for (number,) in self._db.rows("SELECT id FROM inode")}
        yield from [inode for number, inode in self._rows.items() if number not in known]

    # Entries.

    def entry(self, parent: int, name: bytes) -> int | None:
        """The inode number that `name` leads to in a directory."""
        row = self._db.row("SELECT name, inode FROM entry WHERE parent = ? AND name = ?", parent, name)
        return parse_entry(row)[1] if row else None

    def link(self, parent: int, name: bytes, number: int) -> None:
        """Make `name` in a directory lead to an inode."""
        self._db.change("INSERT OR REPLACE INTO entry VALUES (?, ?, ?, ?)", parent, name, number, self.base + 1)
        self.changed_entries.add((parent, name))
        self.unlogged_entries.add((parent, name))

    def unlink(self, parent: int, name: bytes) -> None:
        """Remove `name` from a directory."""
        self._db.change("DELETE FROM entry WHERE parent = ? AND name = ?", parent, name)
        self.changed_entries.add((parent, name))
        self.unlogged_entries.add((parent, name))

    def entries(self, parent: int, after: bytes = b"", limit: int = -1) -> list[tuple[bytes, int]]:
        """(name, inode number) of a directory in the order of names, those behind `after`."""
        rows = self._db.rows(
            "SELECT name, inode FROM entry WHERE parent = ? AND name > ? ORDER BY name LIMIT ?", parent, after, limit
        )
        return [parse_entry(row) for row in rows]

    def is_empty(self, parent: int) -> bool:
        return self._db.row("SELECT 1 FROM entry WHERE parent = ? LIMIT 1", parent) is None

    def orphans(self) -> list[int]:
        """The inodes that the newest commit holds without a name: a program had them open."""
        return [number for (number,) in self._db.rows("SELECT id FROM inode WHERE links = 0")]

    def counts(self) -> tuple[int, int]:
        """How many inodes there are, and the sum of their sizes, at the last commit."""
        row = self._db.row("SELECT count(*), coalesce(sum(size), 0) FROM inode")
        assert row is not None  # noqa: S101  # an aggregate has one row
        return row[0], row[1]

    def changed_after(self, commit: int) -> set[int]:
        """The inodes that a later commit changed."""
        return {number for (number,) in self._db.rows("SELECT id FROM inode WHERE changed > ?", commit)}

    # Packs and versions.

    def pack_key(self, pack: bytes) -> bytes:
        """The key of a pack. Raises FormatError if there is none."""
        if new := self.new_packs.get(pack):
            return new[0]
        row = self._db.row("SELECT key FROM pack WHERE file = ?", pack)
        if row is None or not isinstance(row[0], bytes) or len(row[0]) != KEY_SIZE:
            raise FormatError(f"vault metadata: no pack {pack.hex()}, or none with a key")
        return row[0]

    def has_pack(self, pack: bytes) -> bool:
        """Whether the newest commit names a pack."""
        return self._db.row("SELECT 1 FROM pack WHERE file = ?", pack) is not None

    def packs(self) -> list[tuple[bytes, int, int]]:
        """(id, size, bytes in use) of every committed pack."""
        return [parse_pack(row) for row in self._db.rows("SELECT file, size, live FROM pack")]

    def packed(self, pack: bytes) -> list[int]:
        """The inodes whose content lies in a pack, as committed."""
        rows = self._db.rows("SELECT id, body FROM inode WHERE substr(body, 1, 1) = x'02'")
        return [n for n, body in rows if isinstance(parsed := parse_body(body), Packed) and parsed.pack == pack]

    def older(self, file: bytes, live: Collection[int]) -> list[Version]:
        """The versions of a data file before its newest that one of the `live` roots names."""
        rows = self._db.rows("SELECT first, last, version FROM old WHERE file = ?", file)
        return [parse_version(row[2]) for row in rows if _covers(row, live)]

    def data_files(self) -> set[bytes]:
        """The ids of all data files and packs that the newest commit or an older root may need."""
        found = {parse_id(row[0]) for row in self._db.rows("SELECT file FROM pack UNION SELECT file FROM dead")}
        bodies = self._db.rows("SELECT body FROM inode WHERE substr(body, 1, 1) = x'03'")
        return found | {parsed.file for (body,) in bodies if isinstance(parsed := parse_body(body), Tree)}

    # The commit.

    def flush(self, live: Iterable[int]) -> list[bytes]:
        """Write every changed row to the sealed file; the data files that are dead once that is committed.

        Args:
            live: the commits, without the one being made, that readers may still open.
        """
        roots = sorted({*live, self.base} - {0})
        number = self.base + 1
        for name, value in self.changed_info.items():
            self._db.change("INSERT OR REPLACE INTO info VALUES (?, ?)", name, value)
        live_bytes: dict[bytes, int] = {}
        for pack, (key, size) in self.new_packs.items():
            self._db.change(
                "INSERT INTO pack VALUES (?, ?, ?, 0) ON CONFLICT (file) DO UPDATE SET size = excluded.size",
                pack, key, size,
            )  # fmt: skip
            self._db.change("DELETE FROM dead WHERE file = ?", pack)  # another commit saw only what had been replaced
            live_bytes[pack] = 0
        self.new_packs.clear()
        for inode_number in self.changed_inodes:
            before = self._db.row("SELECT body, size FROM inode WHERE id = ?", inode_number)
            inode = self._rows.get(inode_number)
            body = inode.body if inode else None
            old = parse_body(before[0]) if before else None
            if isinstance(body, Tree) and inode:
                known = isinstance(old, Tree) and old.version == body.version
                since = old.since if known and isinstance(old, Tree) else number
                body = inode.body = Tree(body.file, body.key, body.block_size, since, body.version)
            if isinstance(old, Packed) and before and old != body:
                live_bytes[old.pack] = live_bytes.get(old.pack, 0) - before[1]
            if isinstance(body, Packed) and inode and old != body:
                live_bytes[body.pack] = live_bytes.get(body.pack, 0) + inode.size
            if isinstance(old, Tree):
                if not isinstance(body, Tree) or body.file != old.file:
                    self._db.change("INSERT OR REPLACE INTO dead VALUES (?, ?)", old.file, self.base)
                elif body.version != old.version:
                    self._db.change(
                        "INSERT OR REPLACE INTO old VALUES (?, ?, ?, ?)",
                        old.file, old.since, self.base, pack_version(old.version),
                    )  # fmt: skip
            if inode is None:
                if before:
                    self._db.change("DELETE FROM inode WHERE id = ?", inode_number)
            else:
                inode.changed = number
                self._db.change("INSERT OR REPLACE INTO inode VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", *inode.row())
        for pack, delta in live_bytes.items():
            self._db.change("UPDATE pack SET live = ifnull(live, 0) + ? WHERE file = ?", delta, pack)
            if self._db.row("SELECT 1 FROM pack WHERE file = ? AND live <= 0", pack):
                self._db.change("INSERT OR REPLACE INTO dead VALUES (?, ?)", pack, self.base)
                self._db.change("DELETE FROM pack WHERE file = ?", pack)
        dead = self._forget(roots)
        self._db.settle()
        return dead

    def _forget(self, roots: list[int]) -> list[bytes]:
        spans = self._db.rows("SELECT first, last, file FROM old")
        for first, _, file in [row for row in spans if not _covers(row, roots)]:
            self._db.change("DELETE FROM old WHERE file = ? AND first = ?", file, first)
        oldest = roots[0] if roots else self.base + 1
        dead = [parse_id(row[0]) for row in self._db.rows("SELECT file FROM dead WHERE last < ?", oldest)]
        for file in dead:
            self._db.change("DELETE FROM dead WHERE file = ?", file)
            self._db.change("DELETE FROM old WHERE file = ?", file)
        return dead

    def committed(self, sequence: int) -> None:
        """Note that what `flush` wrote is the newest commit, with this number."""
        self.base = sequence
        self.changed_info.clear()
        self.changed_attributes.clear()
        self.changed_inodes.clear()
        self.changed_entries.clear()
        self.unlogged_inodes.clear()
        self.unlogged_entries.clear()

    def take_unlogged(self) -> Change:
        """The rows and entries that the log does not hold, without content; from now on they count as logged."""
        change = Change([], [], [])
        for number in self.unlogged_inodes:
            inode = self._rows.get(number)
            change.inodes.append(inode or Inode(number, 0, 0, 0, 0, 0, 0, 0, 0, None, 0))
        for parent, name in self.unlogged_entries:
            change.entries.append((parent, name, self.entry(parent, name) or 0))
        self.unlogged_inodes.clear()
        self.unlogged_entries.clear()
        return change

    def apply(self, change: Change) -> None:
        """Make the changes of rows and entries that a record of the log holds."""
        for inode in change.inodes:
            known = self.find(inode.id)
            if inode.links == 0 and inode.mode == 0:
                if known:
                    self.drop(inode.id)
                continue
            if known:
                inode.size, inode.body, inode.changed = known.size, known.body, known.changed
            self.touch(inode)
        for parent, name, number in change.entries:
            if number:
                self.link(parent, name, number)
            else:
                self.unlink(parent, name)

    def committed_body(self, number: int) -> Body:
        """What the newest commit says of an inode's content."""
        return parse_body(row[0]) if (row := self._db.row("SELECT body FROM inode WHERE id = ?", number)) else None

    # Replaying on top of another process's commit.

    def pending(self) -> Pending:
        """The changes since `base`."""
        return Pending(
            self.base,
            {number: self._rows.get(number) for number in self.changed_inodes},
            {(parent, name): self.entry(parent, name) or 0 for parent, name in self.changed_entries},
            self.changed_info,
            self.changed_attributes,
        )

    def replay(self, pending: Pending) -> None:
        """Make the changes of `pending`, which were made on an older commit, on this one.

        Raises:
            ConflictError: another process changed the same entry or inode since; nothing of it is of use then.
        """
        self.changed_info.update(pending.info)
        self.changed_attributes.update(pending.attributes)
        for (parent, name), number in pending.entries.items():
            row = self._db.row("SELECT inode, abs(changed) FROM entry WHERE parent = ? AND name = ?", parent, name)
            if row and row[1] > pending.base and row[0] != number:
                raise _conflict(f"the name {name!r}")
            if number:
                self.link(parent, name, number)
            else:
                self.unlink(parent, name)
        for number, inode in pending.inodes.items():
            theirs = self.find(number)
            if theirs is None and inode and inode.changed:
                raise _conflict(f"inode {number}")  # removed there, changed here
            if theirs and theirs.changed > pending.base:
                if inode is None or not (inode.is_dir and theirs.is_dir):
                    raise _conflict(f"inode {number}")
                attributes = theirs.mode, theirs.uid, theirs.gid
                if number in pending.attributes and attributes != (inode.mode, inode.uid, inode.gid):
                    raise _conflict(f"the attributes of directory {number}")
                inode.mode, inode.uid, inode.gid = attributes
                inode.mtime, inode.ctime = max(inode.mtime, theirs.mtime), max(inode.ctime, theirs.ctime)
            if inode is None:
                self.drop(number)
            else:
                self.touch(inode)
        self._check_whole(pending)

    def _check_whole(self, pending: Pending) -> None:
        for (parent, name), number in pending.entries.items():
            above = self.find(parent)
            below = self.find(number) if number else None
            if number and (above is None or not above.is_dir or below is None):
                raise _conflict(f"the directory of {name!r}")
            if below is None or not below.is_dir or not below.changed:
                continue
            if len(self._db.rows("SELECT 1 FROM entry WHERE inode = ? LIMIT 2", number)) > 1:
                raise _conflict(f"the name of directory {name!r}")  # both gave it another
            seen = {number}
            while above and above.id != ROOT_INODE:
                if above.id in seen:
                    raise _conflict(f"the directories above {name!r}")
                seen.add(above.id)
                up = self.parent(above.id)
                above = self.find(up) if up else None
        for number, inode in pending.inodes.items():
            if inode is None and not self.is_empty(number):
                raise _conflict(f"directory {number}")

    def parent(self, number: int) -> int | None:
        """The directory that holds directory `number`: a search, so for rare use."""
        return row[0] if (row := self._db.row("SELECT parent FROM entry WHERE inode = ?", number)) else None


def _covers(row: tuple[object, ...], roots: Collection[int]) -> bool:
    first, last = parse_span(*row[:2])
    return any(first <= root <= last for root in roots)


def _conflict(what: str) -> ConflictError:
    return ConflictError(
        f"vault: another process committed a change of {what} first",
        hint="what was written here since the last commit is lost; open the vault again and repeat it",
    )
