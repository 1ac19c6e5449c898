"""What was measured into a trust domain's run-time registers: the firmware's log, and what Strongroom adds to it.

The log is the host's to write: it proves nothing but by its replay to the registers of a quote (`replay.py`).

Sources: the UEFI specification 2.10, section 38.4.1 (in the field of a TPM's log for the PCR stands 0 for MRTD, then 1
to 4 for RTMR0 to 3); ACPI 6.5, the table CCEL, whose area Linux shows as `/sys/firmware/acpi/tables/data/CCEL`; TCG PC
Client Platform Firmware Profile 1.06, section 10.4.2.2 (tagged events).

An event of Strongroom's own is one more of the same form, after the firmware's: register RTMR3, type EV_EVENT_TAG, the
SHA-384 digest that the register was extended by, and as its data the tag 0x53724D31 u32, length u32, and a word that
says what was measured: ``program`` or ``boot configuration``. The word counts for nothing; the digest does.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from strongroom.attest.claims import REGISTER_SIZE
from strongroom.attest.parse.event_log import NO_ACTION, Event, parse_log_area, replay
from strongroom.crypto import digest
from strongroom.errors import FormatError, UsageError

BANK: Final = "sha384"
RTMRS: Final = ("rtmr0", "rtmr1", "rtmr2", "rtmr3")
EXTENDED: Final = 4  # RTMR3, which firmware and kernel leave alone

EVENT_TAG: Final = 0x6
TAG: Final = 0x53724D31
_SHA384: Final = 0x000C
_MAX_WORD: Final = 64
_EVENT = struct.Struct("<IIIH48sI")  # register, type, number of digests, algorithm, digest, size of the data
_TAGGED = struct.Struct("<II")


class Extension(NamedTuple):
    """One thing that was measured into RTMR3, and the digest that it was extended by."""

    what: str
    digest: bytes

    def to_bytes(self) -> bytes:
        """The event, to be put after a log that has digests of SHA-384 alone, as that of a trust domain does.

        Raises:
            UsageError: the digest is not 48 bytes, or the word not 1 to 64 printable characters of ASCII.
        """
        word = self.what.encode("ascii", "replace")
        if len(self.digest) != REGISTER_SIZE:
            raise UsageError(f"extension: a digest of {len(self.digest)} bytes, wanted {REGISTER_SIZE}")
        if not 1 <= len(word) <= _MAX_WORD or not (self.what.isascii() and self.what.isprintable()):
            raise UsageError(f"extension: got {self.what[:80]!r}, wanted 1 to {_MAX_WORD} printable characters")
        data = _TAGGED.pack(TAG, len(word)) + word
        return _EVENT.pack(EXTENDED, EVENT_TAG, 1, _SHA384, self.digest, len(data)) + data


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


def extensions(events: Sequence[Event]) -> tuple[Extension, ...]:
    """What was measured into RTMR3, by whomever; the word is empty where the event has none."""
    found = []
    for event in events:
        if event.pcr == EXTENDED and event.kind != NO_ACTION:
            found.append(Extension(_word(event), event.digests.get(BANK, b"")))
    return tuple(found)


def _word(event: Event) -> str:
    if event.kind != EVENT_TAG or len(event.data) < _TAGGED.size:
        return ""
    tag, size = _TAGGED.unpack_from(event.data)
    word = event.data[_TAGGED.size :]
    if tag != TAG or size != len(word) or size > _MAX_WORD:
        return ""
    text = word.decode("ascii", "replace")
    return text if text.isascii() and text.isprintable() else ""


def extended(registers: Mapping[str, bytes], added: Sequence[Extension]) -> dict[str, bytes]:
    """Registers after further extensions of RTMR3."""
    value = registers["rtmr3"]
    for each in added:
        value = digest(value, each.digest, algorithm=BANK)
    return {**registers, "rtmr3": value}
