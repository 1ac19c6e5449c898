"""What `debug` found: ranges, wraps and errors, and the settings that follow from them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import ceil, log2

import numpy as np
from numpy.typing import NDArray

from strongroom.mpc.costs.dry import DryMeter, DryParty
from strongroom.mpc.costs.figures import Place, count, table
from strongroom.mpc.costs.where import Modules
from strongroom.mpc.functions.roots import LOWEST
from strongroom.mpc.party import P0
from strongroom.mpc.protocols.compare import is_negative
from strongroom.mpc.protocols.relu import relu
from strongroom.mpc.protocols.truncate import truncate
from strongroom.mpc.ring import WIDTH, Settings
from strongroom.mpc.shared import Shared

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Opened:
    """Values that were opened under masks, for a truncation or a comparison.

    Attributes:
        name, facts: of the operation.
        frac: fractional bits of the values.
        width: bits of the opening.
        largest: magnitude, in units of the ring; it must be below `limit`.
        wraps: how many were not.
    """

    place: Place
    name: str
    facts: tuple[object, ...]
    frac: int
    width: int
    elements: int
    largest: float
    limit: float
    wraps: int

    def to_spare(self, settings: Settings) -> int:
        """Bits beyond what the settings give a value of as many fractional bits.

        More than zero for a difference or a sum of values, less where a function knows a smaller range.
        """
        return int(log2(self.limit)) - self.frac - settings.bound


@dataclass
class Seen:
    """The results of one operator in one module.

    Attributes:
        low, high: the smallest and the largest value, as floats have it.
        error, total: the largest difference from that, and the sum of all.
        beyond: how many values are not below the settings' bound.
    """

    label: str
    operator: str
    where: str
    elements: int = 0
    low: float = float("inf")
    high: float = float("-inf")
    error: float = 0.0
    total: float = 0.0
    beyond: int = 0

    @property
    def mean_error(self) -> float:
        return self.total / max(1, self.elements)


class Report:
    """What was seen between the beginning and the end of `debug`.

    Attributes:
        settings: of the parties.
        layers: results, by module and operator, in order.
        largest: the magnitude of any value of the program, shared ones too.
        openings: every one, in order.
        sent: bytes that P0 sent.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.layers: list[Seen] = []
        self.openings: list[Opened] = []
        self.largest = 0.0
        self.sent = 0
        self._rows: dict[tuple[str, str, str], Seen] = {}

    def knows(self, values: Floats) -> None:
        """Values that operators work on."""
        self.largest = max(self.largest, float(np.abs(values).max(initial=0.0)))

    def saw(self, place: Place, operator: str, value: Floats, wanted: Floats) -> None:
        """A result and what it should be."""
        if not value.size:
            return
        self.knows(wanted)
        key = place.label, operator, place.where
        if key not in self._rows:
            self._rows[key] = Seen(place.label, operator, place.where)
            self.layers.append(self._rows[key])
        row, errors = self._rows[key], np.abs(value - wanted)
        row.elements += value.size
        row.low, row.high = min(row.low, float(wanted.min())), max(row.high, float(wanted.max()))
        row.error, row.total = max(row.error, float(errors.max())), row.total + float(errors.sum())
        row.beyond += int((np.abs(wanted) >= 2.0**self.settings.bound).sum())

    def opened(self, opening: Opened) -> None:
        self.openings.append(opening)

    @property
    def wraps(self) -> int:
        """How many values had no room where they were opened: their results are wrong."""
        return sum(each.wraps for each in self.openings)

    @property
    def first_wrap(self) -> Opened | None:
        """The first opening that had no room."""
        return next((each for each in self.openings if each.wraps), None)

    @property
    def max_error(self) -> float:
        """The largest difference from floats."""
        return max((each.error for each in self.layers), default=0.0)

    def table(self) -> str:
        """Each module's results, and what went wrong first."""
        bound = 2.0**self.settings.bound
        head = "", "operator", "elements", "smallest", "largest", "of bound", "max error", "mean error", "wraps"
        wraps = self._wraps()
        rows = [
            [
                each.label,
                each.operator,
                count(each.elements),
                f"{each.low:.4g}",
                f"{each.high:.4g}",
                f"{100 * max(abs(each.low), abs(each.high)) / bound:.3g} %",
                f"{each.error:.2g}",
                f"{each.mean_error:.2g}",
                str(next(wraps[each.label])) if each.label in wraps else "0",
            ]
            for each in self.layers
        ]
        return "\n".join([table(head, rows), *self._verdict()])

    def __str__(self) -> str:
        return self.table()

    def _wraps(self) -> dict[str, Iterator[int]]:
        """How many values wrapped in each module: shown in its first row."""
        found: dict[str, int] = {}
        for each in self.openings:
            found[each.place.label] = found.get(each.place.label, 0) + each.wraps

        def once(value: int) -> Iterator[int]:
            yield value
            while True:
                yield 0

        return {label: once(value) for label, value in found.items()}

    def _verdict(self) -> list[str]:
        first, lines = self.first_wrap, list[str]()
        if first is not None:
            scale = 2.0**-first.frac
            lines.append(
                f"first wrap: {first.name} in {first.place.label}, at {first.place.where}: "
                f"{first.wraps} of {first.elements} values, the largest {first.largest * scale:.6g}, "
                f"wanted below {first.limit * scale:.6g}"
            )
        proposed = self.proposed_settings()
        saved = self.saving(proposed)
        change = f"saves {100 * saved:.0f} % of the servers' bytes" if saved > 0 else f"costs {-100 * saved:.0f} % more"
        if proposed == self.settings:
            lines.append(f"bound 2^{proposed.bound} fits")
        else:
            lines.append(f"bound 2^{proposed.bound} would do instead of 2^{self.settings.bound}: {change}")
        return lines

    def proposed_settings(self, margin: float = 2.0, *, error: float | None = None) -> Settings:
        """The smallest bound that leaves `margin` times the largest value seen, for these inputs.

        Others may have larger values, and the ranges of functions depend on the bound: run it again with them, on more
        inputs. Where functions are used the bound stays at 2^12, which roots need.

        Args:
            margin: at least 1.
            error: wanted instead of the largest one seen: more fractional bits halve it each, as far as there is room.
        """
        largest = max(self.largest, 2.0**-self.settings.frac)
        for each in self.openings:
            if each.to_spare(self.settings) == 0:
                largest = max(largest, each.largest * 2.0**-each.frac)
        bound = max(1, ceil(log2(largest * margin)))
        if any(each.to_spare(self.settings) < 0 for each in self.openings):
            bound = max(bound, min(self.settings.bound, -LOWEST))
        frac = self.settings.frac
        if error is not None and self.max_error > error:
            frac += ceil(log2(self.max_error / error))
        frac = min(frac, (WIDTH - 2 - bound) // 2, 30)
        return replace(self.settings, bound=min(bound, WIDTH - 2 - 2 * frac), frac=frac)

    def saving(self, settings: Settings) -> float:
        """What part of the bytes that P0 sent other settings would save, counted as `cost` counts."""
        if not self.sent:
            return 0.0
        less = 0
        delta = settings.bound - self.settings.bound
        for each in self.openings:
            if each.to_spare(self.settings) >= 0 and each.name in _OPENINGS and delta:
                less += self._sent_by(each, each.width) - self._sent_by(each, each.width + delta)
        return less / self.sent

    def _sent_by(self, opening: Opened, width: int) -> int:
        """Bytes that P0 sends for such an operation with another width."""
        with Modules() as modules:
            party = DryParty(P0, self.settings, DryMeter(P0, modules))
            _OPENINGS[opening.name](Shared.of_shape(party, (opening.elements,), opening.frac), opening.facts, width)
            return sum(peer.sent for peer in party.peers.values())


def _bits(facts: tuple[object, ...]) -> int:
    bits = facts[2]
    assert isinstance(bits, int)  # noqa: S101  # so these operations enter themselves
    return bits


_OPENINGS = {
    "truncate": lambda x, facts, width: truncate(x, _bits(facts), width=width),
    "relu": lambda x, facts, width: relu(x, _bits(facts), width=width),
    "is negative": lambda x, facts, width: is_negative(x, width=width),
}
