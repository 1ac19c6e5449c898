"""A part: a run of units, loaded and warm, that answers one front door at a time over its link."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

from strongroom.channel import Channel
from strongroom.crypto import digest
from strongroom.errors import ChannelError, FormatError, IntegrityError, ServeError, StrongroomError
from strongroom.serve.pipeline.alive import Alive
from strongroom.serve.pipeline.document import Part, Pipeline
from strongroom.serve.pipeline.frames import HELLO, error_frame, read_tensors, receive, tensors_frame, text_frame
from strongroom.serve.pipeline.tick import Tick
from strongroom.serve.residue import clear
from strongroom.serve.stage import Stage

MODEL = "part.onnx"
"""The name of its model in the part's vault."""

Greet = Callable[[socket.socket], Channel]
"""Makes a channel of an accepted socket; raises StrongroomError unless the front door is at the other end."""


def load(pipeline: Pipeline, number: int, model: bytes) -> Stage:
    """Load a part's model.

    Raises:
        IntegrityError: it is another than the pipeline's document names.
        ModelFormatError: as `Stage.load`.
    """
    wanted = pipeline.parts[number - 1].digest
    if (got := digest(model).hex()) != wanted:
        raise IntegrityError(f"part {number}: got model {got[:12]}, wanted {wanted[:12]}, which was measured")
    # By the whole model's name: clients know of no parts.
    return Stage.load(model, name=pipeline.name, part=True)


def answer(pipeline: Pipeline, number: int, stage: Stage, channel: Channel, *, tick: Tick | None = None) -> NoReturn:
    """Say which part this is, and answer what comes, in its order, until the channel ends.

    Args:
        tick: when frames leave; by default as the pipeline has it.

    Raises:
        ChannelError, FormatError: it ended.
    """
    part, tick = pipeline.parts[number - 1], tick or Tick(pipeline.tick)
    hello = {"pipeline": pipeline.digest, "part": number}
    channel.queue(text_frame(HELLO, 0, hello, part.answers))
    with Alive(channel, part.answers, tick) as alive:
        while True:
            _answer_next(part, stage, channel, tick, alive)


def _answer_next(part: Part, stage: Stage, channel: Channel, tick: Tick, alive: Alive) -> None:
    """Answer one request; who waits for the next one holds nothing of it."""
    frame = receive(channel, part.asks)
    tensors, results = read_tensors(frame, part.takes), {}
    try:
        with alive.working(frame.number) as ending:
            results = stage.infer(tensors, part.gives, ending)
        pieces = tensors_frame(frame.number, [results[name] for name in part.gives], part.answers)
    except StrongroomError as error:
        pieces = error_frame(frame.number, error, part.answers)
    except MemoryError:
        full = ServeError("part: has not the memory for this request", hint="send fewer rows at once")
        pieces = error_frame(frame.number, full, part.answers)
    tick.wait()
    channel.queue(pieces)
    channel.flush()
    clear(results.values())


class Told(BaseException):  # like SystemExit: nothing went wrong
    """SIGTERM came."""


def serve(
    pipeline: Pipeline,
    number: int,
    stage: Stage,
    listener: socket.socket,
    greet: Greet,
    *,
    tell: Callable[[str], None],
    left: Callable[[], None] = lambda: None,
) -> None:
    """Answer one front door after the other until SIGTERM. In the main thread.

    Args:
        tell: is given a line about each thing that went wrong.
        left: called when a front door has gone.
    """
    assert threading.current_thread() is threading.main_thread()  # noqa: S101  # signals come there

    def end(signal_: int, frame: FrameType | None) -> NoReturn:
        raise Told

    before = signal.signal(signal.SIGTERM, end)
    try:
        while True:
            _meet(pipeline, number, stage, listener, greet, tell)
            left()
    except Told:
        return
    finally:
        signal.signal(signal.SIGTERM, before)


def _meet(
    pipeline: Pipeline,
    number: int,
    stage: Stage,
    listener: socket.socket,
    greet: Greet,
    tell: Callable[[str], None],
) -> None:
    sock, _ = listener.accept()
    try:
        channel = greet(sock)
    except StrongroomError as error:
        sock.close()
        tell(f"part {number}: somebody came and was refused: {error.message}")
        return
    try:
        answer(pipeline, number, stage, channel)
    except FormatError as error:
        tell(f"part {number}: its link ended: {error.message}")
    except ChannelError:
        return  # the front door went away, and comes back
    finally:
        channel.close()
