"""The directories that a set of paths implies."""

from __future__ import annotations

from collections.abc import Iterable

from strongroom.errors import UsageError
from strongroom.vault.metadata import check_path


class Names:
    """Which names each directory holds. A directory is there as long as something is in it; the top, "", always is."""

    def __init__(self, paths: Iterable[str] = ()) -> None:
        self._below: dict[str, set[str]] = {"": set()}
        for path in paths:
            self.add(path)

    def is_dir(self, path: str) -> bool:
        return path in self._below

    def list(self, path: str) -> list[str]:
        """The names in directory `path`, sorted; KeyError if it is none."""
        return sorted(self._below[path])

    def add(self, path: str) -> None:
        """Add a file and the directories above it."""
        while path:
            above, _, name = path.rpartition("/")
            names = self._below.setdefault(above, set())
            if name in names:
                return
            names.add(name)
            path = above

    def remove(self, path: str) -> None:
        """Remove a file, and every directory above it that is empty then."""
        while path:
            above, _, name = path.rpartition("/")
            self._below[above].discard(name)
            if not above or self._below[above]:
                return
            del self._below[above]
            path = above

    def check_target(self, path: str) -> None:
        """Raises UsageError unless `path` may become a file, or is one already."""
        check_path(path)
        if self.is_dir(path):
            raise UsageError(f"path in vault: {path!a} is a directory")
        above = path.rpartition("/")[0]
        while above and not self.is_dir(above):
            up, _, name = above.rpartition("/")
            if name in self._below.get(up, ()):
                raise UsageError(f"path in vault: {path!a}, but {above!a} is a file")
            above = up
