"""A user id for each enclave that root launches, so that no other process of the machine has it.

- The ids are of a range that Debian's policy and systemd's leave to nobody.
- An id is held by a lock on a file, which the enclave's first process has open too: it is free when that has ended,
  whatever becomes of the launcher.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeGuard

from strongroom.errors import EnclaveError

_FIRST: Final = 2_000_000_000
_COUNT: Final = 1 << 16
_PLACE: Final = Path("/run/strongroom-users")


@dataclass(frozen=True)
class EnclaveUser:
    """An id that is held as long as `descriptor` is open in some process."""

    id: int
    descriptor: int

    def close(self) -> None:
        """This process needs it no longer."""
        os.close(self.descriptor)


def is_enclave_user(value: object) -> TypeGuard[int]:
    """Whether it is an id of that range."""
    return type(value) is int and _FIRST <= value < _FIRST + _COUNT


def allocate(place: Path = _PLACE) -> EnclaveUser:
    """The first id that no living enclave has; for root.

    Raises:
        EnclaveError: there is none, or `place` is not root's own.
    """
    import fcntl  # Linux has it

    place.mkdir(mode=0o700, exist_ok=True)
    status = place.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise EnclaveError(f"enclave users: {place} is not a directory that only this user can write to")
    for number in range(_FIRST, _FIRST + _COUNT):
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(place / str(number), flags, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            continue
        return EnclaveUser(number, descriptor)
    raise EnclaveError(f"enclave users: all {_COUNT} ids are in use")
