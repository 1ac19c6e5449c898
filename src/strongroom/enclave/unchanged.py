"""Whether what was measured is still what it was, when a program has ended and its results are about to be kept.

The files of an environment are measured where they lie, and imported as long as the program runs. Rules:

- What the kernel said of each (device, inode, size, times) when it was measured is held against what it says now, and
  the directories are walked again: a file that is another one, is gone or is new is a change.
- Where only the time of the last change of anything (ctime) is another, as after a new hard link or mode, the file is
  read again: with the digest that was measured, it counts as the same.
- It finds what somebody did to files by the system's calls. It finds nothing of what was written to the disk below the
  file system, nor of a file that was changed and put back with its times.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from strongroom.enclave.digests import Digests, Stamp
from strongroom.enclave.reader import IDENTITY
from strongroom.errors import EnclaveError, MeasurementError

_NAMED = 3


@dataclass(frozen=True)
class Seen:
    """The files of some directories, and others, as they were when they were measured.

    Attributes:
        files: gives the paths of all files that there are now.
        paths: of those that there were.
        told: what the kernel said of each regular one of them.
        known: tells the digests of files.
    """

    files: Callable[[], Sequence[str]]
    paths: frozenset[str]
    told: Mapping[str, bytes]
    known: Digests = field(repr=False)

    @classmethod
    def of(cls, paths: Sequence[str], stamp: Stamp, known: Digests) -> Seen:
        """Of these files alone, which may be there or not."""
        return cls(lambda: paths, frozenset(paths), stamp.seen, known)

    def changes(self) -> list[str]:
        """What is another now: each with its path and how, in the order of the paths."""
        now = self.files()
        stamp = self.known.stamp(now).seen
        found = {path: "is new" for path in now if path not in self.paths}
        found |= dict.fromkeys(self.paths - set(now), "is gone")
        touched: list[str] = []
        for path, told in self.told.items():
            if path in found or stamp.get(path) == told:
                continue
            if path not in stamp:
                found[path] = "is gone"
            elif _but_for_ctime(stamp[path]) == _but_for_ctime(told):
                touched.append(path)
            else:
                found[path] = "was changed"
        found |= {path: "was changed" for path in stamp.keys() - self.told.keys() if path in self.paths}
        with suppress(EnclaveError):
            self.known.of(touched)  # at once, for all processors
        found |= {path: "was changed" for path in touched if not self._as_measured(path)}
        return [f"{path} {found[path]}" for path in sorted(found)]

    def _as_measured(self, path: str) -> bool:
        before = self.known.remembered(self.told[path])
        try:
            return before is not None and self.known.of([path])[0].sha256 == before
        except EnclaveError:  # it cannot be read, or changes just now
            return False


def check_unchanged(seen: Sequence[Seen]) -> None:
    """Raises MeasurementError, with the names of files, unless all of it is as it was."""
    changed = [each for one in seen for each in one.changes()]
    if changed:
        more = f", and {len(changed) - _NAMED} more" if len(changed) > _NAMED else ""
        raise MeasurementError(
            f"environment: {', '.join(changed[:_NAMED])}{more} while the program ran, so that it may have run what "
            "was not measured: nothing of this run is sealed, and its vaults are as they were",
            hint="leave the environment and Strongroom's own files as they are while programs run, and run it again",
        )


def _but_for_ctime(told: bytes) -> tuple[int, ...]:
    return IDENTITY.unpack(told)[:-1]
