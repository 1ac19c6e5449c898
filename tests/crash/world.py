"""A vault under a random workload on a disk that may lose power at every step, and what must be found afterwards."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from strongroom.sealed import MemoryAnchor, Root
from strongroom.storage import MemoryDirectory
from strongroom.testing.storage import FaultyDirectory
from strongroom.vault.vault import Vault

KEY = bytes(range(32))


@dataclass
class Model:
    """What a vault holds: names lead to files, files have contents. Two names may lead to one file."""

    names: dict[str, int] = field(default_factory=dict)
    contents: dict[int, bytes] = field(default_factory=dict)

    def copy(self) -> Model:
        return copy.deepcopy(self)

    def files(self) -> dict[str, bytes]:
        return {path: self.contents[number] for path, number in self.names.items()}


class WatchedAnchor(MemoryAnchor):
    """An anchor whose step is a crash point too: the power may go before it and after it."""

    def __init__(self, root: Root | None = None, watch: Callable[[], None] = lambda: None) -> None:
        super().__init__(root)
        self._watch = watch

    def advance(self, old: Root | None, new: Root) -> None:
        self._watch()
        super().advance(old, new)
        self._watch()


class World:
    """Runs a workload and looks at what a crash would leave at every step.

    Args:
        states: how many states to look at for each step at most.
        log: whether fsyncs are logged; without, each is a commit.
        encrypted: whether contents are; else they are authenticated only.

    Attributes:
        explored: how many states were looked at.
    """

    def __init__(self, seed: int, *, states: int, log: bool, encrypted: bool = True) -> None:
        self.rng = random.Random(seed)  # noqa: S311  # a failure must come back
        self.explored = 0
        self._states = states
        self._log = log
        self._encrypted = encrypted
        self._exploring = False
        self.disk = FaultyDirectory()
        self.anchor = WatchedAnchor(watch=self._look)
        self._watch_steps()
        self.model = Model()
        self._durable = Model()  # what the last acknowledged commit or fsync promised
        self._ordered: set[int] = set()
        self._candidates: list[Model] = []
        self._number = 0
        self.vault = self._open(self.disk, self.anchor, "x")
        self.vault.commit()  # before it there is no vault, and nothing was promised
        self._candidates = [self._durable]

    def _open(self, disk, anchor, mode):
        return Vault(disk, mode, KEY, anchor, what="vault", log=self._log, encrypted=self._encrypted)

    def _reopen(self, state, anchor, mode):
        return Vault(state, mode, KEY, anchor, what="after the crash", encrypted=self._encrypted)

    def _watch_steps(self) -> None:
        steps = self.disk._steps
        take = steps.take

        def watched() -> None:
            self._look()
            take()

        steps.take = watched

    # Looking at crashes.

    def _look(self) -> None:
        if self._exploring or not self._candidates:
            return
        self._exploring = True
        try:
            for state in self.disk.crash_states(self._states, self.rng):
                self.explored += 1
                self._check(state)
        finally:
            self._exploring = False

    def _check(self, state: MemoryDirectory) -> None:
        expected = [model.files() for model in self._candidates]
        anchor = MemoryAnchor(self.anchor.read())
        told = repr(state)
        with self._reopen(state, anchor, "r+") as opened:
            found = {path: opened.read_bytes(path) for path in opened.files()}
            assert found in expected, (told, summary(found), [summary(e) for e in expected])
            if self.explored % 10 == 0:
                opened.write_bytes("onward", b"o" * 5000)
        if self.explored % 10 == 0:
            with self._reopen(state, anchor, "r") as opened:
                assert opened.verify() == len(found) + 1
                assert {path: opened.read_bytes(path) for path in opened.files()} == found | {"onward": b"o" * 5000}

    # The workload.

    def _sync(self, act: Callable[[], object], promised: Model) -> None:
        self._candidates = [self._durable, promised]
        act()
        self._durable = promised
        self._candidates = [promised]

    def commit(self) -> None:
        self._ordered.clear()
        self._sync(self.vault.commit, self.model.copy())

    def fsync(self, path: str) -> None:
        promised = self.model.copy()
        if self._log:
            kept = {self.model.names[path], *self._ordered}
            promised.contents = {
                number: content if number in kept else self._durable.contents.get(number, b"")
                for number, content in self.model.contents.items()
            }
        self._ordered.clear()
        self._sync(lambda: self.vault.fsync(self.vault.stat(path).inode), promised)

    def write_new(self, path: str, size: int) -> None:
        data = self.rng.randbytes(size)
        self._number += 1
        self.model.names[path] = self._number
        self.model.contents[self._number] = data
        self._ordered.add(self._number)
        self.vault.write_bytes(path, data)

    def overwrite(self, path: str, offset: int, size: int) -> None:
        data = self.rng.randbytes(size)
        number = self.model.names[path]
        old = self.model.contents[number].ljust(offset, b"\0")
        self.model.contents[number] = old[:offset] + data + old[offset + size :]
        with self.vault.open(path, "r+b") as file:
            file.seek(offset)
            file.write(data)

    def truncate(self, path: str, size: int) -> None:
        number = self.model.names[path]
        self.model.contents[number] = self.model.contents[number][:size].ljust(size, b"\0")
        with self.vault.open(path, "r+b") as file:
            file.truncate(size)

    def rename(self, old: str, new: str) -> None:
        if old == new:
            return
        if new in self.model.names:
            self._ordered.add(self.model.names[old])
        self.model.names[new] = self.model.names.pop(old)
        self.vault.rename(old, new)

    def remove(self, path: str) -> None:
        del self.model.names[path]
        self.vault.remove(path)

    def step(self) -> None:
        """One random operation."""
        rng = self.rng
        path = f"{rng.choice('abcdef')}"
        there = sorted(self.model.names)
        kind = rng.random()
        if kind < 0.2 or not there:
            self.write_new(path, rng.choice((0, 100, 1500, 3000, 20_000, 70_000)))
        elif kind < 0.45:
            self.overwrite(rng.choice(there), rng.choice((0, 50, 4000, 66_000)), rng.choice((1, 500, 5000)))
        elif kind < 0.55:
            self.truncate(rng.choice(there), rng.choice((0, 10, 3000, 65_536, 69_000)))
        elif kind < 0.63:
            self.rename(rng.choice(there), path)
        elif kind < 0.7:
            self.remove(rng.choice(there))
        elif kind < 0.9:
            self.fsync(rng.choice(there))
        else:
            self.commit()

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.step()
        self._candidates = [self._durable, self.model.copy()]
        self.vault.close()
        self._candidates = []


def summary(files: dict[str, bytes]) -> dict[str, tuple[int, str]]:
    return {path: (len(content), content[:4].hex()) for path, content in files.items()}
