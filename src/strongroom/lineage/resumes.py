"""How often a training came back from its mirror, and where it went on: a record that every commit hands on.

Pure: the mirror keeps it, a statement quotes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from strongroom.attest.binding import JSON
from strongroom.errors import FormatError
from strongroom.sealed import Root

MAX_LISTED: Final = 256
_MAX_NUMBER: Final = 2**53 - 1  # what every reader of JSON reads alike


@dataclass(frozen=True, slots=True)
class Resume:
    """One return.

    Attributes:
        time: seconds since 1970, by the clock of whoever trained.
        step: of the commit that was restored.
        root: of the mirror then.
    """

    time: int
    step: int
    root: str

    @classmethod
    def at(cls, time: float, step: int, root: Root | None) -> Resume:
        """One that fails no training: numbers beyond what JSON holds are cut off. Every commit has a root."""
        return cls(min(max(int(time), 0), _MAX_NUMBER), min(step, _MAX_NUMBER), str(root))

    def __post_init__(self) -> None:
        """Raises FormatError for anything else than that."""
        for what, number in (("time", self.time), ("step", self.step)):
            if type(number) is not int or not 0 <= number <= _MAX_NUMBER:
                raise FormatError(f"resume: {what}, wanted a number from 0 to 2^53 - 1")
        if not isinstance(self.root, str):
            raise FormatError("resume: root, wanted a string")
        Root.parse(self.root)


@dataclass(frozen=True, slots=True)
class Resumes:
    """All returns of a training, the oldest first.

    Attributes:
        listed: the newest of them, at most 256.
        earlier: how many there were before those.
    """

    listed: tuple[Resume, ...] = ()
    earlier: int = 0

    @property
    def count(self) -> int:
        return self.earlier + len(self.listed)

    def then(self, resume: Resume) -> Resumes:
        """The record after one more."""
        listed = (*self.listed, resume)
        over = max(0, len(listed) - MAX_LISTED)
        return Resumes(listed[over:], self.earlier + over)

    def to_wire(self) -> dict[str, JSON]:
        return {"earlier": self.earlier, "listed": [[one.time, one.step, one.root] for one in self.listed]}

    @classmethod
    def from_wire(cls, wire: object) -> Resumes:
        """Raises FormatError for what `to_wire` does not make."""
        if not isinstance(wire, dict) or wire.keys() != {"earlier", "listed"}:
            raise FormatError("resumes: wanted an object of earlier and listed")
        earlier, listed = wire["earlier"], wire["listed"]
        if type(earlier) is not int or not 0 <= earlier <= _MAX_NUMBER:
            raise FormatError("resumes: earlier, wanted a number from 0 to 2^53 - 1")
        if not isinstance(listed, list) or len(listed) > MAX_LISTED:
            raise FormatError(f"resumes: listed, wanted a list of at most {MAX_LISTED}")
        if earlier and len(listed) < MAX_LISTED:
            raise FormatError(f"resumes: {earlier} earlier ones and {len(listed)} listed, wanted {MAX_LISTED} listed")
        resumes = []
        for one in listed:
            if not isinstance(one, list) or len(one) != 3:
                raise FormatError("resumes: one listed, wanted time, step and root")
            resumes.append(Resume(*one))
        return cls(tuple(resumes), earlier)
