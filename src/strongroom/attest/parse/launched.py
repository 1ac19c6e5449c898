"""What a launcher writes into a machine's event log for each program that it starts (docs/spec/evidence.md).

One more event of the firmware's log, of the same form: type EV_EVENT_TAG, and as its data the tag 0x53725031 u32, the
length 48 u32, and the program's measurement, 48 bytes. In each bank the register is extended by the digest of that
data, so that whoever replays the log to the register knows which programs were started, and in which order.

- In a trust domain (TDX) it is RTMR3, which firmware and kernel leave alone: 4 in the log.
- In a TPM it is PCR 13, a static register, which nothing but a reset of the TPM sets back. Else only systemd's boot
  stub extends it (by system extensions), before the kernel runs, and logs that.

Sources: TCG PC Client Platform Firmware Profile 1.06, sections 10.2.2 (TCG_PCR_EVENT2) and 10.4.2.2 (tagged events);
the UEFI specification 2.10, section 38.4.1 (registers of a trust domain); UAPI group, "Linux TPM PCR Registry".
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

from strongroom.attest.parse.event_log import NO_ACTION, Event
from strongroom.attest.parse.tpm import DIGESTS
from strongroom.crypto import digest

PROGRAM_RTMR, PROGRAM_PCR = 4, 13
QUOTED_PCRS = (*range(10), 12, PROGRAM_PCR, 14)
"""What a launcher quotes: the boot, what only the boot extends, and the programs. Others change while a system runs."""
TAG = 0x53725031

_EVENT_TAG = 0x6
_SIZE = 48
_TAGGED = struct.Struct("<II")
_LONG = _TAGGED.size + _SIZE
_IDENTIFIERS: Mapping[str, int] = {name: identifier for identifier, (name, _) in DIGESTS.items()}


def program_event(register: int, program: str, banks: Sequence[str]) -> Event:
    """The event of a program, by its measurement, for a log with digests of these banks."""
    data = _TAGGED.pack(TAG, _SIZE) + bytes.fromhex(program)
    return Event(register, _EVENT_TAG, {bank: digest(data, algorithm=bank) for bank in banks}, data)


def programs(events: Sequence[Event], register: int, bank: str) -> tuple[str, ...]:
    """The measurements of the programs that were measured into a register, in that order.

    In place of what is no program's event, or whose data is not what was digested, stands ``event:`` and its digest.
    """
    found = []
    for event in events:
        if event.pcr == register and event.kind != NO_ACTION:
            ours = event.kind == _EVENT_TAG and event.said(bank) == event.data and len(event.data) == _LONG
            if ours and _TAGGED.unpack_from(event.data) == (TAG, _SIZE):
                found.append(event.data[_TAGGED.size :].hex())
            else:
                found.append(f"event:{event.digests.get(bank, b'').hex()}")
    return tuple(found)


def event_bytes(event: Event) -> bytes:
    """A TCG_PCR_EVENT2, to be put after a log with digests of the same banks, in the same order."""
    digests = b"".join(struct.pack("<H", _IDENTIFIERS[bank]) + value for bank, value in event.digests.items())
    head = struct.pack("<III", event.pcr, event.kind, len(event.digests))
    return head + digests + struct.pack("<I", len(event.data)) + event.data


def empty_log(banks: Sequence[str]) -> bytes:
    """A log without events, in the place of a firmware's that cannot be read: it says only how to read what follows."""
    algorithms = b"".join(struct.pack("<HH", _IDENTIFIERS[bank], dict(DIGESTS.values())[bank]) for bank in banks)
    # 10.4.5.1: platform class client, version 2.0, errata 106, UINTN of 64 bits, no vendor information.
    spec = b"Spec ID Event03\0" + struct.pack("<IBBBBI", 0, 0, 2, 106, 2, len(banks)) + algorithms + b"\0"
    return struct.pack("<II20sI", 0, NO_ACTION, bytes(20), len(spec)) + spec
