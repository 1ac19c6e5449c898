"""The contents of a vault's files: small ones in memory until they are packed, large ones as block trees.

A `Node` is the content of one inode while somebody uses it, or while it holds changes that no commit has. `Files` keeps
the nodes, the data files behind them and the pack that is being written.
"""

from __future__ import annotations

import bisect
import contextlib
from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING, Final

from strongroom.crypto import random_bytes, random_key
from strongroom.errors import FormatError, LockedError, UsageError
from strongroom.sealed.content import Content, Version
from strongroom.sealed.layout import DEFAULT_BLOCK, MAX_LENGTH, block_cipher
from strongroom.storage import LOCKS_AT, ByteLocks, Directory, Storage
from strongroom.vault.packs import PackReader, PackWriter, missing
from strongroom.vault.rows import NO_CUT, DataChange, Inline, Inode, Packed, Tree
from strongroom.vault.state import State

if TYPE_CHECKING:
    from collections.abc import Buffer  # type: ignore[attr-defined,unused-ignore]  # Python 3.12

INLINE: Final = 2 << 10
SMALL: Final = DEFAULT_BLOCK
INODES_AT: Final = LOCKS_AT + (3 << 60)
SESSIONS_AT: Final = LOCKS_AT + (1 << 60)
_SPAN: Final = (1 << 60) - 1
_OPEN_TREES: Final = 128
_CACHE: Final = 4 << 20


class Node:
    """The content of one inode. Made by `Files.node`; used under the vault's lock."""

    def __init__(self, files: Files, number: int) -> None:
        self.number = number
        self.handles = 0
        self.block_size = DEFAULT_BLOCK
        self.dirty = False  # differs from what the inode's row describes
        self.locked = False
        self._files = files
        self._small: bytearray | None = None
        self._tree: Content | None = None
        self._storage: Storage | None = None  # of the tree
        self._file: tuple[bytes, bytes, int] | None = None  # of the tree: id, key, block size
        self._prepared: Version | None = None
        # Not in the log yet: cut to this length, then written in these ranges.
        self._cut = NO_CUT
        self._written: list[tuple[int, int]] = []

    @property
    def inode(self) -> Inode:
        inode = self._files.state.find(self.number)
        if inode is None:
            raise FileNotFoundError(f"{self._files.what}: the file was removed by another process")
        return inode

    @property
    def loaded(self) -> bool:
        return self._small is not None or self._tree is not None

    @property
    def is_tree(self) -> bool:
        return self._tree is not None

    @property
    def unlogged(self) -> bool:
        """Whether anything was written since the last record of the log, or the last commit."""
        return self._cut != NO_CUT or bool(self._written)

    @property
    def unlogged_bytes(self) -> int:
        return sum(end - start for start, end in self._written)

    # Reading and writing.

    def read_at(self, offset: int, buffer: Buffer) -> int:
        """Fill `buffer` from `offset` on; fewer bytes only at the end."""
        self._load()
        if self._tree is not None:
            return self._tree.read_at(offset, buffer)
        assert self._small is not None  # noqa: S101  # loaded
        with memoryview(buffer) as raw, raw.cast("B") as view:
            count = max(0, min(len(view), len(self._small) - offset))
            view[:count] = memoryview(self._small)[offset : offset + count]
            return count

    def write_at(self, offset: int, data: Buffer) -> None:
        """Write all of `data`; a gap before `offset` reads as zeros."""
        with memoryview(data) as raw, raw.cast("B") as view:
            end = offset + len(view)
            if end > MAX_LENGTH:
                raise UsageError(f"length: {end} bytes, wanted at most {MAX_LENGTH}")
            if not view:
                return
            self._change(end)
            if self._tree is not None:
                self._tree.write_at(offset, view)
            else:
                assert self._small is not None  # noqa: S101  # loaded
                if offset > len(self._small):
                    self._small.extend(bytes(offset - len(self._small)))
                self._small[offset:end] = view
            self._note(offset, end)
            inode = self.inode
            if end > inode.size:
                inode.size = end
            self._touch(inode)

    def truncate(self, size: int) -> None:
        """Cut, or extend by zeros."""
        if not 0 <= size <= MAX_LENGTH:
            raise UsageError(f"length: {size} bytes, wanted 0 to {MAX_LENGTH}")
        if size != self.inode.size:
            self._change(size)
            inode = self.inode
            if self._tree is not None:
                self._tree.truncate(size)
            else:
                assert self._small is not None  # noqa: S101  # loaded
                if size < len(self._small):
                    del self._small[size:]
                else:
                    self._small.extend(bytes(size - len(self._small)))
            self._cut = min(self._cut, size, inode.size)
            self._written = [(start, min(end, size)) for start, end in self._written if start < size]
            inode.size = size
        self._touch(self.inode)

    def punch(self, offset: int, length: int) -> None:
        """Make a range read as zeros; the length of the file stays."""
        if min(offset + length, self.inode.size) <= offset:
            return
        self._change(self.inode.size)
        end = min(offset + length, self.inode.size)
        if end <= offset:
            return  # another process has cut the file since
        if self._tree is not None:
            self._tree.punch(offset, end - offset)
        else:
            assert self._small is not None  # noqa: S101  # loaded
            self._small[offset:end] = bytes(end - offset)
        self._note(offset, end)
        self._touch(self.inode)

    def _touch(self, inode: Inode) -> None:
        inode.mtime = inode.ctime = self._files.clock()
        self._files.state.touch(inode)

    def _change(self, end: int) -> None:
        """Get ready to be changed, up to length `end`."""
        self._files.lock_inode(self)
        self._load()
        if self._small is not None and end > SMALL:
            self._to_tree()
        elif self._tree is not None and self._files.write_once and self._file not in self._files.unwritten:
            self._copy_tree()
        self.dirty = True

    def _note(self, start: int, end: int) -> None:
        ranges = self._written
        if ranges and ranges[-1][0] <= start <= ranges[-1][1]:  # what follows what was written last
            ranges[-1] = ranges[-1][0], max(end, ranges[-1][1])
            return
        at = bisect.bisect_left(ranges, (start, end))
        first = at - 1 if at and ranges[at - 1][1] >= start else at
        last = first
        while last < len(ranges) and ranges[last][0] <= end:
            start, end = min(start, ranges[last][0]), max(end, ranges[last][1])
            last += 1
        ranges[first:last] = [(start, end)]

    # Between memory, row and data file.

    def _load(self) -> None:
        if self.loaded:
            return
        inode = self.inode
        body = inode.body
        if isinstance(body, Tree):
            if body.version.length != inode.size:
                raise FormatError(f"{self._files.what}: inode {inode.id}: {inode.size} bytes, wanted its tree's")
            self._file = body.file, body.key, body.block_size
            self._storage, self._tree = self._files.open_tree(self.number, body)
        elif isinstance(body, Packed):
            self._small = self._files.read_piece(body, inode.size)
        else:
            self._small = bytearray(body.data if body else b"")
            if len(self._small) != inode.size:
                raise FormatError(f"{self._files.what}: inode {inode.id}: {len(self._small)} bytes, not {inode.size}")

    def _to_tree(self) -> None:
        small, self._small = self._small, None
        self._file, self._storage, self._tree = self._files.new_tree(self.block_size)
        if small:
            self._tree.write_at(0, small)

    def _copy_tree(self) -> None:
        old, storage = self._tree, self._storage
        assert old is not None and storage is not None and self._file is not None  # noqa: S101  # the caller looked
        self._file, self._storage, self._tree = self._files.new_tree(self._file[2])
        buffer = memoryview(bytearray(1 << 20))
        at = 0
        while count := old.read_at(at, buffer):
            self._tree.write_at(at, buffer[:count])
            at += count
        self._tree.truncate(old.length)
        old.close()
        storage.close()

    def rewrite(self) -> None:
        """Have the content written anew, under another key, with the next commit."""
        self._files.lock_inode(self)
        self._load()
        if self._tree is not None:
            self._copy_tree()
        self.dirty = True
        self._files.state.touch(self.inode)

    def compact(self, limit: int) -> int:
        """Move up to `limit` blocks of a tree to free places before them; how many were moved."""
        self._files.lock_inode(self)
        self._load()
        moved = self._tree.compact(limit) if self._tree is not None else 0
        if self._tree is not None:
            self.dirty = True
            self._files.state.touch(self.inode)
        return moved

    def settle(self) -> None:
        """Make the inode's row describe the content as it is now; `Files.sync` then makes that durable."""
        if not self.dirty:
            return
        inode = self.inode
        if self._tree is not None and self._file is not None and self._storage is not None:
            self._prepared = self._tree.prepare()
            inode.body = Tree(*self._file, since=0, version=self._prepared)
            self._files.unsynced[self._file[0]] = self._storage
        elif self._small is not None:
            if len(self._small) <= INLINE:
                inode.body = Inline(bytes(self._small)) if self._small else None
            else:
                inode.body = self._files.write_piece(self._small)
        self._files.state.touch(inode)
        self.dirty = False

    def committed(self, live: Collection[int]) -> None:
        """Note that a commit holds what `settle` described."""
        self._cut = NO_CUT
        self._written.clear()
        if self._tree is not None and self._file is not None:
            if self._prepared is not None:
                self._tree.committed(self._prepared)
                self._prepared = None
            self._tree.hold(self._files.state.older(self._file[0], live))

    def unload(self) -> None:
        """Give back memory and descriptors; the row describes the content."""
        self._small = None
        if self._tree is not None:
            self._tree.close()
        if self._storage is not None:
            self._storage.close()
        self._tree = self._storage = self._file = self._prepared = None

    def verify(self) -> int:
        """Read all of it from the storage; the number of blocks. Raises IntegrityError."""
        self._load()
        if self._tree is not None:
            return self._tree.verify()
        return len(self._small or b"") > 0

    # The log.

    def take_change(self) -> DataChange:
        """What was written since the last record; from now on it counts as logged."""
        size = self.inode.size
        change = DataChange(self.number, self._cut, size, [])
        for start, end in self._written:
            piece = bytearray(min(end, size) - start)
            self.read_at(start, piece)
            change.pieces.append((start, bytes(piece)))
        self._cut = NO_CUT
        self._written = []
        return change

    def replay(self, change: DataChange) -> None:
        """Make a change that the log holds."""
        if change.cut != NO_CUT:
            self.truncate(change.cut)
        if self.inode.size != change.size:
            self.truncate(change.size)
        for offset, piece in change.pieces:
            self.write_at(offset, piece)


class Files:
    """The nodes in use and the data files behind them.

    Args:
        locks: those of `meta`; None where the platform has none.
        catch_up: called when this process begins to write to a file, so that it starts from the newest commit.
        live: gives the commits that readers may still open.
        clock: gives the time in nanoseconds.
    """

    def __init__(
        self,
        directory: Directory,
        state: State,
        *,
        locks: ByteLocks | None,
        catch_up: Callable[[], None],
        live: Callable[[], Collection[int]],
        clock: Callable[[], int],
        what: str,
    ) -> None:
        self.directory = directory
        self.write_once: bool = getattr(directory, "write_once", False)
        self.state = state
        self.clock = clock
        self.what = what
        self.nodes: dict[int, Node] = {}
        self.unsynced: dict[bytes, Storage] = {}
        self.unwritten: set[tuple[bytes, bytes, int]] = set()  # trees that a write-once directory still takes
        self._locks = locks
        self._catch_up = catch_up
        self._live = live
        self._session = b""
        self._fresh: set[bytes] = set()  # data files that no commit names yet
        self._pack: PackWriter | None = None
        self._packs = PackReader(directory, what)
        self._new_names = False

    # Nodes.

    def node(self, number: int) -> Node:
        """The node of an inode; whoever keeps it says so by `handles`."""
        node = self.nodes.get(number)
        if node is None:
            node = self.nodes[number] = Node(self, number)
        return node

    def release(self, node: Node) -> None:
        """Note that nobody has `node` open any more."""
        inode = self.state.find(node.number)
        if inode is None or inode.links == 0:
            self.drop(node.number)
            return
        if node.dirty and node.is_tree:
            self._limit_trees()
            return
        node.settle()
        node.unload()
        if not node.unlogged and not node.locked:  # the lock is kept until a commit has what was written
            self._forget(node)

    def _limit_trees(self) -> None:
        idle = [node for node in self.nodes.values() if node.is_tree and not node.handles]
        if len(idle) > _OPEN_TREES:
            for node in idle[: _OPEN_TREES // 2]:
                node.settle()
                self.sync()
                node.unload()

    def _forget(self, node: Node) -> None:
        self.nodes.pop(node.number, None)
        if node.locked and self._locks:
            self._locks.release(INODES_AT + (node.number & _SPAN))

    def drop(self, number: int) -> None:
        """Remove an inode that nothing leads to and nobody has open."""
        if node := self.nodes.get(number):
            if node._file:
                self.unsynced.pop(node._file[0], None)
            node.unload()
            self._forget(node)
        inode = self.state.find(number)
        if inode:
            self.state.drop(number)
            if isinstance(inode.body, Tree) and inode.body.file in self._fresh:
                self._remove(inode.body.file)

    def lock_inode(self, node: Node) -> None:
        """Keep other processes from writing to the file until a commit holds what is written here.

        Raises:
            LockedError: another process is writing to it.
        """
        if node.locked or self._locks is None:
            return
        inode = self.state.find(node.number)
        if inode and not inode.changed:
            return  # no commit has it, so nobody else knows it
        if not self._locks.acquire(INODES_AT + (node.number & _SPAN), exclusive=True):
            raise LockedError(f"{self.what}: another process is writing to this file", hint="try again later")
        node.locked = True
        self._catch_up()

    @property
    def dirty_bytes(self) -> int:
        """Roughly how much a commit has to write."""
        return sum(node.unlogged_bytes for node in self.nodes.values())

    # Data files.

    def _new_id(self) -> bytes:
        """A random id, whose first half says which process made it: nobody sweeps away what a living one made."""
        if not self._session:
            while True:
                self._session = random_bytes(8)
                byte = session_byte(self._session)
                if self._locks is None or self._locks.acquire(byte, exclusive=True):
                    break
        file = self._session + random_bytes(8)
        self._fresh.add(file)
        self._new_names = True
        return file

    def new_tree(self, block_size: int) -> tuple[tuple[bytes, bytes, int], Storage, Content]:
        """A new data file, of which the vault knows nothing yet."""
        file, key = self._new_id(), random_key()
        storage = self.directory.open(file.hex(), "x", shared=True)
        self.unwritten.add((file, key, block_size))
        tree = self._content(storage, file, key, block_size, None, ())
        return (file, key, block_size), storage, tree

    def open_tree(self, number: int, body: Tree) -> tuple[Storage, Content]:
        """The content of an existing data file."""
        mode = "r"
        held: list[Version] = []
        if self.state.writable and not self.write_once:
            mode = "r+"
            held = self.state.older(body.file, self._live())
            committed = self.state.committed_body(number)
            if isinstance(committed, Tree) and committed.file == body.file and committed.version != body.version:
                held.append(committed.version)
        try:
            storage = self.directory.open(body.file.hex(), mode, shared=True)  # type: ignore[arg-type]
        except FileNotFoundError:
            raise missing(self.what, body.file) from None
        return storage, self._content(storage, body.file, body.key, body.block_size, body.version, held)

    def _content(
        self,
        storage: Storage,
        file: bytes,
        key: bytes,
        block_size: int,
        version: Version | None,
        held: Iterable[Version],
    ) -> Content:
        return Content(
            storage,
            {0: block_cipher(key, file)},
            file,
            block_size,
            version,
            slots=False,
            held=held,
            what=f"{self.what}: data file {file.hex()}",
            cache=_CACHE,
        )

    def read_piece(self, piece: Packed, size: int) -> bytearray:
        return self._packs.read(piece, size, self.state.pack_key(piece.pack))

    def write_piece(self, data: Buffer) -> Packed:
        if self._pack is None or self._pack.full:
            self._close_pack()
            pack = self._new_id()
            self._pack = PackWriter(self.directory.open(pack.hex(), "x", shared=True), pack)
        piece = self._pack.append(data)
        self.state.new_packs[self._pack.id] = self._pack.key, self._pack.size
        return piece

    def _close_pack(self) -> None:
        if self._pack:
            self._pack.sync()
            self._pack.close()
            self._pack = None

    # The commit.

    def settle(self) -> None:
        """Make every row describe its content."""
        for node in self.nodes.values():
            node.settle()

    def sync(self) -> None:
        """Make durable what the rows describe: data files, then the names of new ones."""
        for file, storage in list(self.unsynced.items()):
            storage.sync()
            del self.unsynced[file]
        if self._pack:
            self._pack.sync()
        if self.write_once:
            self.unwritten.clear()
            self._close_pack()
        if self._new_names:
            self.directory.sync()
            self._new_names = False

    def committed(self, dead: Iterable[bytes]) -> None:
        """Note that a commit names everything; remove the `dead` data files."""
        self._fresh.clear()
        live = list(self._live())
        for node in list(self.nodes.values()):
            node.committed(live)
            if not node.handles:
                node.unload()
                self._forget(node)
            elif node.locked and self._locks:
                self._locks.release(INODES_AT + (node.number & _SPAN))
                node.locked = False
        if self._pack and not self.state.has_pack(self._pack.id):
            self._close_pack()  # all that was in it has been replaced
        for file in dead:
            self._remove(file)

    def _remove(self, file: bytes) -> None:
        self._packs.forget(file)
        self._fresh.discard(file)
        with contextlib.suppress(FileNotFoundError):
            self.directory.unlink(file.hex())

    def sweep(self) -> None:
        """Remove data files that a crash left: nothing names them, and the process that made them is gone."""
        if self._locks is None or self.write_once:
            return
        known: set[bytes] | None = None
        alive: dict[bytes, bool] = {}
        for name in self.directory.list():
            file = parse_data_name(name)
            if file is None or file in self._fresh:
                continue
            known = self.state.data_files() if known is None else known
            if file in known:
                continue
            session = file[:8]
            if session not in alive:
                byte = session_byte(session)
                alive[session] = session == self._session or bool(self._locks.holders(byte, byte))
            if not alive[session]:
                self._remove(file)

    def reload(self, state: State) -> None:
        """Go on with the rows of another commit: what is open and unchanged is read anew."""
        self.state = state
        for node in self.nodes.values():
            if not node.dirty:
                node.unload()

    def discard(self) -> None:
        """Give everything back, and remove data files that no commit names."""
        for node in self.nodes.values():
            node.unload()
        self.nodes.clear()
        self.unsynced.clear()
        if self._pack:
            self._pack.close()
            self._pack = None
        self._packs.close()
        while self._fresh:
            with contextlib.suppress(OSError):
                self.directory.unlink(self._fresh.pop().hex())


def session_byte(session: bytes) -> int:
    return SESSIONS_AT + (int.from_bytes(session, "little") & _SPAN)


def parse_data_name(name: str) -> bytes | None:
    """The id of the data file of that name, or None if it is none."""
    if len(name) != 32 or name.strip("0123456789abcdef"):
        return None
    return bytes.fromhex(name)
