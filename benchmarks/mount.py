"""A mounted vault beside gocryptfs and the plain disk.

- Three directories on one disk: plain, gocryptfs's, and a vault mounted by `strongroom mount`, with its key and anchor
  files, as a person would. The same calls in all of them, from one process, in turns. Each encrypts with AES-256-GCM;
  Strongroom besides authenticates the tree and the version, and one `fsync` of it survives a power cut as theirs does.
- For a first read all caches of the kernel are dropped where that is permitted (root); else the pages of the files read
  and of every file below, by `posix_fadvise`.
- As root, `gocryptfs` and Strongroom serve root. Another user is measured by starting the whole as that user, for
  example ``runuser -u nobody -- env HOME=/tmp .venv/bin/python -m benchmarks mount``; the kernel then reads ahead less,
  for which the goals make allowance.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import peers
from benchmarks.harness import Bench, Goal

_ROOT = os.name == "posix" and os.getuid() == 0
_FASTER = 1.5 if _ROOT else 1.0
_PIECE = 1 << 20

WRITE = "sequential write / gocryptfs"
FIRST = "first read / gocryptfs"
AGAIN = "re-read / gocryptfs"
NATIVE = "re-read / plain disk"
CREATE = "create small files / gocryptfs"
STAT = "stat small files / gocryptfs"
RENAME = "rename small files / gocryptfs"
SQLITE = "SQLite transactions, rollback journal / gocryptfs"
SQLITE_WAL = "SQLite transactions, WAL / gocryptfs"

GOALS: Sequence[Goal] = (
    Goal(WRITE, _FASTER, "x", "at least"),
    Goal(FIRST, _FASTER, "x", "at least"),
    Goal(AGAIN, _FASTER, "x", "at least"),
    Goal(NATIVE, 0.75, "x", "at least"),
    Goal(CREATE, 1, "x", "at least"),
    Goal(STAT, 1, "x", "at least"),
    Goal(RENAME, 1, "x", "at least"),
    Goal(SQLITE, 1, "x", "at least"),
    Goal(SQLITE_WAL, 1, "x", "at least"),
)


def measure(bench: Bench) -> None:
    """Measure every goal that `bench` wants."""
    with _places() as (plain, theirs, ours):
        sizes = _Sizes(64, 2000, 50) if bench.quick else _Sizes(256, 10_000, 200)
        peer = f"gocryptfs {_version()}"
        runs: dict[str, tuple[_Place, str, Callable[[_Place, _Sizes], float], str]] = {
            WRITE: (theirs, peer, _write, "MiB/s"),
            FIRST: (theirs, peer, _first_read, "MiB/s"),
            AGAIN: (theirs, peer, _read, "MiB/s"),
            NATIVE: (plain, "plain disk", _read, "MiB/s"),
            CREATE: (theirs, peer, _create, "files/s"),
            STAT: (theirs, peer, _stat, "files/s"),
            RENAME: (theirs, peer, _rename, "files/s"),
            SQLITE: (theirs, peer, _sqlite("delete"), "/s"),
            SQLITE_WAL: (theirs, peer, _sqlite("wal"), "/s"),
        }
        _write(plain, sizes)
        for name, (other, called, run, unit) in runs.items():
            bench.compare(
                name,
                lambda run=run: run(ours, sizes),  # type: ignore[misc]
                lambda run=run, other=other: run(other, sizes),  # type: ignore[misc]
                peer_name=called,
                unit=unit,
                rounds=5,
            )


@dataclass(frozen=True)
class _Sizes:
    mebibytes: int
    files: int
    transactions: int


@dataclass(frozen=True)
class _Place:
    """A directory to work in, and the one that holds its bytes."""

    path: Path
    below: Path


@contextlib.contextmanager
def _places() -> Iterator[tuple[_Place, _Place, _Place]]:
    """The plain directory, gocryptfs's mount and Strongroom's."""
    if not shutil.which("gocryptfs"):
        raise peers.UnavailableError("gocryptfs is not installed")
    with tempfile.TemporaryDirectory(prefix="strongroom-mount-") as name:
        base = Path(name)
        for each in ("plain", "sealed", "theirs", "ours"):
            (base / each).mkdir()
        (base / "password").write_text("benchmark\n")
        password = ["-q", "-passfile", str(base / "password")]
        _run("gocryptfs", "-init", *password, base / "sealed")
        _run("gocryptfs", *password, base / "sealed", base / "theirs")
        try:
            _strongroom("mount", "--create", base / "ours.vault", base / "ours")
            try:
                yield (
                    _Place(base / "plain", base / "plain"),
                    _Place(base / "theirs", base / "sealed"),
                    _Place(base / "ours", base / "ours.vault"),
                )
            finally:
                _strongroom("unmount", base / "ours")
        finally:
            _run("fusermount3", "-u", base / "theirs")


def _run(*command: object) -> None:
    subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _strongroom(*arguments: object) -> None:
    _run(sys.executable, "-m", "strongroom", *arguments)


def _version() -> str:
    said = subprocess.run(["gocryptfs", "-version"], check=True, capture_output=True, text=True).stdout
    return said.split(";")[0].removeprefix("gocryptfs").strip()


# Large files.


def _write(place: _Place, sizes: _Sizes) -> float:
    """A new file, with its fsync."""
    path = place.path / "large"
    path.unlink(missing_ok=True)
    data = os.urandom(_PIECE)
    began = time.perf_counter()
    with path.open("wb", buffering=0) as file:
        for _ in range(sizes.mebibytes):
            file.write(data)
        os.fsync(file.fileno())
    return sizes.mebibytes / (time.perf_counter() - began)


def _read(place: _Place, sizes: _Sizes) -> float:
    buffer = bytearray(_PIECE)
    began = time.perf_counter()
    with (place.path / "large").open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
    return sizes.mebibytes / (time.perf_counter() - began)


def _first_read(place: _Place, sizes: _Sizes) -> float:
    os.sync()
    if _ROOT:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    for path in (place.path / "large", *(path for path in place.below.rglob("*") if path.is_file())):
        fd = os.open(path, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)
    return _read(place, sizes)


# Small files.


def _create(place: _Place, sizes: _Sizes) -> float:
    """Files of 1 KiB in a new directory."""
    folder = place.path / "small"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    data = os.urandom(1024)
    paths = [folder / str(number) for number in range(sizes.files)]
    began = time.perf_counter()
    for path in paths:
        with path.open("wb", buffering=0) as file:
            file.write(data)
    return sizes.files / (time.perf_counter() - began)


def _stat(place: _Place, sizes: _Sizes) -> float:
    """All of them, of which the kernel remembers nothing if that can be had."""
    paths = sorted((place.path / "small").iterdir())
    if _ROOT:
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text("2")
    began = time.perf_counter()
    for path in paths:
        path.stat()
    return len(paths) / (time.perf_counter() - began)


def _rename(place: _Place, sizes: _Sizes) -> float:
    paths = [(path, path.with_name(path.name + "x")) for path in (place.path / "small").iterdir()]
    began = time.perf_counter()
    for old, new in paths:
        old.rename(new)
    return len(paths) / (time.perf_counter() - began)


# SQLite.


def _sqlite(journal: str) -> Callable[[_Place, _Sizes], float]:
    def run(place: _Place, sizes: _Sizes) -> float:
        """Transactions of one row each, durable one by one."""
        path = place.path / f"{journal}.db"
        path.unlink(missing_ok=True)
        connection = sqlite3.connect(path, isolation_level=None)
        try:
            connection.execute(f"pragma journal_mode={journal}")
            connection.execute("pragma synchronous=full")
            connection.execute("create table t (a, b)")
            began = time.perf_counter()
            for number in range(sizes.transactions):
                connection.execute("insert into t values (?, ?)", (number, "x" * 100))
            return sizes.transactions / (time.perf_counter() - began)
        finally:
            connection.close()

    return run
