"""The log of the programs that were measured into a machine's register, kept for all launchers on it.

The firmware's own log is read-only, so what is measured after it is kept in a file beside, one event after the other
(`attest.parse.launched`). Nothing trusts the file: every use replays it to the register.

Invariants:

- One launcher at a time holds the file's lock, from reading the register on until it is extended or quoted.
- An event is written before its register is extended. If a launcher dies between the two, or while it writes, the next
  one finds an event more than the register has, or a part of one, and drops it.
- Events that the register has are never written again: a full disk costs the event that finds it full.
- A register that holds what the firmware left there was not extended since: what the file says is of an earlier boot,
  and is dropped.

The directory is `/run/strongroom`, root's, or what the environment's STRONGROOM_LAUNCHED names: all launchers on a
machine must share it, and it is best in memory, as the registers are.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from strongroom.attest.parse.event_log import Event, event_ends
from strongroom.attest.parse.launched import event_bytes
from strongroom.errors import EnclaveError, FormatError, UnsupportedPlatformError

VARIABLE = "STRONGROOM_LAUNCHED"
DIRECTORY = Path("/run/strongroom")
MAX_LOG = 128 * 1024
"""Of evidence, which goes through messages of limited size twice encoded."""


def log_directory() -> Path:
    """Where the logs are.

    Raises:
        UnsupportedPlatformError: nobody but root has the default.
    """
    if named := os.environ.get(VARIABLE):
        return Path(named)
    if os.geteuid() != 0:
        raise UnsupportedPlatformError(
            f"launcher: {DIRECTORY} is root's, and all launchers on this machine share one log there",
            hint=f"run as root, or name a directory in memory that they can share in {VARIABLE}",
        )
    return DIRECTORY


@dataclass
class LaunchLog:
    """The events after the firmware's, while their lock is held. Made by `locked`."""

    path: Path
    added: bytes = field(repr=False)
    _descriptor: int = field(repr=False)

    @classmethod
    @contextmanager
    def locked(cls, directory: Path, name: str) -> Iterator[LaunchLog]:
        """Open the log of one register and keep other launchers out meanwhile.

        Raises:
            EnclaveError: it cannot be opened or read.
        """
        import fcntl  # of Linux, and so is every machine

        path = directory / f"{name}.log"
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise EnclaveError(f"{path}: {(error.strerror or str(error)).lower()}") from None
        with os.fdopen(descriptor, "r+b", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            added = file.read(MAX_LOG + 1) or b""
            if len(added) > MAX_LOG:
                raise EnclaveError(f"{path}: more than {MAX_LOG} bytes", hint="restart the machine")
            yield cls(path, added, descriptor)

    def agree(self, firmware: bytes, value: bytes, replayed: Callable[[bytes], bytes]) -> None:
        """Make the events those that the register has.

        Args:
            firmware: the log before them.
            value: what the register holds.
            replayed: what a log comes to for that register; may raise FormatError.

        Raises:
            EnclaveError: the register holds something else: somebody measured something and did not log it here.
        """
        if replayed(firmware) == value:
            self._keep(0)
            return
        ends = self._ends(firmware)
        for end in (*ends[-1:], *ends[-2:-1]):
            if replayed(firmware + self.added[:end]) == value:
                self._keep(end)
                return
        raise EnclaveError(
            f"launcher: the register for programs is not what {self.path} says",
            hint="something else was measured there, or another launcher keeps its log elsewhere: restart the machine",
        )

    def _ends(self, firmware: bytes) -> list[int]:
        """Where each whole event ends. A part of one may follow, of a launcher that died while it wrote."""
        ends: list[int] = []
        before = len(firmware)
        with suppress(FormatError):
            for end in event_ends(firmware + self.added):
                ends += [end - before] if end > before else []
        return ends

    def add(self, event: Event) -> None:
        """Write an event that is about to be measured.

        Raises:
            EnclaveError: there is no room, in the file system or in evidence.
        """
        raw = event_bytes(event)
        if len(self.added) + len(raw) > MAX_LOG:
            raise EnclaveError(
                f"launcher: too many programs for one log of {MAX_LOG} bytes since the machine started",
                hint="registers only grow: restart the machine",
            )
        try:
            written = os.pwrite(self._descriptor, raw, len(self.added))
            if written != len(raw):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            with suppress(OSError):  # else the next launcher drops it
                os.ftruncate(self._descriptor, len(self.added))
            raise self._failed(error) from None
        self.added += raw

    def _keep(self, size: int) -> None:
        """Drop what follows."""
        if size == len(self.added):
            return
        try:
            os.ftruncate(self._descriptor, size)
        except OSError as error:
            raise self._failed(error) from None
        self.added = self.added[:size]

    def _failed(self, error: OSError) -> EnclaveError:
        return EnclaveError(f"{self.path}: {(error.strerror or str(error)).lower()}")
