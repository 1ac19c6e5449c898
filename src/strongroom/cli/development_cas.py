"""One development CAS for all verbs that run at the same time in a home, whichever of them ends first.

The first verb has the CAS inside its process and holds a lock meanwhile. The others use it, and wait for the lock:
when its process ends, however it ends, one of them gets the lock and starts the CAS anew from its state, at the same
address. What asks the CAS in between waits for that (`returning`).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from strongroom.cas.client.address import ADDRESS_FILE, CasAddress, returning, split_address
from strongroom.cas.client.owner import OwnerClient
from strongroom.cas.service.server import running_cas
from strongroom.cli import output
from strongroom.cli.locks import locked, unlock
from strongroom.errors import CasError, FormatError, PortInUseError, StrongroomError

_LOOK_EVERY: Final = 0.1
_PATIENCE: Final = 30.0  # seconds, for one that starts or ends


@contextmanager
def development_cas(directory: Path, say: Callable[[str], None] = output.note) -> Iterator[CasAddress]:
    """The CAS with its state in `directory`: the one that runs, or one inside this process.

    Args:
        say: is told when one is made, or taken over.

    Raises:
        CasError: another process has had it for half a minute, and nothing answers.
    """
    directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)
    lock = os.open(directory.with_name(directory.name + ".lock"), flags, 0o600)
    try:
        end = time.monotonic() + _PATIENCE
        while not (mine := locked(lock)) and (running := _running(directory)) is None:
            if time.monotonic() > end:
                raise CasError(
                    "CAS: another process of this home has it, and nothing answers",
                    hint="end that process: it is a `strongroom` of this user's that hangs",
                )
            time.sleep(_LOOK_EVERY)
        if not mine:
            assert running is not None  # noqa: S101  # else the loop goes on
            with _following(lock, directory, running, say):
                yield running
        elif (running := _running(directory)) is not None:  # that of `strongroom cas start`, which somebody looks after
            unlock(lock)
            yield running
        else:
            if not (directory / ADDRESS_FILE).exists():
                say(f"makes this user's development CAS, in {directory}")
            with _started(directory) as address:
                yield address
    finally:
        os.close(lock)


@contextmanager
def _started(directory: Path) -> Iterator[CasAddress]:
    """A CAS in this process, at the address of the last one if that is free: others may still ask there."""
    try:
        port = split_address(CasAddress.load(directory / ADDRESS_FILE).url)[1]
        service = running_cas(directory, port=port)
        address = service.__enter__()
    except (OSError, FormatError, PortInUseError):
        service = running_cas(directory)
        address = service.__enter__()
    try:
        yield address
    finally:
        service.__exit__(None, None, None)


@contextmanager
def _following(lock: int, directory: Path, running: CasAddress, say: Callable[[str], None]) -> Iterator[None]:
    """Meanwhile, start that CAS anew in this process if the one that has it ends."""
    over = threading.Event()

    def follow() -> None:
        with returning(running.url):
            while not locked(lock):
                if over.wait(_LOOK_EVERY):
                    return
            try:
                with running_cas(directory, port=split_address(running.url)[1]) as address:
                    if address != running:
                        raise CasError(f"CAS: got {address.cas_root}, wanted {running.cas_root}")
                    say("the process that had this user's development CAS has ended; this one has it now")
                    over.wait()
            except PortInUseError:
                pass  # `strongroom cas start` has it
            except (OSError, StrongroomError) as error:
                output.warn(f"the process that had this user's development CAS has ended, and here: {error}")
            finally:
                unlock(lock)

    thread = threading.Thread(target=follow, name="development-cas", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _running(directory: Path) -> CasAddress | None:
    try:
        address = CasAddress.load(directory / ADDRESS_FILE)
        with OwnerClient(address.url, cas_root=address.cas_root) as client:
            client.describe()
    except (OSError, StrongroomError):
        return None
    return address
