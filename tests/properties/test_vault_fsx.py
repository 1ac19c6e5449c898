"""One file of a vault under random operations, held against a bytearray: as fsx does, with kills and others about."""

import os
import random
from collections import Counter

import pytest

from strongroom.errors import LockedError
from strongroom.sealed import MemoryAnchor
from strongroom.storage import MemoryDirectory
from strongroom.testing.storage import FaultyDirectory
from strongroom.vault.vault import Vault

KEY = bytes(range(32))
BLOCK = 4096
LONGEST = 40 * BLOCK
EDGES = (0, 2048, BLOCK, 3 * BLOCK, 64 << 10, (64 << 10) + BLOCK, 30 * BLOCK)  # of rows, packs, blocks and trees


class Fsx:
    """A vault with the file `file`, one process that changes it, and others now and then.

    Attributes:
        content: what the file holds for that process.
        committed: what others see.
        durable: what it must hold after a kill: the last commit with the fsyncs acknowledged since.
        done: how often each operation was done.
    """

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)  # noqa: S311  # a failure must come back
        self.disk, self.anchor = FaultyDirectory(), MemoryAnchor()
        self.done: Counter[str] = Counter()
        self.content = bytearray()
        self.committed = self.durable = b""
        self.vault = self.open(self.disk, self.anchor, "x")
        self.vault.open("file", "xb", block_size=BLOCK).close()
        self.vault.commit()
        self._hold()
        self.acts = {
            self.write: 40, self.read: 25, self.write_through_a_file: 5, self.truncate: 8, self.punch: 8, self.fsync: 6,
            self.let_go: 3, self.commit: 2, self.reopen: 1, self.begin_anew: 1, self.second_process: 1, self.kill: 1,
        }  # fmt: skip

    @staticmethod
    def open(disk, anchor, mode, *, log=True) -> Vault:
        return Vault(disk, mode, KEY, anchor, what="vault", log=log)

    def _hold(self) -> None:
        self.number = self.vault.stat("file").inode
        self.node = self.vault.hold(self.number)

    # One operation each.

    def _range(self) -> tuple[int, int]:
        rng = self.rng
        at = rng.choice(EDGES) + rng.randrange(-9, 10) if rng.random() < 0.5 else rng.randrange(LONGEST)
        size = rng.choice((1, 10, 700, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK)) if rng.random() < 0.9 else LONGEST
        at = max(0, at)
        return at, max(0, min(size, LONGEST - at))

    def _put(self, offset: int, data: bytes) -> None:
        if data:
            self.content.extend(bytes(max(0, offset - len(self.content))))
            self.content[offset : offset + len(data)] = data

    def write(self) -> None:
        offset, size = self._range()
        data = self.rng.randbytes(size)
        self._put(offset, data)
        self.node.write_at(offset, data)

    def write_through_a_file(self) -> None:
        offset, size = self._range()
        data = self.rng.randbytes(size)
        if self.rng.random() < 0.3 and len(self.content) + size < LONGEST:
            with self.vault.open("file", "ab") as file:
                file.write(data)
            self._put(len(self.content), data)
        else:
            with self.vault.open("file", "r+b") as file:
                file.seek(offset)
                file.write(data)
            self._put(offset, data)

    def read(self) -> None:
        offset, size = self._range()
        buffer = bytearray(b"\xaa") * size
        count = self.node.read_at(offset, buffer)
        assert buffer[:count] == self.content[offset : offset + size]
        assert buffer[count:] == b"\xaa" * (size - count)

    def truncate(self) -> None:
        size = self._range()[0]
        del self.content[size:]
        self.content.extend(bytes(size - len(self.content)))
        if self.rng.random() < 0.5:
            self.node.truncate(size)
        else:
            self.vault.change(self.number, size=size)

    def punch(self) -> None:
        offset, size = self._range()
        stop = min(offset + size, len(self.content))
        self.content[offset:stop] = bytes(max(0, stop - offset))
        self.node.punch(offset, size)

    def commit(self) -> None:
        self.vault.commit()
        self.committed = self.durable = bytes(self.content)

    def fsync(self) -> None:
        before = self.vault.root.sequence
        self.vault.fsync(self.number)
        self.durable = bytes(self.content)
        if self.vault.root.sequence != before:  # too much for a record
            self.committed = self.durable

    def let_go(self) -> None:
        self.vault.release(self.node)
        assert self.vault.read_bytes("file") == self.content
        self._hold()

    def reopen(self) -> None:
        self.vault.release(self.node)
        if self.rng.random() < 0.8:
            self.vault.close()
            self.durable = bytes(self.content)
        else:
            self.vault.discard()
            self.content = bytearray(self.durable)
        self.committed = self.durable
        self.vault = self.open(self.disk, self.anchor, "r+")
        self._hold()

    def begin_anew(self) -> None:
        """So that the file is small again, and lies in a row or a pack."""
        self.vault.release(self.node)
        self.vault.remove("file")
        self.vault.open("file", "xb", block_size=BLOCK).close()
        self._hold()
        self.content.clear()
        self.commit()

    def second_process(self) -> None:
        """Somebody else reads, is kept from writing while this process does, and writes once it has committed."""
        with self.open(self.disk, self.anchor, "r", log=False) as reader:
            assert reader.read_bytes("file") == self.committed
        if self.node.locked:
            with self.open(self.disk, self.anchor, "r+", log=False) as other, other.open("file", "r+b") as file:
                with pytest.raises(LockedError):
                    file.write(b"in the way")
                other.discard()
        self.commit()
        offset, size = self._range()
        data = self.rng.randbytes(size)
        with self.open(self.disk, self.anchor, "r+", log=False) as other, other.open("file", "r+b") as file:
            file.seek(offset)
            file.write(data)
        self._put(offset, data)
        self.committed = self.durable = bytes(self.content)
        if self.rng.random() < 0.5:
            assert self.vault.refresh() == bool(data)
        else:
            self.write()  # begins from what the other has committed
            self.write_through_a_file()

    def kill(self) -> None:
        """The process is gone; what it had not synced is lost, or all of it is there, or some."""
        fates = (lambda at: False, lambda at: True, lambda at: self.rng.random() < 0.5)
        states = [self.disk.after_crash(fate) for fate in fates]
        for state in states:
            with self.open(state, MemoryAnchor(self.anchor.read()), "r+", log=False) as opened:
                assert opened.read_bytes("file") == self.durable
                opened.verify()
        self._go_on_from(self.rng.choice(states))

    def _go_on_from(self, state: MemoryDirectory) -> None:
        self.vault.discard()
        self.disk = FaultyDirectory({name: bytes(file.data) for name, file in state.files.items()})
        self.vault = self.open(self.disk, self.anchor, "r+")
        self.content, self.committed = bytearray(self.durable), self.durable
        self._hold()

    def run(self, steps: int) -> None:
        acts, weights = [*self.acts], [*self.acts.values()]
        for _ in range(steps):
            act = self.rng.choices(acts, weights)[0]
            self.done[act.__name__] += 1
            act()
            assert self.node.inode.size == len(self.content)
        self.vault.release(self.node)
        self.vault.close()
        with self.open(self.disk, self.anchor, "r", log=False) as reader:
            assert reader.read_bytes("file") == self.content
        assert len(self.disk.list()) <= 5  # `meta`, `log`, and what two commits need


@pytest.mark.parametrize("seed", range(8))
def test_twenty_thousand_operations(seed):
    fsx = Fsx(seed)
    fsx.run(2500)
    assert len(fsx.done) == len(fsx.acts)


@pytest.mark.slow
def test_a_million_operations():
    """STRONGROOM_SEED names another series."""
    first = int(os.environ.get("STRONGROOM_SEED", "1000"))
    done: Counter[str] = Counter()
    for seed in range(first, first + 100):
        fsx = Fsx(seed)
        fsx.run(10_000)
        done += fsx.done
    print(f"{done.total()} operations: {dict(done)}")
