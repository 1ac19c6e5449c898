"""The contents of a vault's files: small ones in memory until they are packed, large ones as block trees.

`Files` keeps the nodes that are in use, the data files behind them and the pack that is being written.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import TYPE_CHECKING, Final

from strongroom.crypto import random_bytes, random_key
from strongroom.errors import LockedError
from strongroom.sealed.content import Content, Version
from strongroom.sealed.layout import block_cipher
from strongroom.storage import LOCKS_AT, ByteLocks, Directory, Storage
from strongroom.vault.node import Node
from strongroom.vault.packs import PackReader, PackWriter, missing
from strongroom.vault.rows import Packed, Tree
from strongroom.vault.state import State

if TYPE_CHECKING:
    from collections.abc import Buffer  # type: ignore[attr-defined,unused-ignore]  # Python 3.12

INODES_AT: Final = LOCKS_AT + (3 << 60)
SESSIONS_AT: Final = LOCKS_AT + (1 << 60)
_SPAN: Final = (1 << 60) - 1
_OPEN_TREES: Final = 128
_CACHE: Final = 4 << 20


class Files:
    """The nodes in use and the data files behind them.

    Args:
        locks: those of `meta`; None where the platform has none.
        ready: called before a content changes; raises if the vault takes no changes.
        lost: called when a sync has failed: what was written since the last commit must never be committed.
        catch_up: called when this process begins to write to a file, so that it starts from the newest commit.
        live: gives the commits that readers may still open.
        clock: gives the time in nanoseconds.
        encrypted: whether contents rest as ciphertext; else in clear, and not in rows, which are encrypted.
    """

    def __init__(
        self,
        directory: Directory,
        state: State,
        *,
        locks: ByteLocks | None,
        ready: Callable[[], None],
        lost: Callable[[], None],
        catch_up: Callable[[], None],
        live: Callable[[], Collection[int]],
        clock: Callable[[], int],
        encrypted: bool,
        what: str,
    ) -> None:
        self.directory = directory
        self.write_once: bool = getattr(directory, "write_once", False)
        self.state = state
        self.clock = clock
        self.encrypted = encrypted
        self.what = what
        self.nodes: dict[int, Node] = {}
        self.unsynced: dict[bytes, Storage] = {}
        self.unwritten: set[tuple[bytes, bytes, int]] = set()  # trees that a write-once directory still takes
        self._locks = locks
        self.ready = ready
        self._lost = lost
        self._catch_up = catch_up
        self._live = live
        self._session = b""
        self._fresh: set[bytes] = set()  # data files that no commit names yet
        self._named: set[bytes] = set()  # those that the commit being made names
        self._pack: PackWriter | None = None
        self._packs = PackReader(directory, what, encrypted=encrypted)
        self._new_names = False
        self._overtaken = False  # another process has committed since this one did

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
        self._unlock(node)

    def _unlock(self, node: Node) -> None:
        if node.locked and self._locks and not node.foreign:
            self._locks.release(INODES_AT + (node.number & _SPAN))
        node.locked = node.foreign = False

    def keep_open(self, node: Node) -> None:
        """Keep others from removing a file that has no name any more, while it is open here."""
        if self._locks and not node.locked:
            node.locked = self._locks.acquire(INODES_AT + (node.number & _SPAN), exclusive=False)

    def drop(self, number: int) -> None:
        """Remove an inode that nothing leads to and nobody has open."""
        inode = self.state.find(number)
        files = {inode.body.file} if inode and isinstance(inode.body, Tree) else set()
        if node := self.nodes.get(number):
            if node._file:
                files.add(node._file[0])
                self.unsynced.pop(node._file[0], None)
            node.unload()
            self._forget(node)
        if inode:
            self.state.drop(number)
        for file in files & self._fresh:  # no commit names it, and none will: that is room at once
            self._remove(file)

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
            authenticated_only=not self.encrypted,
        )

    def read_piece(self, piece: Packed, size: int) -> bytearray:
        return self._packs.read(piece, size, self.state.pack_key(piece.pack))

    def write_piece(self, data: Buffer) -> Packed:
        if self._pack is None or self._pack.full:
            self._close_pack()
            pack = self._new_id()
            storage = self.directory.open(pack.hex(), "x", shared=True)
            self._pack = PackWriter(storage, pack, encrypted=self.encrypted)
        piece = self._pack.append(data)
        self.state.new_packs[self._pack.id] = self._pack.key, self._pack.size
        return piece

    def _close_pack(self) -> None:
        if self._pack:
            with self._syncing():
                self._pack.sync()
            self._pack.close()
            self._pack = None

    # The commit.

    def settle(self) -> None:
        """Make every row describe its content."""
        for node in self.nodes.values():
            node.settle()

    @contextlib.contextmanager
    def _syncing(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._lost()
            raise

    def sync(self) -> None:
        """Make durable what the rows describe: data files, then the names of new ones."""
        with self._syncing():
            self._sync()

    def _sync(self) -> None:
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

    def naming(self) -> None:
        """Note that a commit is about to be written, which may name every data file, whatever becomes of it."""
        self._named, self._fresh = self._fresh, set()

    def not_named(self) -> None:
        """Note that the commit is certainly not on the disk."""
        self._fresh |= self._named

    def committed(self, dead: Iterable[bytes]) -> None:
        """Note that a commit names everything; remove the `dead` data files."""
        live = list(self._live())
        for node in list(self.nodes.values()):
            node.committed(live)
            if not node.handles:
                node.unload()
                self._forget(node)
            elif (inode := self.state.find(node.number)) and inode.links:
                self._unlock(node)
        if self._pack and not self.state.has_pack(self._pack.id):
            self._close_pack()  # all that was in it has been replaced
        for file in dead:
            # A pack of another process may be getting pieces that its next commit names; it sees to it itself.
            if not self._is_alive(file[:8]) or file[:8] == self._session:
                self._remove(file)
        if self._overtaken:
            self._overtaken = False
            self._sweep_own()

    def _is_alive(self, session: bytes) -> bool:
        byte = session_byte(session)
        return session == self._session or bool(self._locks and self._locks.holders(byte, byte))

    def _sweep_own(self) -> None:
        """Remove data files of this process that commits of other processes replaced."""
        known = self.state.data_files()
        for name in self.directory.list():
            file = parse_data_name(name)
            if file and file[:8] == self._session and file not in known:
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
                alive[session] = self._is_alive(session)
            if not alive[session]:
                self._remove(file)

    def reload(self, state: State) -> None:
        """Go on with the rows of another commit: what is open and unchanged is read anew."""
        self.state = state
        self._overtaken = True
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
