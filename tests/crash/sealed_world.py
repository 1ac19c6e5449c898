"""A sealed file under a random workload on a disk that may lose power at every step, and what must be found then."""

from __future__ import annotations

import random

from strongroom.errors import IntegrityError, WrongKeyError
from strongroom.sealed import Grouped, MemoryAnchor, SealedFile
from strongroom.sealed.opening import open_in
from strongroom.storage import Directory, MemoryDirectory
from strongroom.testing.storage import FaultyDirectory
from tests.crash.world import WatchedAnchor

BLOCK = 4096
OFFSETS = (0, 100, BLOCK - 1, BLOCK, 3 * BLOCK + 7, 90 * BLOCK)  # 86 pointers fit into a block
SIZES = (1, 50, BLOCK, BLOCK + 1, 3 * BLOCK)


def open_file(directory: Directory, mode, key, anchor, *, encrypted=True, at=None) -> SealedFile:
    return open_in(directory, "file", mode, key, anchor, BLOCK, what="file", expected=True, encrypted=encrypted, at=at)


class SealedWorld:
    """Runs a workload and looks at what a crash would leave at every step, those of the anchor among them.

    Args:
        states: how many states to look at for each step at most.
        grouped: the anchor follows every fourth commit only.

    Attributes:
        explored: how many states were looked at.
    """

    def __init__(self, seed: int, *, states: int, encrypted: bool = True, grouped: bool = False) -> None:
        self.rng = random.Random(seed)  # noqa: S311  # a failure must come back
        self.explored = 0
        self._states = states
        self._encrypted = encrypted
        self._grouped = grouped
        self._looking = False
        self.disk = FaultyDirectory()
        self.anchor = WatchedAnchor(watch=self._look)
        self._watch_steps()
        self.keys = [bytes([seed % 256]) * 32]  # those that may be the file's; between commits one
        self.content = bytearray()
        self.retained: dict[int, bytes] = {}  # by sequence
        self._durable: list[bytes] = []  # what a crash may leave
        self.file = open_file(self.disk, "x", self.keys[0], self._anchor(), encrypted=encrypted)
        self.file.commit()  # before it there is no file, and nothing was promised
        self._durable = [b""]

    def _anchor(self):
        if not self._grouped:
            return self.anchor
        return Grouped(self.anchor, every_commits=4, every_seconds=1.0, clock=lambda: 0.0)

    def _watch_steps(self) -> None:
        steps = self.disk._steps
        take = steps.take

        def watched() -> None:
            self._look()
            take()

        steps.take = watched

    # Looking at crashes.

    def _look(self) -> None:
        if self._looking or not self._durable:
            return
        self._looking = True
        try:
            for state in self.disk.crash_states(self._states, self.rng):
                self.explored += 1
                self._check(state)
        finally:
            self._looking = False

    def _open_with_any_key(self, state: MemoryDirectory, mode: str, anchor: MemoryAnchor) -> tuple[SealedFile, bytes]:
        failures: list[IntegrityError] = []
        for key in reversed(self.keys):  # the newer one first
            try:
                return open_file(state, mode, key, anchor, encrypted=self._encrypted), key
            except IntegrityError as error:
                failures.append(error)
        raise AssertionError(f"{state!r}: {failures}")

    def _check(self, state: MemoryDirectory) -> None:
        if len(self.keys) == 2 and not self._grouped:
            self._check_old_key(state)
        anchor = MemoryAnchor(self.anchor.read())
        file, key = self._open_with_any_key(state, "r", anchor)
        with file:
            found = file.read()
            assert found in self._durable, (repr(state), len(found), [len(content) for content in self._durable])
            kept = [root.sequence for root in file.retained]
        for sequence in kept:
            if sequence in self.retained:
                with open_file(state, "r", key, anchor, encrypted=self._encrypted, at=sequence) as old:
                    assert old.read() == self.retained[sequence], (repr(state), sequence)
        if self.explored % 10 == 0:
            with self._open_with_any_key(state, "r+", anchor)[0] as file:
                file.write_at(len(found), b"onward")
                file.write_at(0, b"o")
            with self._open_with_any_key(state, "r", anchor)[0] as file:
                file.verify()
                content = bytearray(found + b"onward")
                content[:1] = b"o"
                assert file.read() == content

    def _check_old_key(self, state: MemoryDirectory) -> None:
        """While a key is replaced the old one opens the last commit or nothing, never something older."""
        try:
            file = open_file(state, "r", self.keys[0], MemoryAnchor(self.anchor.read()), encrypted=self._encrypted)
        except IntegrityError:
            return
        with file:
            assert file.read() in self._durable, repr(state)

    # The workload.

    def _promising(self, act) -> None:
        promised = bytes(self.content)
        self._durable = [self._durable[-1], promised]
        act()
        self._durable = [promised]

    def write(self) -> None:
        offset, data = self.rng.choice(OFFSETS), self.rng.randbytes(self.rng.choice(SIZES))
        self.content.extend(bytes(max(0, offset - len(self.content))))
        self.content[offset : offset + len(data)] = data
        self.file.write_at(offset, data)

    def truncate(self) -> None:
        size = self.rng.choice((0, 10, BLOCK, 2 * BLOCK + 1, len(self.content) + 5000))
        del self.content[size:]
        self.content.extend(bytes(size - len(self.content)))
        self.file.truncate(size)

    def punch(self) -> None:
        offset, size = self.rng.choice(OFFSETS), self.rng.choice(SIZES)
        stop = min(offset + size, len(self.content))
        if offset < stop:
            self.content[offset:stop] = bytes(stop - offset)
        self.file.punch(offset, size)

    def commit(self) -> None:
        self._promising(self.file.commit)

    def retain(self) -> None:
        if len(self.file.retained) < 5:
            self.retained[self.file.root.sequence + 1] = bytes(self.content)
            self.retained[self.file.root.sequence] = self._durable[-1]
            self._promising(self.file.retain)

    def release(self) -> None:
        if kept := self.file.retained:
            self.file.release(self.rng.choice(kept))

    def reopen(self) -> None:
        self._promising(self.file.close)
        self.file = open_file(self.disk, "r+", self.keys[0], self._anchor(), encrypted=self._encrypted)

    def abandon(self) -> None:
        """What was not committed is gone."""
        self.file.discard()
        self.file = open_file(self.disk, "r+", self.keys[0], self._anchor(), encrypted=self._encrypted)
        self.content = bytearray(self._durable[-1])

    def compact(self) -> None:
        self._promising(lambda: self.file.compact(step=4))

    def rekey(self) -> None:
        """Another key; or a step of the last change of it."""
        if self.file.rekeying:
            self.file.rekey_step(self.rng.choice((1, 5, 1000)))
            return
        old, new = self.keys[0], self.rng.randbytes(32)
        self._promising(lambda: self.file.rekey(new))
        self.keys = [old, new]
        self._promising(self.file.commit)
        self.keys = [new]
        self._check_key_is_gone(old)

    def _check_key_is_gone(self, key: bytes) -> None:
        for state in self.disk.crash_states(3, self.rng):
            try:
                open_file(state, "r", key, self.anchor, encrypted=self._encrypted).discard()
            except WrongKeyError:
                continue
            raise AssertionError("a key that was replaced opens the file")

    def step(self) -> None:
        """One random operation."""
        acts = {
            self.write: 30, self.truncate: 8, self.punch: 8, self.commit: 25, self.retain: 5, self.release: 5,
            self.reopen: 5, self.abandon: 3, self.compact: 3, self.rekey: 8,
        }  # fmt: skip
        self.rng.choices([*acts], [*acts.values()])[0]()

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.step()
        self._promising(self.file.close)
        self._durable = []
