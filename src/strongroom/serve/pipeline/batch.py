"""Requests of few rows that run together.

- A batch has as many rows as its pipeline declares: what requests leave empty is zeros. So who watches does not learn
  how many there were.
- The first request of a batch waits for others at most as long as its pipeline says.
- Only requests whose inputs are alike but for their rows run together. Each gets its own rows back, and no others.
- A request of more rows than a batch has is asked as several, by who asks; one of unequal rows runs by itself.
- Who asks for batches says by it that a row of an answer depends on its own row of the inputs alone.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from strongroom.errors import ServeError, StrongroomError, UnansweredError
from strongroom.serve.tensors import Array

Run = Callable[[Mapping[str, Array]], Mapping[str, Array]]


@dataclass
class _Asked:
    inputs: Mapping[str, Array] = field(repr=False)
    rows: int
    ends: float
    answer: Future[dict[str, Array]] = field(default_factory=Future)

    def like(self, other: _Asked) -> bool:
        return all(
            each.dtype == other.inputs[name].dtype and each.shape[1:] == other.inputs[name].shape[1:]
            for name, each in self.inputs.items()
        )


class Batches:
    """Collects requests from any thread.

    Args:
        run: runs inputs of `rows` rows; called from several threads.
        rows: of a batch.
        delay: seconds that the first request of one waits.
        at_once: how many batches may be under way.
        clock: seconds that only go forward.
    """

    def __init__(
        self, run: Run, *, rows: int, delay: float, at_once: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._run, self._rows, self._delay, self._clock = run, rows, delay, clock
        self._asked: queue.SimpleQueue[_Asked | None] = queue.SimpleQueue()
        self._pool = ThreadPoolExecutor(at_once, thread_name_prefix="batch")
        self._room = threading.Semaphore(at_once)
        self._thread = threading.Thread(target=self._collect, name="batches", daemon=True)
        self._thread.start()

    @staticmethod
    def rows_of(inputs: Mapping[str, Array]) -> int:
        """How many rows all inputs have; 0 if they have none, or not as many each."""
        rows = {each.shape[0] if each.ndim else 0 for each in inputs.values()}
        return rows.pop() if len(rows) == 1 else 0

    def submit(self, inputs: Mapping[str, Array], ends: float = math.inf) -> Future[dict[str, Array]]:
        """Have a request answered.

        Args:
            inputs: of as many rows each, at least one and at most as many as a batch has.
            ends: when its answer is waited for no more, by the clock.
        """
        asked = _Asked(inputs, next(iter(inputs.values())).shape[0], ends)
        self._asked.put(asked)
        return asked.answer

    def close(self) -> None:
        """Answer what was asked, and end."""
        self._asked.put(None)
        self._thread.join()
        self._pool.shutdown()

    def _collect(self) -> None:
        following: list[_Asked | None] = []
        while True:
            # Not in this frame, which would hold what was asked while it waits for more.
            following = self._collect_one(following)
            if following == [None]:
                return

    def _collect_one(self, following: list[_Asked | None]) -> list[_Asked | None]:
        """Collect a batch and have it run; the request that came and is in no batch yet, or None for the end."""
        first = following.pop() if following else self._asked.get()
        if first is None:
            return [None]
        self._room.acquire()  # while all parts are busy, who comes may come along
        batch, rows, ends = [first], first.rows, time.monotonic() + self._delay
        while rows < self._rows and not following:
            try:
                asked = self._asked.get(timeout=max(0.0, ends - time.monotonic()))
            except queue.Empty:
                break
            if asked is None or rows + asked.rows > self._rows or not first.like(asked):
                following.append(asked)
            else:
                batch.append(asked)
                rows += asked.rows
        self._pool.submit(self._answer, batch)
        return following

    def _answer(self, batch: list[_Asked]) -> None:
        try:
            waiting = [asked for asked in batch if asked.answer.set_running_or_notify_cancel()]
            if waiting:
                self._together(waiting)
        finally:
            self._room.release()

    def _together(self, batch: list[_Asked]) -> None:
        batch = [asked for asked in batch if not self._late(asked)]
        if not batch:
            return
        try:
            outputs = self._run(self._joined(batch))
            for name, each in outputs.items():
                if each.shape[:1] != (self._rows,):
                    raise ServeError(f"output {name!r}: {self._rows} rows went in, and it has shape {list(each.shape)}")
        except UnansweredError as error:
            _fail(batch, error)
        except StrongroomError as error:
            if len(batch) == 1:
                _fail(batch, error)
                return
            # One of them is at fault, and the others need not know: halves find it in few runs.
            half = len(batch) // 2
            self._together(batch[:half])
            self._together(batch[half:])
        except Exception as error:
            _fail(batch, error)
        else:
            row = 0
            for asked in batch:
                asked.answer.set_result({name: each[row : row + asked.rows] for name, each in outputs.items()})
                row += asked.rows

    def _late(self, asked: _Asked) -> bool:
        """Whether nobody waits for its answer any more; if so, it has one."""
        if self._clock() < asked.ends:
            return False
        asked.answer.set_exception(UnansweredError("pipeline: the time that the request had is over"))
        return True

    def _joined(self, batch: list[_Asked]) -> dict[str, Array]:
        joined = {}
        for name, first in batch[0].inputs.items():
            joined[name] = np.zeros((self._rows, *first.shape[1:]), first.dtype)
            row = 0
            for asked in batch:
                joined[name][row : row + asked.rows] = asked.inputs[name]
                row += asked.rows
        return joined


def _fail(batch: list[_Asked], error: Exception) -> None:
    for asked in batch:
        asked.answer.set_exception(error)
