"""What an operation costs, and sums of that by module, by line and in all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Literal

PARTIES = 3
Three = tuple[int, int, int]  # of P0, P1 and the dealer
_NONE: Three = (0, 0, 0)


def _sum(a: Three, b: Three) -> Three:
    return (a[0] + b[0], a[1] + b[1], a[2] + b[2])


@dataclass(frozen=True)
class Figures:
    """What is exact of a cost: it follows from the program alone.

    Attributes:
        rounds: exchanges between the servers.
        sent: bytes of payload that each party sends, to both others; the dealer's go to P1.
        frames: that each party sends, a header of 32 bytes each.
        multiplied: multiplications in the ring, of matrices and convolutions element by element, at each party.
        compared: elements that are compared, once for each comparison.
        drawn: bytes of key streams that each party draws.
    """

    rounds: int = 0
    sent: Three = _NONE
    frames: Three = _NONE
    multiplied: Three = _NONE
    compared: int = 0
    drawn: Three = _NONE

    def __add__(self, other: Figures) -> Figures:
        return Figures(
            self.rounds + other.rounds,
            _sum(self.sent, other.sent),
            _sum(self.frames, other.frames),
            _sum(self.multiplied, other.multiplied),
            self.compared + other.compared,
            _sum(self.drawn, other.drawn),
        )

    @property
    def online(self) -> int:
        """Bytes that the server which sends more sends."""
        return max(self.sent[:2])

    @property
    def dealt(self) -> int:
        """Bytes that the dealer sends."""
        return self.sent[2]

    @property
    def products(self) -> int:
        """Multiplications in the ring at the server that has more of them."""
        return max(self.multiplied[:2])

    def to_json(self) -> dict[str, object]:
        return {each.name: getattr(self, each.name) for each in fields(self)}


@dataclass(frozen=True)
class Place:
    """Which part of the program an operation belongs to.

    Attributes:
        module: the path of names from the outermost module that is running, empty outside of modules.
        kind: the module's class.
        file, line: of the user's program.
    """

    module: str = ""
    kind: str = ""
    file: str = ""
    line: int = 0

    @property
    def where(self) -> str:
        return f"{self.file}:{self.line}"

    @property
    def label(self) -> str:
        return f"{self.module} ({self.kind})" if self.kind else "outside of modules"


@dataclass(frozen=True)
class Operation:
    """One operation of a program.

    Attributes:
        name: as in the transcript.
        place: where it is.
        figures: what it costs.
        seconds: how long it takes, by network or by what was measured; from the end of the one before it.
    """

    name: str
    place: Place
    figures: Figures
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """The sum of some operations.

    Attributes:
        label: what they have in common.
        calls: how many they are.
    """

    label: str
    calls: int
    figures: Figures
    seconds: dict[str, float]

    def to_json(self) -> dict[str, object]:
        return {"label": self.label, "operations": self.calls, **self.figures.to_json(), "seconds": self.seconds}


def total(label: str, operations: Iterable[Operation]) -> Row:
    figures, seconds, calls = Figures(), dict[str, float](), 0
    for each in operations:
        figures += each.figures
        calls += 1
        for name, value in each.seconds.items():
            seconds[name] = seconds.get(name, 0.0) + value
    return Row(label, calls, figures, seconds)


def grouped(operations: Iterable[Operation], by: Callable[[Operation], str]) -> list[Row]:
    """Sums, in the order in which their first operations ran."""
    groups: dict[str, list[Operation]] = {}
    for each in operations:
        groups.setdefault(by(each), []).append(each)
    return [total(label, members) for label, members in groups.items()]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Plain text: the first column to the left, all others to the right."""
    lines = [list(head), *(list(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    aligned = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines]
    aligned.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(line.rstrip() for line in aligned)


def cells(row: Row) -> list[str]:
    """A row of a table under `HEAD`, and then one column for each of its seconds."""
    f = row.figures
    exact = [str(f.rounds), *map(size, f.sent), count(f.products), count(f.compared)]
    return [row.label, *exact, *map(duration, row.seconds.values())]


HEAD = ("", "rounds", "P0 sends", "P1 sends", "dealt", "products", "compared")


def size(value: int) -> str:
    """Bytes, in decimal units."""
    return f"{count(value)}B" if value >= 1000 else f"{value} B" if value else "0"


def count(value: int) -> str:
    scaled = float(value)
    for unit in ("", "k", "M", "G"):
        if scaled < 1000:
            return f"{value}" if not unit else f"{scaled:.3g} {unit}"
        scaled /= 1000
    return f"{scaled:.3g} T"


def duration(seconds: float) -> str:
    if not seconds:
        return "0"
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


By = Literal["module", "line", "operation"]


class Summed:
    """What has operations, and their sums by whatever they are told apart by."""

    operations: Sequence[Operation]

    @property
    def total(self) -> Row:
        return total("total", self.operations)

    @property
    def by_module(self) -> list[Row]:
        return grouped(self.operations, lambda each: each.place.label)

    @property
    def by_line(self) -> list[Row]:
        return grouped(self.operations, lambda each: each.place.where)

    @property
    def by_operation(self) -> list[Row]:
        return grouped(self.operations, lambda each: each.name)

    def sums(self, by: By) -> list[Row]:
        return {"module": self.by_module, "line": self.by_line, "operation": self.by_operation}[by]
