"""All three parties in one process, each a thread, for tests and notebooks.

This is one trust domain: the process holds every share and every key. Nothing is secret from whoever runs it.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from strongroom.channel import Channel
from strongroom.errors import ChannelError, MpcError
from strongroom.mpc.beside import Beside
from strongroom.mpc.party import Party
from strongroom.mpc.peer import NAMES, Observer
from strongroom.mpc.ring import Settings

T = TypeVar("T")


def run_local(
    program: Callable[[Party], T], settings: Settings | None = None, *, observer: Observer | None = None
) -> list[T]:
    """Run a program as all three parties, each in a thread, and return what each returned: P0, P1, D.

    Raises:
        BaseException: what a party raised; if several did, rather one that is no consequence of another's end.
    """
    results: list[T] = []
    errors: list[BaseException] = []
    for outcome in run_each([program] * 3, [settings or Settings()] * 3, observer=observer):
        if isinstance(outcome, Raised):
            errors.append(outcome.error)
        else:
            results.append(outcome)
    if errors:
        raise min(errors, key=_follows)
    return results


class Raised:
    """How a party ended that did not return."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


def run_each(
    programs: Sequence[Callable[[Party], T]], settings: Sequence[Settings], *, observer: Observer | None = None
) -> list[T | Raised]:
    """Run three programs with three settings, which should be the same, and return how each party ended."""
    channels: list[dict[int, Channel]] = [{}, {}, {}]
    for low, high in ((0, 1), (0, 2), (1, 2)):
        left, right = socket.socketpair()
        channels[low][high] = Channel(left, NAMES[high], seconds=settings[low].seconds)
        channels[high][low] = Channel(right, NAMES[low], seconds=settings[high].seconds)
    outcomes: list[Any] = [None, None, None]
    beside = Beside()

    def run(rank: int) -> None:
        try:
            with Party(rank, channels[rank], settings[rank], observer=observer) as party:
                party.beside = beside
                outcomes[rank] = programs[rank](party)
        except BaseException as error:
            outcomes[rank] = Raised(error)

    threads = [threading.Thread(target=run, args=(rank,), name=NAMES[rank], daemon=True) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def _follows(error: BaseException) -> int:
    """0 of a cause; more the surer it is that another party's end caused it, and the less it says."""
    if isinstance(error, MpcError) and ": ended: " in error.message:
        return 2
    return int(isinstance(error, ChannelError))
