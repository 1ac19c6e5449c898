"""What one test's home remembers of measuring and compiling goes on to the next: each would take seconds to do it anew.

Digests of files and compiled code go, with the key that they are under. Owners, vendors and CASs are each home's own.
Tests of what is remembered begin with a home that remembers nothing.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DIGESTS, KEY, COMPILED = "digest-cache", "digest-cache.key", "compiled"


class Remembered:
    """Kept in a directory that the processes of one run of tests share, or one alone."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(exist_ok=True)
        self._directory = directory

    def give(self, home: Path) -> Path:
        """Have a new home remember it; the home."""
        with self._locked():
            self._give(home)
        return home

    def take(self, home: Path) -> None:
        """Keep what this home remembers instead, if that is more."""
        with self._locked():
            self._take(home)

    @contextmanager
    def grown(self, home: Path) -> Iterator[None]:
        """Have a new home remember it, and keep what is added within: who comes meanwhile waits for that."""
        with self._locked():
            self._give(home)
            yield
            self._take(home)

    def _give(self, home: Path) -> None:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        _link(self._directory / "kept", home)

    def _take(self, home: Path) -> None:
        kept, new = self._directory / "kept", self._directory / "new"
        if (home / KEY).exists() and (home / DIGESTS).exists() and _codes(home) > _codes(kept):
            shutil.rmtree(new, ignore_errors=True)  # of one that was stopped halfway
            new.mkdir()
            _link(home, new)
            shutil.rmtree(kept, ignore_errors=True)
            new.rename(kept)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        import fcntl  # which Windows lacks

        with (self._directory / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _link(source: Path, target: Path) -> None:
    """No file of these is ever written again once it has its name: a link is as good as a copy."""
    for name in (DIGESTS, KEY):
        if (source / name).exists():
            os.link(source / name, target / name)
    if (source / COMPILED).exists():
        ignored = shutil.ignore_patterns("lock", ".new")
        shutil.copytree(source / COMPILED, target / COMPILED, copy_function=os.link, ignore=ignored)


def _codes(home: Path) -> int:
    return sum(len(files) for _, _, files in os.walk(home / COMPILED))
