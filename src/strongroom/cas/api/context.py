"""What the handlers of one CAS share."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from strongroom.cas.authority import Authority
from strongroom.cas.completion import Completion
from strongroom.cas.log_note import WitnessKey
from strongroom.cas.store import Store

Clock = Callable[[], float]


@dataclass(frozen=True)
class Context:
    """One CAS.

    Attributes:
        witnesses: whose cosignatures of the log's head it keeps.
        clock: seconds since 1970.
    """

    store: Store
    authority: Authority
    completion: Completion
    witnesses: Sequence[WitnessKey]
    clock: Clock

    def now(self) -> int:
        return int(self.clock())

    def utc(self) -> dt.datetime:
        return dt.datetime.fromtimestamp(self.clock(), dt.UTC)
