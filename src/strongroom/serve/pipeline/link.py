"""The front door's connections to one part: one for each enclave that works at it at the same time.

- Several requests are under way on each connection: a window of them is sent, the others wait here, for whichever
  connection has room first.
- A connection that ends, however it does, is made again, and what was sent over it and not answered is sent again, over
  the next that has room, before what waits.
- One that is silent is ended, for a part that works says so: whatever is the matter there, another enclave of the part
  may answer.
- A request is not sent again for ever: where a connection ended `TRIES` times while the part worked on it, it may be
  what ends the part, and fails. One that nobody waits for any more is forgotten, wherever it is.
- An answer to a number that nobody waits for any more is dropped.
- A part that is another than the document says gets no request.
"""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from strongroom.channel import Channel
from strongroom.errors import (
    ChannelError,
    PeerIdentityError,
    ServeError,
    StrongroomError,
    UnansweredError,
    from_wire,
)
from strongroom.serve.pipeline.alive import Patience
from strongroom.serve.pipeline.document import Part, Pipeline
from strongroom.serve.pipeline.frames import (
    ERROR,
    HELLO,
    TENSORS,
    WORKING,
    Frame,
    read_tensors,
    read_text,
    receive,
    tensors_frame,
)
from strongroom.serve.pipeline.tick import Tick
from strongroom.serve.tensors import Array

WINDOW = 2
TRIES = 3
_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 1.0
_IDLE_SECONDS = 0.5  # between two looks whether a part that has nothing to do is still there
_CLOSE_SECONDS = 1.0  # for which one that is just being made is waited for
Dial = Callable[[], Channel]
"""Gives a channel to an enclave under the part's policy; raises StrongroomError if there is none just now."""


@dataclass(eq=False)
class _Job:
    number: int
    frame: list[memoryview] = field(repr=False)
    answer: Future[dict[str, Array]] = field(default_factory=Future)
    tries: int = 0  # that ended while the part worked on it


class Link:
    """Takes requests from any thread; each of its connections belongs to a thread of its own.

    Args:
        pipeline, number: the part at the other end, counted from 1.
        dial: connects to one of its enclaves that has no front door; called from several threads.
        tell: is given a line about each connection that ended.
        window: how many requests may be under way on a connection.
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
        self.pipeline, self.number, self.dial, self.tell, self.window = pipeline, number, dial, tell, window
        self.tick = tick or Tick(pipeline.tick)
        self.waiting: deque[_Job] = deque()
        self.change = threading.Condition()
        self.closed = False
        self._connections = [_Connection(self) for _ in range(self.part.replicas)]
        for each in self._connections:
            each.start()

    @property
    def part(self) -> Part:
        return self.pipeline.parts[self.number - 1]

    @property
    def up(self) -> bool:
        """Whether an enclave of the part answers, for all that is known."""
        return any(each.up for each in self._connections)

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until there is a connection; whether there is."""
        with self.change:
            return self.change.wait_for(lambda: self.up or self.closed, seconds) and self.up

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
        with self.change:
            if self.closed:
                raise ServeError("service: is stopping")
            self.waiting.append(job)
            self.change.notify_all()
        # By its number: else job and answer would hold each other, and what was asked, until they are collected.
        job.answer.add_done_callback(functools.partial(self._forget, number))
        return job.answer

    def _forget(self, number: int, answer: Future[dict[str, Array]]) -> None:
        if answer.cancelled():
            with self.change:
                job = next((job for job in self.waiting if job.number == number), None)
                if job is not None:  # else it is under way, or was answered
                    self.waiting.remove(job)

    def close(self) -> None:
        """End it; what is not answered fails."""
        with self.change:
            self.closed = True
            idle = [each for each in self._connections if not each.sent]
            self.change.notify_all()
        for each in idle:
            each.join(_CLOSE_SECONDS)
        self.fail_all(self.waiting)

    def fail_all(self, jobs: deque[_Job]) -> None:
        with self.change:
            left = list(jobs)
            jobs.clear()
        for job in left:
            if job.answer.set_running_or_notify_cancel():
                job.answer.set_exception(ServeError("service: is stopping"))


class _Connection(threading.Thread):
    """One of a link's connections, made again whenever it ends."""

    def __init__(self, link: Link) -> None:
        super().__init__(name=f"part {link.number}", daemon=True)
        self.up = False
        self.sent: OrderedDict[int, _Job] = OrderedDict()
        self._link = link
        self._patience = Patience()

    def run(self) -> None:
        link, pause = self._link, _FIRST_PAUSE
        while not link.closed:
            try:
                channel = self._connect()
            except Exception as error:  # the host's doing, whatever it is
                if isinstance(error, PeerIdentityError):
                    link.tell(f"part {link.number}: refused: {error.message}")
                with link.change:
                    link.change.wait_for(lambda: link.closed, pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
                continue
            pause = _FIRST_PAUSE
            try:
                self._work(channel)
            except Exception as error:  # else nobody would be answered any more
                link.ended += 1
                why = error.message if isinstance(error, StrongroomError) else type(error).__name__
                link.tell(f"part {link.number}: its link ended, and is made again: {why}")
            finally:
                channel.close()
                self._give_back()
        link.fail_all(link.waiting)

    def _give_back(self) -> None:
        """What was sent and not answered goes first, in its order; but not one that ends the part again and again."""
        link = self._link
        with link.change:
            self.up = False
            under_way = list(self.sent.values())
            left = [job for job in under_way if not job.answer.cancelled()]
            self.sent.clear()
            # The others had not begun: that it ended is not their doing.
            worked_on = left[0] if left and left[0] is under_way[0] else None
            if worked_on is not None and not link.closed:
                worked_on.tries += 1
                if worked_on.tries >= TRIES:
                    left.pop(0)
            link.waiting.extendleft(reversed(left))
            link.change.notify_all()
        if worked_on is not None and worked_on.tries >= TRIES and worked_on.answer.set_running_or_notify_cancel():
            worked_on.answer.set_exception(
                UnansweredError(
                    f"pipeline: part {link.number} ended {TRIES} times while it worked on this request",
                    hint="it may want more memory than the part has: send fewer rows at once",
                )
            )

    def _connect(self) -> Channel:
        link = self._link
        channel = link.dial()
        try:
            hello = receive(channel, link.part.answers)
            wanted = {"pipeline": link.pipeline.digest, "part": link.number}
            if hello.kind != HELLO or read_text(hello) != wanted:
                raise PeerIdentityError(
                    "it is of another pipeline, or another part of this one",
                    hint="the host mixed them up, or it is of an older version",
                )
        except BaseException:
            channel.close()
            raise
        with link.change:
            self.up = True
            link.change.notify_all()
        return channel

    def _work(self, channel: Channel) -> None:
        """Send and receive until the channel ends, or the link is closed and nothing is under way.

        Not in this frame, which would hold what was last sent and received while it waits for more.
        """
        while True:
            self._send(channel)
            if self._link.closed:
                return
            if self.sent:
                self._answered(self._receive(channel))

    def _send(self, channel: Channel) -> None:
        for job in self._next(channel):
            self._link.tick.wait()
            channel.queue(job.frame)

    def _receive(self, channel: Channel) -> Frame:
        channel.be_patient(self._patience.seconds)
        try:
            return receive(channel, self._link.part.answers)
        except ChannelError:
            self._patience.ended()
            raise

    def _next(self, channel: Channel) -> list[_Job]:
        """What to send now; waits while there is nothing to do."""
        link = self._link
        jobs: list[_Job] = []
        with link.change:
            while not link.change.wait_for(lambda: link.closed or link.waiting or self.sent, _IDLE_SECONDS):
                if channel.hears():  # it was asked nothing
                    raise ChannelError("it hung up")
            while not link.closed and link.waiting and len(self.sent) < link.window:
                job = link.waiting.popleft()
                if job.answer.cancelled():
                    continue
                self.sent[job.number] = job
                jobs.append(job)
        return jobs

    def _answered(self, frame: Frame) -> None:
        self._patience.heard()
        with self._link.change:
            if frame.kind == WORKING and frame.number in self.sent:
                if self.sent[frame.number].answer.cancelled():  # another enclave of the part may be free
                    raise ChannelError("it works on what nobody waits for any more")
                return
            job = self.sent.pop(frame.number, None)
        if job is None or frame.kind not in (TENSORS, ERROR):
            raise PeerIdentityError(f"it answers to number {frame.number}, which it was not asked")
        if not job.answer.set_running_or_notify_cancel():
            self._link.dropped += 1
            return
        try:
            if frame.kind == ERROR:
                job.answer.set_exception(from_wire(read_text(frame)))
            else:
                job.answer.set_result(read_tensors(frame, self._link.part.gives))
        except StrongroomError as error:
            job.answer.set_exception(error)
