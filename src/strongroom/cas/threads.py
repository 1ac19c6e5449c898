"""Threads of a CAS and of its enclaves: what is done again and again, and what the event loop waits for with patience.

Nothing that goes wrong in one ends it in silence; and none that hangs, in a host, a TPM or a vendor's service, keeps
its process from ending.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from strongroom.errors import CasError, StrongroomError, TooManyRequestsError

if TYPE_CHECKING:
    import asyncio  # an enclave has threads alone

AT_ONCE = 4
# Seconds, with the wait for a free thread; an enclave waits 30 for its answer.
PATIENCE = 20.0
_END_SECONDS = 5.0  # that the end of a thread is waited for
_LONGEST = 3600.0  # that a thread waits, which cannot wait for ever
_log = logging.getLogger("strongroom.cas")
T = TypeVar("T")


class Repeating:
    """A thread that takes a step again and again, from `start` to `close`.

    Args:
        name: for the log.
        step: tells how many seconds to wait before the next one.
        first: seconds to wait before the first.
        retry: seconds to wait after one that raised, which is written to the log.
    """

    def __init__(self, name: str, step: Callable[[], float], *, first: float = 0.0, retry: float) -> None:
        self._name, self._step, self._pause, self._retry = name, step, first, retry
        self._wake = threading.Event()
        self._ended = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """Have it take a step now."""
        self._wake.set()

    def close(self) -> None:
        """End it after the step that it is in. One that hangs is left behind."""
        self._ended = True
        self._wake.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(_END_SECONDS)

    def _run(self) -> None:
        while True:
            self._wake.wait(min(max(0.0, self._pause), _LONGEST))
            self._wake.clear()
            if self._ended:
                return
            try:
                self._pause = self._step()
            except StrongroomError as error:
                _log.error("%s: %s", self._name, error.message)
                self._pause = self._retry
            except Exception:
                _log.exception("%s: failed", self._name)
                self._pause = self._retry


class Patience:
    """Calls that block, made for the event loop, so many at once and each waited for so long.

    Args:
        what: is being had, for errors.
        waiting: how many may be waited for, with those that are made; None for no limit.
        of_one: how many of them for one asker; None for no limit.
        hint: of the error of what was not had in time.
    """

    def __init__(
        self,
        what: str,
        *,
        at_once: int = AT_ONCE,
        waiting: int | None = None,
        of_one: int | None = None,
        seconds: float = PATIENCE,
        hint: str = "",
    ) -> None:
        import asyncio

        self._what, self._hint, self._seconds = what, hint, seconds
        self._free = asyncio.Semaphore(at_once)
        self._limit, self._of_one = waiting, of_one
        self._waiting: Counter[str] = Counter()  # by who asks

    async def call(self, function: Callable[[], T], *, who: str = "") -> T:
        """What it returns, or raises.

        Args:
            who: asks for it.

        Raises:
            TooManyRequestsError: too many wait, or too many of that asker's.
            CasError: it did not return in time, with the wait for those before it.
        """
        import asyncio

        for number, limit in ((self._waiting.total(), self._limit), (self._waiting[who], self._of_one)):
            if limit is not None and number >= limit:
                raise TooManyRequestsError(f"{self._what}: {number} wait for it", hint=self._hint)
        self._waiting[who] += 1
        try:
            async with asyncio.timeout(self._seconds):
                await self._free.acquire()
                return await self._in_thread(function)
        except TimeoutError:
            raise CasError(f"{self._what}: not had within {self._seconds:g} seconds", hint=self._hint) from None
        finally:
            self._waiting[who] -= 1
            self._waiting += Counter()  # forgets whoever waits no more

    def _in_thread(self, function: Callable[[], T]) -> asyncio.Future[T]:
        """Takes over what was acquired: a thread that nobody waits for any more counts until it ends."""
        import asyncio

        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()

        def finish(settle: Callable[[], None]) -> None:
            self._free.release()
            if not done.cancelled():
                settle()

        def work() -> None:
            try:
                result = function()
            except BaseException as error:
                problem = RuntimeError("a generator's end") if isinstance(error, StopIteration) else error
                settle = partial(done.set_exception, problem)
            else:
                settle = partial(done.set_result, result)
            with contextlib.suppress(RuntimeError):  # the CAS has ended meanwhile
                loop.call_soon_threadsafe(finish, settle)

        try:
            # A daemon, so that what hangs cannot keep the CAS from ending.
            threading.Thread(target=work, name=self._what, daemon=True).start()
        except RuntimeError as error:
            finish(partial(done.set_exception, error))
        return done


def making_evidence() -> Patience:
    """For evidence of what runs here: a TEE makes one piece at a time, and anybody can ask.

    A machine's enclaves, which start together, come from one address.
    """
    return Patience("evidence", at_once=2, waiting=128, of_one=32, hint="ask again in a while")
