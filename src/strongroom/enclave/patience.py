"""Waits for a CAS that does not answer: what an enclave asks of it is as good in a minute as it is now.

- It is waited for as long as the enclave's lease counts, and no longer: afterwards the enclave is nobody's. A replica
  that comes has no lease yet, and waits for `NEWCOMER_SECONDS`; other enclaves do not wait before they have one.
- What the CAS answers is an answer: a refusal ends the waiting, and so does somebody else in its place.
- A signal that would end the program gives up what waits.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Final, TypeVar

from strongroom.errors import CasUnreachableError, ChannelError, PeerIdentityError

NEWCOMER_SECONDS: Final = 120.0
_AGAIN = 1.0
_GIVE_UP: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Result = TypeVar("Result")


def until_answered(
    ask: Callable[[], Result], *, left: Callable[[], float], tell: Callable[[str], None], lost: str = ""
) -> Result:
    """What `ask` gives, which asks a CAS: again and again where nothing answers.

    Args:
        left: the seconds for which that is worth while yet.
        tell: is given a line when it begins to wait, and when there is an answer.
        lost: what is lost if there is none; empty for nothing.

    Raises:
        CasUnreachableError, ChannelError: nothing has answered until nothing was left, or until a signal.
    """
    waits = False
    with ExitStack() as signals:
        ended: list[int] = []
        while True:
            try:
                found = ask()
            except (CasUnreachableError, ChannelError) as error:
                seconds = left()
                if isinstance(error, PeerIdentityError) or seconds <= 0 or ended:
                    if waits and lost:
                        error.hint = f"{lost} is lost"
                    raise
                if not waits:
                    waits, ended = True, signals.enter_context(asked_to_end())
                    stake = f"; {lost} by then is lost, and so if the run is ended (Ctrl-C, SIGTERM)" if lost else ""
                    tell(f"{error.message}: waiting for the CAS, for {seconds:.0f} seconds at most{stake}")
                time.sleep(min(_AGAIN, seconds))
                continue
            if waits:
                tell("the CAS answers again")
            return found


@contextmanager
def asked_to_end() -> Iterator[list[int]]:
    """The signals that have come by now, of those that would have ended the program; in the main thread alone."""
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    before = {number: signal.signal(number, note) for number in _GIVE_UP}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
