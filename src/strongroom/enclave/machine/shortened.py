"""Event logs made small enough for evidence: digests replay, and the words beside them are for people only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from strongroom.attest.parse.event_log import NO_ACTION, Event, parse_log_area
from strongroom.attest.parse.launched import empty_log, event_bytes
from strongroom.enclave.machine.log import MAX_LOG
from strongroom.errors import EnclaveError

_LONG = 256  # bytes that an event says beside its digests: longer than a program's


def shortened(log: bytes, *, keep: Callable[[Event], bool] = lambda event: True) -> bytes:
    """A log that replays to the same registers, with at most `MAX_LOG` bytes.

    What an event says at length is left out where the log is longer, such as a firmware's tables: who reads it does
    not see it, and the digest stands for it as before.

    Args:
        keep: which events to keep, of all that are measured.

    Raises:
        EnclaveError: it is too long even so.
    """
    events, end = parse_log_area(log)
    kept = [event for event in events if event.kind == NO_ACTION or keep(event)]
    if len(kept) == len(events) and end <= MAX_LOG:
        return log[:end]
    whole = _written(kept)
    if len(whole) > MAX_LOG:
        whole = _written([replace(event, data=b"") if len(event.data) > _LONG else event for event in kept])
    if len(whole) > MAX_LOG:
        raise EnclaveError(
            f"event log: {len(whole)} bytes, wanted at most {MAX_LOG}",
            hint="too many programs since the machine started: restart it",
        )
    return whole


def _written(events: list[Event]) -> bytes:
    banks = tuple(events[0].digests) if events else ()
    return empty_log(banks) + b"".join(map(event_bytes, events))
