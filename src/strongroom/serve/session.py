"""Runs of one ONNX Runtime session, two of them at once without a thread more than one has.

A run splits every operator over the session's threads, and who is done first waits, actively, for the others: where
something takes the core of one, such as the next request, that of another is lost too. Two threads that call `run` make
it worse, since they are one more than there are cores. So of two runs at once one is its caller's, and the other is
given to a thread of the session's (`run_async`): each has a core of its own, and neither waits. A run that is alone has
all threads; which operators have how many changes from one to the next.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

from strongroom.serve.runtime import cores
from strongroom.serve.tensors import Array

# Whoever runs a model by its own thread. The sessions of a process share its cores.
_callers = threading.Lock()


def at_once() -> int:
    """How many runs are worth having under way at once in this process."""
    return min(2, cores())


class Session:
    """May be called from several threads at once.

    Args:
        session: ONNX Runtime's.
        threads: that it has, its caller's included.
    """

    def __init__(self, session: Any, threads: int) -> None:
        self._session, self._threads = session, threads

    def run(self, names: Sequence[str], inputs: Mapping[str, Array], options: Any) -> list[Array]:
        """The outputs of these names.

        Args:
            options: ONNX Runtime's `RunOptions`.

        Raises:
            Exception: whatever ONNX Runtime raises; RuntimeError with its words where another thread ran it.
        """
        if self._threads == 1:
            return list(self._session.run(names, dict(inputs), options))
        if not _callers.acquire(blocking=False):
            return self._run_there(names, dict(inputs), options)
        try:
            return list(self._session.run(names, dict(inputs), options))
        finally:
            _callers.release()

    def _run_there(self, names: Sequence[str], inputs: dict[str, Array], options: Any) -> list[Array]:
        """By one of the session's threads. Nothing of `inputs` is copied: this waits until it has ended."""
        done, told = threading.Event(), list[tuple[list[Array], str]]()

        def tell(results: list[Array], _: object, error: str) -> None:
            told.append((results, error))
            done.set()

        self._session.run_async(names, inputs, tell, None, options)
        done.wait()
        results, error = told.pop()
        if error:
            raise RuntimeError(error)
        return results
