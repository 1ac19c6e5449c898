"""Processes that read files, one for each processor: large ones first, so that no one begins one when all are done."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Self

from strongroom.enclave.reader import CODE, COMPILED, DIGESTS, FAILED, JOB, RECORD

WORTHWHILE = 1 << 26  # bytes to read, below which starting processes takes longer
_LARGE = 1 << 20
_BATCH, _SOURCES = 256, 8
_MOST = 16
_FAILED = RECORD.unpack(FAILED)


def processors() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def batches(sizes: Mapping[int, int], most: int) -> list[list[int]]:
    """What to read in one go, of files by their sizes: the large ones alone and first."""
    large = sorted((i for i, size in sizes.items() if size >= _LARGE), key=lambda i: -sizes[i])
    small = [i for i, size in sizes.items() if size < _LARGE]
    return [[i] for i in large] + [small[i : i + most] for i in range(0, len(small), most)]


class Readers:
    """Processes that read what they are asked to, once. A context manager, which ends them, whatever they do.

    Raises:
        OSError: none can be started here.
    """

    def __init__(self) -> None:
        if not hasattr(os, "memfd_create"):
            raise OSError("no files in memory")
        self._all: list[subprocess.Popen[bytes]] = []
        self._closed = ExitStack()
        try:
            self._paths, self._records, self._sources = (self._file() for _ in range(3))
            self._codes = [self._file() for _ in range(min(processors(), _MOST))]
            taken, jobs = os.pipe()
            self._jobs = self._closed.enter_context(io.FileIO(jobs, "wb"))
            try:
                for code in self._codes:
                    self._all.append(self._started(taken, code))
            finally:
                os.close(taken)
        except BaseException:
            self.close()
            raise

    def _file(self) -> int:
        descriptor = os.memfd_create("reading")
        self._closed.callback(os.close, descriptor)
        return descriptor

    def _started(self, jobs: int, code: int) -> subprocess.Popen[bytes]:
        reader = Path(__file__).with_name("reader.py")
        files = (self._paths, self._records, self._sources, code)
        return subprocess.Popen(  # noqa: S603  # Strongroom's own file
            [sys.executable, "-I", "-S", "-B", str(reader), *map(str, files)],
            stdin=jobs,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=files,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def stop(self) -> None:
        """End the processes: what they have not read is left out."""
        for one in self._all:
            one.kill()

    def close(self) -> None:
        """End the processes, and forget what they have read."""
        self.stop()
        for one in self._all:
            one.wait()
        self._closed.close()

    def read(
        self, paths: Sequence[str], sizes: Mapping[int, int], sources: Callable[[], Sequence[str]] = tuple
    ) -> tuple[dict[int, tuple[bytes, bytes]], dict[str, tuple[bytes, bytes]]]:
        """Of files by their places in `paths`: what the kernel says of each, and SHA-256; of `sources`: as `compiled`.

        What could not be read, or changed meanwhile, is left out.
        """
        each = batches(sizes, _BATCH)
        order = [index for batch in each for index in batch]
        _put(self._paths, [paths[index] for index in order])
        os.ftruncate(self._records, len(order) * RECORD.size)
        names: Sequence[str] = ()
        with suppress(BrokenPipeError):  # they have ended
            self._ask(DIGESTS, map(len, each))
            names = sources()
            _put(self._sources, names)
            self._ask(CODE, (min(_SOURCES, len(names) - first) for first in range(0, len(names), _SOURCES)))
        self._jobs.close()
        for one in self._all:
            one.wait()
        digests = zip(order, RECORD.iter_unpack(_content(self._records)), strict=True)
        code = {names[place]: made for kept in self._codes for place, *made in _codes(_content(kept))}
        return (
            {index: found for index, found in digests if found != _FAILED},
            {name: (source, made) for name, (source, made) in code.items() if made},
        )

    def _ask(self, kind: int, counts: Iterable[int]) -> None:
        first = 0
        for count in counts:
            self._jobs.write(JOB.pack(kind, first, count, 0))
            first += count


def _put(descriptor: int, paths: Sequence[str]) -> None:
    with open(descriptor, "wb", closefd=False) as file:
        file.write(os.fsencode("\0".join(paths)))


def _content(descriptor: int) -> bytes:
    with open(descriptor, "rb", closefd=False) as file:
        file.seek(0)
        return file.read()


def _codes(raw: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """As far as a process came with it."""
    at = 0
    while at + COMPILED.size <= len(raw):
        place, source, size = COMPILED.unpack_from(raw, at)
        at += COMPILED.size
        if at + size <= len(raw):
            yield place, source, raw[at : at + size]
        at += size
