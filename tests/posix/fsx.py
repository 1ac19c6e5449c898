"""Random operations on one file, held against the same on bytes in memory: what `fsx` does.

Run as a program: ``fsx.py FILE MODEL SEED FIRST COUNT`` does operations FIRST to FIRST + COUNT of the sequence of SEED.
"""

from __future__ import annotations

import mmap
import os
import random
import sys
from pathlib import Path

LONGEST = 400_000  # several blocks of 64 KiB, and small enough to cross the limits of packs and rows often
_PIECE = 70_000


class Exerciser:
    """A file, and what it should hold."""

    def __init__(self, path: Path, model: Path, chance: random.Random) -> None:
        self.path = path
        self.model = bytearray(model.read_bytes() if model.exists() else b"")
        self.chance = chance
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT)

    def step(self) -> None:
        choices = (
            (self.read, 25),
            (self.write, 25),
            (self.append, 5),
            (self.map_read, 12),
            (self.map_write, 12),
            (self.truncate, 8),
            (self.extend, 4),
            (self.sync, 2),
            (self.reopen, 5),
            (self.empty_cache, 2),
        )
        [operation] = self.chance.choices([each for each, _ in choices], [weight for _, weight in choices])
        operation()
        assert os.fstat(self.fd).st_size == len(self.model), "size"

    def _range(self) -> tuple[int, int]:
        start = self.chance.randrange(LONGEST)
        return start, min(LONGEST, start + self.chance.choice((1, 100, 5000, _PIECE)))

    def _data(self, count: int) -> bytes:
        return self.chance.randbytes(count)

    def _put(self, start: int, data: bytes) -> None:
        if start > len(self.model):
            self.model.extend(bytes(start - len(self.model)))
        self.model[start : start + len(data)] = data

    def read(self) -> None:
        start, end = self._range()
        assert os.pread(self.fd, end - start, start) == self.model[start:end], f"read {start}:{end}"

    def write(self) -> None:
        start, end = self._range()
        data = self._data(end - start)
        assert os.pwrite(self.fd, data, start) == len(data)
        self._put(start, data)

    def append(self) -> None:
        data = self._data(min(3000, LONGEST - len(self.model)))
        fd = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        os.write(fd, data)
        os.close(fd)
        self.model += data

    def map_read(self) -> None:
        if self.model:
            with mmap.mmap(self.fd, 0, prot=mmap.PROT_READ) as view:
                start, end = self._range()
                assert view[start:end] == self.model[start:end], f"mapped read {start}:{end}"

    def map_write(self) -> None:
        if self.model:
            with mmap.mmap(self.fd, 0) as view:
                start, end = self._range()
                end = min(end, len(self.model))
                if start < end:
                    view[start:end] = data = self._data(end - start)
                    self.model[start:end] = data
                    if self.chance.random() < 0.3:
                        view.flush()

    def truncate(self) -> None:
        size = self.chance.randrange(max(1, len(self.model)))
        os.ftruncate(self.fd, size)
        del self.model[size:]

    def extend(self) -> None:
        size = self.chance.randrange(len(self.model), LONGEST + 1)
        os.truncate(self.path, size)  # by path, while it is open
        self.model.extend(bytes(size - len(self.model)))

    def sync(self) -> None:
        self.chance.choice((os.fsync, os.fdatasync))(self.fd)

    def reopen(self) -> None:
        os.close(self.fd)
        assert self.path.read_bytes() == self.model, "whole"
        self.fd = os.open(self.path, os.O_RDWR)

    def empty_cache(self) -> None:
        os.fsync(self.fd)
        os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_DONTNEED)


def main(path: str, model: str, seed: str, first: str, count: str) -> None:
    for number in range(int(first), int(first) + int(count)):
        if number == int(first):
            chance = random.Random(f"{seed}/{first}")  # noqa: S311  # nothing secret
            running = Exerciser(Path(path), Path(model), chance)
        try:
            running.step()
        except AssertionError as error:
            raise AssertionError(f"seed {seed}, operation {number}: {error}") from None
    os.close(running.fd)
    Path(model).write_bytes(running.model)


if __name__ == "__main__":
    main(*sys.argv[1:])
