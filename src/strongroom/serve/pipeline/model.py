"""The pipeline as the front door serves it: to `ServiceApp` it is a model like another."""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as LateError

import numpy as np

from strongroom.errors import ServeError, UnansweredError
from strongroom.serve.ending import Ending
from strongroom.serve.pipeline.batch import Batches
from strongroom.serve.pipeline.document import Pipeline
from strongroom.serve.pipeline.link import WINDOW, Link
from strongroom.serve.pipeline.room import require_room
from strongroom.serve.stage import Stage
from strongroom.serve.tensors import Array, check_fits

DEADLINE_SECONDS = 60.0
_MOST_AT_ONCE = 256  # each takes a thread


def at_once(pipeline: Pipeline) -> int:
    """How many calls of `infer` are worth making at once."""
    return min(_MOST_AT_ONCE, (_under_way(pipeline) + 1) * pipeline.batch)


def _under_way(pipeline: Pipeline) -> int:
    return WINDOW * sum(part.replicas for part in pipeline.parts)


class PipelineModel:
    """A model in parts. `infer` may be called from several threads at once, and each is a request under way.

    Attributes:
        digest: SHA-256 of the model that was cut, in hexadecimal digits.
    """

    version = Stage.version

    def __init__(
        self,
        pipeline: Pipeline,
        links: Sequence[Link],
        *,
        deadline: float = DEADLINE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            links: to the parts, in their order.
            deadline: seconds after which a request fails.
            clock: seconds that only go forward.
        """
        self.digest = pipeline.model
        self._pipeline, self._links, self._deadline, self._clock = pipeline, links, deadline, clock
        self._numbers, self._lock = itertools.count(1), threading.Lock()
        self._inputs = {info.name: info for info in pipeline.inputs}
        self._outputs = [info.name for info in pipeline.outputs]
        # After which part a tensor is needed no more.
        self._last = {name: len(links) for name in self._outputs}
        for place, part in enumerate(pipeline.parts):
            for name in part.takes:
                self._last[name] = max(place, self._last.get(name, place))
        self._batches: Batches | None = None
        if pipeline.batch > 1:
            self._batches = Batches(
                lambda inputs: self._through(inputs, self._clock() + self._deadline, Ending()),
                rows=pipeline.batch,
                delay=pipeline.delay / 1e6,
                at_once=_under_way(pipeline),
                clock=clock,
            )

    def check(self) -> None:
        """Raises UnansweredError unless all parts are there."""
        away = [number for number, link in enumerate(self._links, 1) if not link.up]
        if away:
            raise UnansweredError(f"pipeline: part {away[0]} is not there", hint="it starts again: try in a moment")

    def infer(
        self, inputs: Mapping[str, Array], wanted: Sequence[str] | None = None, ending: Ending | None = None
    ) -> dict[str, Array]:
        """Take a request through the parts. More rows than a batch of the plan has go as several batches.

        Args:
            inputs: every input of the model by name, of its datatype and shape.
            wanted: names of outputs; None for all.
            ending: of the work; the part that works on it then is left, and ends its own.

        Raises:
            ServeError: an input or output does not fit the model, or the model fails on these inputs.
            TooLargeError: the parts have not the memory for inputs of such shapes.
            UnansweredError: there was no answer within the deadline, or `ending` ended it.
        """
        for name in inputs:
            if name not in self._inputs:
                raise ServeError(f"input {name!r}: unknown, wanted {', '.join(self._inputs) or 'none'}")
        for name, info in self._inputs.items():
            if name not in inputs:
                raise ServeError(f"input {name!r}: missing, wanted {info}")
            check_fits(inputs[name], info)
        names = self._outputs if wanted is None else list(wanted)
        for name in names:
            if name not in self._outputs:
                raise ServeError(f"output {name!r}: unknown, wanted some of {', '.join(self._outputs)}")
        ends, ending = self._clock() + self._deadline, ending or Ending()
        rows = 0 if self._batches is None else Batches.rows_of(inputs)
        require_room(self._pipeline.inputs, self._pipeline.sizes, self._pipeline.times, inputs, any_rows=rows > 0)
        outputs = self._in_batches(inputs, rows, ends, ending) if rows else self._through(inputs, ends, ending)
        return {name: outputs[name] for name in names}

    def _in_batches(self, inputs: Mapping[str, Array], rows: int, ends: float, ending: Ending) -> dict[str, Array]:
        """All outputs of that many rows. Of more than a batch has, few batches wait at once: others come between."""
        assert self._batches is not None  # noqa: S101  # else nobody calls this
        size, most = self._pipeline.batch, _under_way(self._pipeline)
        asked: deque[Future[dict[str, Array]]] = deque()
        found: list[dict[str, Array]] = []
        try:
            for start in range(0, rows, size):
                if len(asked) == most:
                    found.append(self._result(asked.popleft(), ends, ending, "the pipeline"))
                piece = {name: each[start : start + size] for name, each in inputs.items()}
                asked.append(self._batches.submit(piece, ends))
            while asked:
                found.append(self._result(asked.popleft(), ends, ending, "the pipeline"))
        finally:
            for each in asked:
                each.cancel()
        if len(found) == 1:
            return found[0]
        return {name: np.concatenate([each[name] for each in found]) for name in self._outputs}

    def _result(self, answer: Future[dict[str, Array]], ends: float, ending: Ending, who: str) -> dict[str, Array]:
        with ending.stops(answer.cancel):
            try:
                return answer.result(max(0.0, ends - self._clock()))
            except LateError:
                answer.cancel()
                raise UnansweredError(
                    f"pipeline: {who} did not answer within the {self._deadline:g} s that a request has",
                    hint="ask again: whoever asks twice gets the same answer",
                ) from None
            except CancelledError:
                raise UnansweredError("pipeline: nobody waits for the answer") from None

    def close(self) -> None:
        """Answer what was asked, and end the links."""
        if self._batches is not None:
            self._batches.close()
        for link in self._links:
            link.close()

    def _through(self, inputs: Mapping[str, Array], ends: float, ending: Ending) -> dict[str, Array]:
        """All outputs, of inputs that fit."""
        with self._lock:
            number = next(self._numbers)
        alive = dict(inputs)
        for place, (part, link) in enumerate(zip(self._pipeline.parts, self._links, strict=True)):
            answer = link.submit(number, [alive[name] for name in part.takes])
            alive.update(self._result(answer, ends, ending, f"part {place + 1}"))
            alive = {name: each for name, each in alive.items() if self._last.get(name, -1) > place}
        return alive

    def metadata(self) -> dict[str, object]:
        """The protocol's model metadata."""
        return {
            "name": self._pipeline.name,
            "versions": [self.version],
            "platform": "onnxruntime_onnx",
            "inputs": [info.to_wire() for info in self._pipeline.inputs],
            "outputs": [info.to_wire() for info in self._pipeline.outputs],
        }
