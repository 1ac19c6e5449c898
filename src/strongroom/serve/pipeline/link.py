"""The front door's end of the connection to one part.

- Several requests are under way at once: a window of them is sent, the others wait here.
- A link that ends, however it does, is made again, and what was sent and not answered is sent again, in its order.
- An answer to a number that nobody waits for any more is dropped.
- A part that is another than the document says gets no request.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from strongroom.channel import Channel
from strongroom.errors import ChannelError, PeerIdentityError, ServeError, StrongroomError, from_wire
from strongroom.serve.pipeline.document import Part, Pipeline
from strongroom.serve.pipeline.frames import (
    ERROR,
    HELLO,
    TENSORS,
    Frame,
    read_tensors,
    read_text,
    receive,
    tensors_frame,
)
from strongroom.serve.pipeline.tick import Tick
from strongroom.serve.tensors import Array

WINDOW = 2
_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 1.0
_IDLE_SECONDS = 0.5  # between two looks whether a part that has nothing to do is still there
Dial = Callable[[], Channel]
"""Gives a channel to an enclave under the part's policy; raises StrongroomError if there is none just now."""


@dataclass
class _Job:
    number: int
    frame: list[memoryview] = field(repr=False)
    answer: Future[dict[str, Array]] = field(default_factory=Future)


class Link:
    """Takes requests from any thread; its connection belongs to a thread of its own.

    Args:
        pipeline, number: the part at the other end, counted from 1.
        dial: connects to it.
        tell: is given a line about each link that ended.
        window: how many requests may be under way.
        tick: when frames leave; by default as the pipeline has it.

    Attributes:
        ended: how many connections have ended.
        dropped: how many answers came that nobody waited for.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        number: int,
        dial: Dial,
        *,
        tell: Callable[[str], None],
        window: int = WINDOW,
        tick: Tick | None = None,
    ) -> None:
        self.ended = self.dropped = 0
        self._pipeline, self._number, self._dial, self._tell, self._window = pipeline, number, dial, tell, window
        self._tick = tick or Tick(pipeline.tick)
        self._waiting: deque[_Job] = deque()
        self._sent: OrderedDict[int, _Job] = OrderedDict()
        self._change = threading.Condition()
        self._closed, self._up = False, False
        self._channel: Channel | None = None
        self._thread = threading.Thread(target=self._run, name=f"part {number}", daemon=True)
        self._thread.start()

    @property
    def part(self) -> Part:
        return self._pipeline.parts[self._number - 1]

    @property
    def up(self) -> bool:
        """Whether the part answers, for all that is known."""
        return self._up

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until the link is made for the first time, or again; whether it is."""
        with self._change:
            return self._change.wait_for(lambda: self._up or self._closed, seconds) and self._up

    def submit(self, number: int, tensors: Sequence[Array]) -> Future[dict[str, Array]]:
        """Have the part work on a request.

        Args:
            number: of the request; no other under way has it.
            tensors: those that the part takes, in its order; they do not change until it has answered.

        Raises:
            ServeError: the link is closed.
            FormatError: they are too long for a frame.
        """
        job = _Job(number, tensors_frame(number, tensors, self.part.asks))
        with self._change:
            if self._closed:
                raise ServeError("service: is stopping")
            self._waiting.append(job)
            self._change.notify_all()
        return job.answer

    def close(self) -> None:
        """End it; what is not answered fails."""
        with self._change:
            self._closed = True
            self._change.notify_all()
        if not self._sent:
            self._thread.join()

    def _run(self) -> None:
        pause = _FIRST_PAUSE
        while not self._closed:
            try:
                channel = self._connect()
            except Exception as error:  # the host's doing, whatever it is
                if isinstance(error, PeerIdentityError):
                    self._tell(f"part {self._number}: refused: {error.message}")
                with self._change:
                    self._change.wait_for(lambda: self._closed, pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
                continue
            pause = _FIRST_PAUSE
            try:
                self._work(channel)
            except Exception as error:  # else nobody would be answered any more
                self.ended += 1
                why = error.message if isinstance(error, StrongroomError) else type(error).__name__
                self._tell(f"part {self._number}: its link ended, and is made again: {why}")
            finally:
                channel.close()
                with self._change:
                    self._up = False
                    # What was sent goes first, in its order.
                    self._waiting.extendleft(reversed(self._sent.values()))
                    self._sent.clear()
        self._fail_all()

    def _connect(self) -> Channel:
        channel = self._dial()
        try:
            hello = receive(channel, self.part.answers)
            wanted = {"pipeline": self._pipeline.digest, "part": self._number}
            if hello.kind != HELLO or read_text(hello) != wanted:
                raise PeerIdentityError(
                    "it is of another pipeline, or another part of this one",
                    hint="the host mixed them up, or it is of an older version",
                )
        except BaseException:
            channel.close()
            raise
        with self._change:
            self._up = True
            self._change.notify_all()
        return channel

    def _work(self, channel: Channel) -> None:
        """Send and receive until the channel ends, or the link is closed and nothing is under way."""
        while True:
            with self._change:
                while not self._change.wait_for(lambda: self._closed or self._waiting or self._sent, _IDLE_SECONDS):
                    if channel.hears():  # it was asked nothing
                        raise ChannelError("it hung up")
                if self._closed:
                    return
                frames = []
                while self._waiting and len(self._sent) < self._window:
                    job = self._waiting.popleft()
                    if job.answer.cancelled():
                        continue
                    self._sent[job.number] = job
                    frames.append(job.frame)
            for frame in frames:
                self._tick.wait()
                channel.queue(frame)
            if self._sent:
                self._answered(receive(channel, self.part.answers))

    def _answered(self, frame: Frame) -> None:
        with self._change:
            job = self._sent.pop(frame.number, None)
        if job is None or frame.kind not in (TENSORS, ERROR):
            raise PeerIdentityError(f"it answers to number {frame.number}, which it was not asked")
        if not job.answer.set_running_or_notify_cancel():
            self.dropped += 1
            return
        try:
            if frame.kind == ERROR:
                job.answer.set_exception(from_wire(read_text(frame)))
            else:
                job.answer.set_result(read_tensors(frame, self.part.gives))
        except StrongroomError as error:
            job.answer.set_exception(error)

    def _fail_all(self) -> None:
        with self._change:
            jobs = [*self._waiting, *self._sent.values()]
            self._waiting.clear()
            self._sent.clear()
        for job in jobs:
            if job.answer.set_running_or_notify_cancel():
                job.answer.set_exception(ServeError("service: is stopping"))
