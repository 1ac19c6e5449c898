"""Endorsements that were fetched, kept in a directory until their dates end.

Rules:

- Nothing in it is trusted: `verify` checks every signature and date, so whoever writes here can only make it fail.
- What cannot be read, or is not what its name says, is as if it were not there, and is replaced.
- A file replaces another whole. Any number of processes use one directory; for one endorsement one of them fetches.
- What a service does not have is not remembered. While an endorsement holds, its service is not asked again for a newer
  one within ten minutes of a failure.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from strongroom.attest.endorsements.endorsement import MAX_BODY, MAX_CHAIN_TEXT, Endorsement
from strongroom.crypto import digest
from strongroom.errors import FormatError, UsageError

if sys.platform != "win32":
    import fcntl

_MAX_FILE = 2 * (MAX_BODY + MAX_CHAIN_TEXT)
_SUFFIX = ".json"
# Seconds until a service that failed is asked again for a newer one of what still holds.
_TRY_AGAIN = 10 * 60
# Somebody else's fetch, with its retries, is waited for so long; a lock saves requests, and nothing rests on it.
_PATIENCE, _LOOK_EVERY = 90.0, 0.05


class Cache:
    """The cache in a directory, which is made on first use (mode 0700, files 0600).

    Args:
        directory: only this user's.
        sleep: waits that many seconds; `time.sleep` as a rule.
    """

    def __init__(self, directory: Path, *, sleep: Callable[[float], object] = time.sleep) -> None:
        self.directory = directory
        self._sleep = sleep
        self._failed: dict[str, int] = {}

    @classmethod
    def default_directory(cls) -> Path:
        """``strongroom/endorsements`` below the user's cache directory (XDG base directory specification)."""
        if sys.platform == "win32":
            base = Path(os.environ.get("LOCALAPPDATA") or Path.home())
        else:
            base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        return base / "strongroom" / "endorsements"

    def note_failure(self, name: str, now: int) -> None:
        """Remember, while this object lives, that a newer one could not be fetched at `now`."""
        self._failed[name] = now

    def has_failed(self, name: str, now: int) -> bool:
        """Whether that was a short while ago, so that trying again would only make somebody wait."""
        return 0 <= now - self._failed.get(name, -_TRY_AGAIN) < _TRY_AGAIN

    def get(self, name: str) -> Endorsement | None:
        """The endorsement of that name, whatever its dates say; None if there is none that can be read."""
        return self._read(self._path(name), name)

    def put(self, endorsement: Endorsement) -> None:
        """Keep it, in place of another of its name.

        Raises:
            UsageError: the directory cannot be written to.
        """
        document = {"name": endorsement.name, **endorsement.to_wire()}
        self._make()
        path = self._path(endorsement.name)
        try:
            fd, temporary = tempfile.mkstemp(prefix=".", suffix=".new", dir=self.directory)  # mode 0600
            try:
                with os.fdopen(fd, "wb") as file:
                    file.write(json.dumps(document).encode())
                Path(temporary).replace(path)
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise
        except OSError as error:
            raise self._unusable(error) from None

    def entries(self) -> Iterator[Endorsement]:
        """All that can be read, by name."""
        found = []
        for path in self.directory.glob(f"*{_SUFFIX}") if self.directory.is_dir() else ():
            entry = self._read(path, None)
            if entry and self._path(entry.name) == path:
                found.append(entry)
        return iter(sorted(found, key=lambda each: each.name))

    def prune(self, now: int) -> int:
        """Remove what no longer holds at `now`, or cannot be read; how many files that were. A directory is left alone.

        Raises:
            UsageError: the cache's directory cannot be written to.
        """
        removed = 0
        for path in self.directory.glob(f"*{_SUFFIX}") if self.directory.is_dir() else ():
            entry = self._read(path, None)
            if entry is None or self._path(entry.name) != path or now > entry.valid[1]:
                if path.is_dir() and not path.is_symlink():
                    continue
                try:
                    path.unlink(missing_ok=True)
                except OSError as error:
                    raise self._unusable(error) from None
                removed += 1
        return removed

    @contextlib.contextmanager
    def fetching(self, name: str) -> Iterator[None]:
        """While this is held, nobody else's `fetching` of that name goes on, in this process or in another.

        Whoever has waited looks into the cache again. On Windows, and after 90 seconds, it does not wait: the same is
        then fetched twice.

        Raises:
            UsageError: the directory cannot be written to.
        """
        self._make()
        if sys.platform == "win32":
            yield
            return
        # A few files for all names: names come from evidence, which anybody can make up.
        path = self.directory / f"{digest(name.encode()).hex()[:2]}.lock"
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise self._unusable(error) from None
        try:
            for _ in range(int(_PATIENCE / _LOOK_EVERY)):
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    self._sleep(_LOOK_EVERY)
                except OSError:  # a file system without locks
                    break
            yield
        finally:
            os.close(fd)

    def _make(self) -> None:
        try:
            self.directory.parent.mkdir(parents=True, exist_ok=True)
            self.directory.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise self._unusable(error) from None

    def _unusable(self, error: OSError) -> UsageError:
        return UsageError(
            f"cache of endorsements, {self.directory}: {(error.strerror or str(error)).lower()}",
            hint="name another directory for it: --cache DIR",
        )

    def _path(self, name: str) -> Path:
        return self.directory / f"{digest(name.encode()).hex()}{_SUFFIX}"

    def _read(self, path: Path, name: str | None) -> Endorsement | None:
        try:
            fd = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
            with os.fdopen(fd, "rb") as file:
                raw = file.read(_MAX_FILE + 1)
            document = json.loads(raw) if len(raw) <= _MAX_FILE else None
            if not isinstance(document, dict) or not isinstance(document.get("name"), str):
                return None
            found = document.pop("name")
            return Endorsement.from_wire(found, document) if name in (None, found) else None
        except (OSError, ValueError, RecursionError, FormatError):
            return None
