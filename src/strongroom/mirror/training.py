"""What the trainings of all adapters have in common: steps, some of which are mirrored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Literal

from strongroom.mirror.commit import Commit
from strongroom.mirror.mirror import Mirror
from strongroom.mirror.pace import Pace
from strongroom.mirror.ranks import RankedMirror


class Steps(ABC):
    """The steps of a training, and a mirror that some of them are committed to.

    Attributes:
        pace: says at which steps.
        step: of the last call of `commit`, or the one restored; 0 in the beginning.
        values: what the last commit was told besides, or the one restored.
    """

    def __init__(self, mirror: Mirror | RankedMirror, every: int | Literal["auto"], budget: float) -> None:
        self._mirror = mirror
        self.pace = Pace(every, budget=budget)
        self.step = 0
        self.values: dict[str, Any] = {}

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """The whole state as it is now, as a commit takes it. Raises UsageError for what cannot be kept."""

    def commit(self, *, force: bool = False, **values: Any) -> Commit | None:
        """Note that a step is done, and mirror the state if it is time; None if it is not.

        Args:
            force: mirror it in any case: at the end, or before something that may fail.
            values: numbers and arrays that the program wants back, such as the losses so far.

        Raises:
            UsageError: as `state`.
            as `Mirror.begin`.
        """
        self.step += 1
        self.values = values
        if not self.pace.due() and not force:
            return None
        commit = self._commit()
        self.pace.committed(commit)
        if isinstance(self._mirror, RankedMirror):
            self.pace.agree(self._mirror.most)
        return commit

    def _commit(self) -> Commit:
        return self._mirror.commit(self.step, self.state())
