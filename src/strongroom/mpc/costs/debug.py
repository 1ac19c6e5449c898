"""`debug`: both servers' shares at once, to find where numbers leave their range and how far they are from floats.

Whoever debugs sees every secret. So this works only where there is none: where all parties run in one process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import ArrayLike

from strongroom.errors import MpcError, UsageError
from strongroom.mpc.beside import Beside
from strongroom.mpc.costs.findings import Opened, Report
from strongroom.mpc.costs.shadow import Floats, Shadows
from strongroom.mpc.costs.where import Modules
from strongroom.mpc.party import Party
from strongroom.mpc.ring import Words
from strongroom.mpc.shared import Shared
from strongroom.mpc.tensor.world import current


@contextmanager
def debug(*, strict: bool = False) -> Iterator[Report]:
    """Look at every value of the program, in each party's thread::

        def program():
            with mpc.debug() as report:
                model(x)
            return report

    Whoever runs this sees every secret: it is for parties in one process, and refuses any other.

    Args:
        strict: raise where a value first leaves what its opening has room for.

    Returns:
        a report, the same object for all parties; complete when P0 is done.

    Raises:
        UsageError: there is no world here, its parties are not in one process, or something watches them already.
        MpcError: with `strict`, a value has wrapped.
    """
    party = current().party
    if party.meter is not None:
        raise UsageError("debug: something watches this party already", hint="one of cost, profile and debug at a time")
    beside = party.beside
    if beside is None:
        raise UsageError(
            "debug: this party meets the others over a network, and would show them its shares",
            hint="debug shows every secret: use it in `with mpc.local_world():`, on data that is none",
        )
    number = party.transcript.count
    report = beside.same(number, lambda: Report(party.settings))
    with Modules() as modules:
        eye = _Eye(party, beside, modules, report, strict=strict)
        party.meter = eye
        try:
            if party.is_dealer:
                yield report
            else:
                with Shadows(eye.add, beside.given, report.knows, eye.see):
                    yield report
        except BaseException:
            if not party.first and not party.is_dealer:
                beside.show("an error", None)
            raise
        finally:
            party.meter = None


class _Eye:
    """A party's meter: at P1 it shows shares, at P0 it looks at values."""

    def __init__(self, party: Party, beside: Beside, modules: Modules, report: Report, *, strict: bool) -> None:
        self._party, self._beside, self._modules, self._report = party, beside, modules, report
        self._strict = strict
        self._name, self._facts = "", tuple[object, ...]()
        self._before, self._sent_before = self._sent_so_far(), report.sent

    def _sent_so_far(self) -> int:
        return sum(peer.sent for peer in self._party.peers.values())

    def add(self, words: Words) -> Words | None:
        """The value whose share this is, at P0."""
        if not self._party.first:
            self._beside.show("a share", np.array(words))
            return None
        self._report.sent = self._sent_before + self._sent_so_far() - self._before
        other: Words = self._beside.look("a share", self._party.settings.seconds)
        return np.asarray(words + other)

    def see(self, operator: str, value: Floats, wanted: Floats, share: Shared) -> None:
        self._report.saw(self._modules.place(), operator, value, wanted)

    # Of a party

    def began(self, name: str, facts: Sequence[object]) -> None:
        self._name, self._facts = name, tuple(facts)

    def ended(self) -> None:
        pass

    def gave(self, values: ArrayLike) -> None:
        self._beside.given.append(np.array(values, np.float64))

    def compared(self, count: int) -> None:
        pass

    def multiplied(self, product: Callable[[Words, Words], Words], a: Words, b: Words) -> None:
        pass

    def opening(self, words: Words, width: int, offset: int) -> None:
        value = self.add(words)
        if value is None or not value.size:
            return
        limit = float(1 << (width - 2 if offset else width - 1))
        magnitudes = np.abs(value.view(np.int64).astype(np.float64))
        beyond = magnitudes >= limit
        frac = next((fact for fact in self._facts if isinstance(fact, int)), 0)
        wraps, largest = int(beyond.sum()), float(magnitudes.max())
        place = self._modules.place()
        self._report.opened(Opened(place, self._name, self._facts, frac, width, value.size, largest, limit, wraps))
        if wraps and self._strict:
            raise MpcError(
                f"{self._name}: {wraps} of {value.size} values wrap: the largest is {largest / 2**frac:.6g}, "
                f"wanted below {limit / 2**frac:.6g}; in {place.label}, at {place.where}",
                hint="raise the bound in the settings, or scale the values",
            )
