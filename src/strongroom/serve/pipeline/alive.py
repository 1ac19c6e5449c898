"""Signs of life: a part that works on a request says so. So silence means that it hangs, however long work takes.

And where the front door hears them no more, nobody waits for what the part works on: the work ends.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

from strongroom.channel import Channel
from strongroom.errors import ChannelError
from strongroom.serve.ending import Ending
from strongroom.serve.pipeline.frames import WORKING, text_frame
from strongroom.serve.pipeline.tick import Tick

BEAT_SECONDS = 1.0
"""Between two signs of life, and from the beginning of the work to the first."""
SILENT_SECONDS, MOST_SECONDS = 5.0, 60.0


class Alive:
    """A part's signs of life to its front door. While `working` a thread of this has the channel, else the caller.

    Args:
        size: of a frame, in bytes.
        tick: when frames leave.
    """

    def __init__(self, channel: Channel, size: int, tick: Tick) -> None:
        self._channel, self._size, self._tick = channel, size, tick
        self._turn, self._ended = threading.Lock(), threading.Event()
        self._number: int | None = None
        self._work = Ending()
        self._since = 0.0
        self._thread = threading.Thread(target=self._beat, name="alive", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()

    @contextmanager
    def working(self, number: int) -> Iterator[Ending]:
        """While the request of that number is worked on. What it gives ends the work once the front door has gone."""
        with self._turn:
            self._number, self._since, self._work = number, time.monotonic(), Ending()
            work = self._work
        try:
            yield work
        finally:
            with self._turn:
                self._number = None

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            with self._turn:
                if self._number is None or time.monotonic() - self._since < BEAT_SECONDS:
                    continue
                try:
                    self._tick.wait()
                    self._channel.queue(text_frame(WORKING, self._number, {}, self._size))
                    self._channel.flush()
                except ChannelError:  # whose turn is next sees it too
                    self._work.end()


class Patience:
    """How long the front door waits for the next bytes of a part that it asked something.

    `SILENT_SECONDS`; each connection that ends while an answer is awaited doubles it, until something comes: on a
    machine that is slow to run anything a part is not left again and again.

    Attributes:
        seconds: to wait.
    """

    def __init__(self) -> None:
        self.seconds: float = SILENT_SECONDS

    def heard(self) -> None:
        self.seconds = SILENT_SECONDS

    def ended(self) -> None:
        self.seconds = min(MOST_SECONDS, 2 * self.seconds)
