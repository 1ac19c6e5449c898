"""Waits for room on the host's disk, where what a program has left does not fit: it lies in memory until it is sealed.

- Whether to wait is the host's to say: it can end the enclave at any time.
- A signal that would end the program gives its results up.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from strongroom.enclave.boot import Booted
from strongroom.enclave.config import VAULTS_DIRECTORY
from strongroom.enclave.patience import asked_to_end

FULL: Final = (errno.ENOSPC, errno.EDQUOT)
_LOOK, _LOOKS = 0.2, 150  # seconds, and how often before it is tried anyway: a quota does not show
_ENOUGH: Final = 1 << 20

Result = TypeVar("Result")


def until_room(booted: Booted, name: str, seal: Callable[[], Result], size: Callable[[], int]) -> Result:
    """Seal something; where the disk is full, again and again until there is room.

    Args:
        name: of the vault or sealed file.
        size: bytes that are to be sealed, at most.

    Raises:
        OSError: it failed, or the disk is full and nobody waits.
    """
    told = False
    while True:
        try:
            return seal()
        except OSError as error:
            if error.errno not in FULL or booted.layout.get("wait") is not True:
                raise
            place = _place(booted, name)
            full = _free(place)  # before it is told: room may be made at once
            with asked_to_end() as ended:
                if not told:
                    _tell(booted, name, error, size())
                told = True
                if not _waited(place, full, ended):
                    raise


def _tell(booted: Booted, name: str, error: OSError, size: int) -> None:
    why = os.strerror(error.errno or 0).lower()
    text = f"vault {name}: {why} where it lies: up to {size:,} bytes wait in memory until there is; "
    booted.control.event("notice", text=f"{text}end the run (Ctrl-C, SIGTERM) to give them up")


def _place(booted: Booted, name: str) -> str:
    return f"{VAULTS_DIRECTORY}/{name}" if booted.sandboxed else str(booted.layout.get("vaults", {}).get(name))


def _waited(place: str, before: int, ended: Sequence[int]) -> bool:
    """Whether to try again, once there is more room than before, or some time has gone by; not if a signal has come."""
    for _ in range(_LOOKS):
        if ended:
            return False
        if _free(place) >= before + _ENOUGH:
            break
        time.sleep(_LOOK)
    return True


def _free(place: str) -> int:
    try:
        told = os.statvfs(place)
    except OSError:
        return 0
    return told.f_bavail * told.f_frsize
