"""What was measured into a trust domain's run-time registers: the firmware's log, and the programs after it.

The log is the host's to write: it proves nothing but by its replay to the registers of a quote (`verify/launched.py`).

Sources: the UEFI specification 2.10, section 38.4.1 (in the field of a TPM's log for the PCR stands 0 for MRTD, then 1
to 4 for RTMR0 to 3); ACPI 6.5, the table CCEL, whose area Linux shows as `/sys/firmware/acpi/tables/data/CCEL`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from strongroom.attest.claims import REGISTER_SIZE
from strongroom.attest.parse.event_log import NO_ACTION, Event, parse_log_area, replay
from strongroom.errors import FormatError

BANK: Final = "sha384"
RTMRS: Final = ("rtmr0", "rtmr1", "rtmr2", "rtmr3")


def parse_td_log(raw: bytes) -> tuple[Event, ...]:
    """The events of a trust domain's log; it may have the padding of the firmware's area after the last.

    Raises:
        FormatError: it is no such log: not of the TCG's form, without digests of SHA-384, or of other registers.
    """
    events, _ = parse_log_area(raw)
    for event in events:
        if event.kind != NO_ACTION and not 1 <= event.pcr <= len(RTMRS):
            raise FormatError(f"event log: got register {event.pcr}, wanted 1 to {len(RTMRS)}, for RTMR0 to 3")
    return events


def unpadded(raw: bytes) -> bytes:
    """A log up to its last event, so that others can be put after it. Raises as `parse_td_log` does."""
    parse_td_log(raw)
    return raw[: parse_log_area(raw)[1]]


def replayed(events: Sequence[Event]) -> dict[str, bytes]:
    """The values that RTMR0 to 3 come to; of one that nothing was measured into, zeros.

    Raises:
        FormatError: an event has no digest of SHA-384.
    """
    values = replay([event for event in events if event.kind != NO_ACTION], BANK) if events else {}
    return {name: values.get(index, bytes(REGISTER_SIZE)) for index, name in enumerate(RTMRS, 1)}
