"""The losses that a training prints, and whether those of steps that were done again are the ones of the first time.

A mirror that keeps its promise makes a training that was killed go on bit for bit. Of that its output is a strong
witness: a step that a kill lost is computed again from the restored state, and its loss has to come out the same, digit
for digit. What is compared is the text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

from strongroom.errors import UsageError

MAX_LINE: Final = 4096  # characters of a line that are looked at
_NUMBER: Final = r"[-+]?(?:\d+\.?\d*(?:e[-+]?\d+)?|\.\d+(?:e[-+]?\d+)?|nan|inf(?:inity)?)"
# "step 12 loss 0.345", "Step: 12/900 - loss: 0.345", "global_step=12 lr=1e-3 train_loss=0.345"
PATTERN: Final = (
    rf"(?i)(?<![a-z])step\W{{0,3}}(?P<step>\d{{1,15}})(?!\d).{{0,200}}?(?<![a-z])loss\W{{0,3}}?(?P<loss>{_NUMBER})"
)


@dataclass(frozen=True, slots=True)
class Loss:
    """What a line said.

    Attributes:
        start: of the program, from 1.
        time: seconds of the trace.
        text: the loss as it was printed.
        again: whether an earlier start printed this step too.
    """

    start: int
    time: float
    step: int
    text: str
    again: bool

    @property
    def value(self) -> float:
        return float(self.text)


def pattern(text: str = PATTERN) -> re.Pattern[str]:
    """A regular expression that finds the step and the loss in a line: by groups of these names, else the first two.

    Raises:
        UsageError: it is none, or has not both.
    """
    try:
        compiled = re.compile(text)
    except re.error as error:
        raise UsageError(f"loss: {error}, wanted a regular expression") from None
    if not {"step", "loss"} <= compiled.groupindex.keys() and compiled.groups < 2:
        raise UsageError(
            f"loss: {compiled.groups} groups, wanted two: the step and the loss",
            hint=r"such as 'step (\d+).*loss (\S+)'",
        )
    return compiled


@dataclass
class Losses:
    """The losses of a program that is started again and again.

    Of several lines about a step in one start the first counts.

    Attributes:
        printed: every loss, in the order in which they were read.
        differing: of each step that was printed again with another loss, the first text and the other one.
    """

    expression: re.Pattern[str] = field(default_factory=pattern)
    printed: list[Loss] = field(default_factory=list)
    differing: dict[int, tuple[str, str]] = field(default_factory=dict)
    _first: dict[int, str] = field(default_factory=dict)
    _last_start: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        named = {"step", "loss"} <= self.expression.groupindex.keys()
        self._groups: tuple[str | int, str | int] = ("step", "loss") if named else (1, 2)

    def read(self, line: str, *, start: int, time: float) -> Loss | None:
        """The loss in a line, if it has one."""
        found = self.expression.search(line[:MAX_LINE])
        if found is None:
            return None
        first, text = found.group(*self._groups)
        try:
            step, _ = int(first), float(text)
        except (TypeError, ValueError):  # a group that took no part, or took something else
            return None
        earlier = self._last_start.get(step)
        if earlier == start:
            return None
        self._last_start[step] = start
        loss = Loss(start, time, step, text, earlier is not None)
        self.printed.append(loss)
        if self._first.setdefault(step, text) != text:
            self.differing.setdefault(step, (self._first[step], text))
        return loss

    @property
    def again(self) -> int:
        """How many losses were of steps that an earlier start had printed."""
        return sum(loss.again for loss in self.printed)

    @property
    def repeated(self) -> int:
        """How many steps were printed by more than one start."""
        return len({loss.step for loss in self.printed if loss.again})

    def curve(self) -> dict[int, str]:
        """The loss of each step as it was printed first, by rising step."""
        return dict(sorted(self._first.items()))
