"""What `pyfuse3` runs on here in place of Trio: one thread that answers one request after the other.

`pyfuse3` is written for an event loop. Our handlers never wait for anything but the disk, so each would go through that
loop twice for nothing: 40 us a request with Trio, 9 us with this. It has an official place for another loop (the one
that `pyfuse3.asyncio` uses): a module by the name of `trio` with the few names that it calls. None of the awaitables
here ever suspends, so `pyfuse3.main` is one long call.

A processor that has nothing to do takes longer to wake than most requests take to be answered. While requests come one
after the other, the loop therefore looks for the next one for a moment before it sleeps. Where they come now and then,
as from a training that opens a file and computes, it sleeps at once: whoever waited for the answer runs where it ran.
And it asks the scheduler for short turns, so that it does not wait until those who compute have had their long ones.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import select
import struct
import sys
import time
from collections.abc import Callable, Generator
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pyfuse3

if TYPE_CHECKING:
    from strongroom.shield._direct import Direct

_TICK = 0.1
_SOON = 100e-6  # the longest look-out for a request
_ROW = 4  # requests that came that soon, one after the other, before it looks out for the next
_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}  # numbers of the system call
_TURN = 100_000  # nanoseconds, the shortest that Linux grants


class ClosedResourceError(Exception):
    """The loop shall end."""


class _Done:
    """An awaitable that is ready."""

    def __await__(self) -> Generator[Any, None, None]:
        return iter(())  # type: ignore[return-value]  # ends at once, which is all that `await` asks for


_DONE = _Done()


class _Lock:
    """There is one task, so nobody else can want it."""

    def __aenter__(self) -> _Done:
        return _DONE

    def __aexit__(self, *error: object) -> _Done:
        return _DONE


class _Nursery:
    """Runs its one task when its block ends."""

    def __init__(self) -> None:
        self._task: tuple[Callable[..., Any], tuple[object, ...]] | None = None

    async def __aenter__(self) -> _Nursery:
        return self

    def start_soon(self, task: Callable[..., Any], *args: object, name: str | None = None) -> None:
        self._task = task, args

    async def __aexit__(self, *error: object) -> None:
        if self._task and error[0] is None:
            task, args = self._task
            await task(*args)


class Loop:
    """Waits for requests of the kernel, and calls `tick` about every tenth of a second meanwhile.

    Args:
        tick: None if there is nothing to do between requests.
        direct: answers in place of `pyfuse3` as soon as that has agreed with the kernel on what each can do.
    """

    def __init__(self, tick: Callable[[], None] | None, direct: Direct | None = None) -> None:
        self._tick = tick
        self._direct = direct
        self._due = time.monotonic() + _TICK
        self._poll = select.poll()
        self._watched: int | None = None
        self._wake, self._woken = os.pipe()
        # A program that has to share its only processor with us would wait for us in vain.
        self._looks_out = hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0)) > 1
        self._row = 0  # requests that came soon after the one before them, up to now

    async def _wait_readable(self, fd: int) -> None:
        if self._watched is None:
            self._watched = fd
            self._poll.register(fd, select.POLLIN)
            self._poll.register(self._wake, select.POLLIN)
        while True:
            began = time.monotonic()
            ready = self._look_out(began + _SOON) if self._looks_out and self._row >= _ROW else []
            if not ready:
                # The interpreter's lock is free in here and while looking out, and nowhere else.
                ready = self._poll.poll(None if self._tick is None else _TICK * 1000)
            now = time.monotonic()
            self._row = self._row + 1 if now < began + _SOON else 0
            if self._tick is not None and now >= self._due:
                self._tick()
                self._due = max(now, time.monotonic()) + _TICK
            if ready:
                if len(ready) > 1 or ready[0][0] == self._wake:
                    raise ClosedResourceError
                return

    async def _wait_or_serve(self, fd: int) -> None:
        """For `pyfuse3`, which is here between two requests."""
        if self._direct is None or not self._direct.ready:
            await self._wait_readable(fd)
            return
        await self._direct.serve(fd, self._wait_readable)
        raise ClosedResourceError

    def _look_out(self, until: float) -> list[tuple[int, int]]:
        """What is ready by then, without sleeping; whoever else wants this processor gets it."""
        while not (ready := self._poll.poll(0)) and time.monotonic() < until:
            os.sched_yield()
        return ready

    def run(self) -> None:
        """Serve the mount that `pyfuse3.init` made, until its connection ends or `stop` is called."""
        _take_short_turns()
        pyfuse3.trio = SimpleNamespace(  # type: ignore[attr-defined]
            Lock=_Lock,
            ClosedResourceError=ClosedResourceError,
            open_nursery=_Nursery,
            lowlevel=SimpleNamespace(
                current_task=lambda: SimpleNamespace(name="strongroom"),
                current_trio_token=lambda: self,
                wait_readable=self._wait_or_serve,
                notify_closing=lambda fd: self.stop(),
            ),
        )
        try:
            pyfuse3.main(min_tasks=1, max_tasks=1).send(None)
        except StopIteration:
            return
        except OSError as error:
            # Which is what the kernel says of a mount that went while it was about to hand over a request of it.
            if error.errno != errno.ECONNABORTED:
                raise
            return
        raise RuntimeError("mount: a handler suspended")

    def stop(self) -> None:
        """Make `run` return after the request that it is at. From any thread."""
        os.write(self._woken, b"\0")

    def close(self) -> None:
        """Give the descriptors back."""
        os.close(self._wake)
        os.close(self._woken)


def _take_short_turns() -> None:
    """Have this thread preempt others when it is woken, and give way as soon (Linux 6.12; earlier ones ignore it)."""
    number = _SCHED_SETATTR.get(platform.machine())
    if number is None or not sys.platform.startswith("linux"):
        return
    # struct sched_attr of linux/sched/types.h: size, policy, flags, nice, priority, runtime, deadline, period
    attributes = struct.pack("<IIQiIQQQ", 48, 0, 0, os.getpriority(os.PRIO_PROCESS, 0), 0, _TURN, 0, 0)
    ctypes.CDLL(None).syscall(number, 0, attributes, 0)  # what refuses it leaves it as it was
