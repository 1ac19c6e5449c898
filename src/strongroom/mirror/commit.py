"""One commit of a mirror, as the program that makes it sees it."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future

from strongroom.errors import UsageError
from strongroom.sealed import Root


class MirrorWarning(UserWarning):
    """A commit was left out, and training went on without it."""


class Commit:
    """One commit: first the place to put the state, then, once its ``with`` block ended, what became of it.

    Attributes:
        step: the step it is of.
    """

    def __init__(self, step: int) -> None:
        self.step = step
        self._state: dict[str, object] = {}
        self._future: Future[Root] | None = None
        self._told = False  # that it failed

    def __setitem__(self, name: str, value: object) -> None:
        """Put a part of the state: arrays, numbers, text, bytes, and lists, tuples and dicts of them.

        Nothing is copied before the ``with`` block ends.
        """
        self._state[name] = value

    def update(self, state: Mapping[str, object]) -> None:
        """Put several parts."""
        self._state.update(state)

    @property
    def done(self) -> bool:
        """Whether it is decided, one way or the other."""
        return self._future is not None and self._future.done()

    def durable(self, timeout: float | None = None) -> Root:
        """Wait until it is on the disk, as durably as the mirror was asked to be; its root.

        Raises:
            UsageError: its ``with`` block has not ended, or ended by an exception.
            TimeoutError: not within `timeout` seconds.
            OSError, StrongroomError: it failed. The commit before it is the newest.
        """
        if self._future is None:
            raise UsageError(f"commit of step {self.step}: was not made, wanted one whose with block ended")
        try:
            return self._future.result(timeout)
        except TimeoutError:
            raise
        except BaseException:
            self._told = True
            raise
