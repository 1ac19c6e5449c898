"""Parse the log in which a PC's firmware and boot loader say what they measured into a TPM, and replay it.

The log is the host's to write: only its digests can be checked, by replaying them to the values that a TPM quotes. So
what an event says in words counts only where the words are what was digested (`Event.said`), and nothing vouches for
an event's type, and so for its `name`.

Invariants:

- Lengths are capped before anything is taken, and the log parses only if its events fill it.
- Every event has one digest for each algorithm that the log's first event names, no other, and none twice.

Source: Trusted Computing Group, "TCG PC Client Platform Firmware Profile Specification", version 1.06, sections 10.2
(the crypto-agile log), 10.4 (event types) and 10.4.5 (the first events). All integers are little-endian. Logs of TPM
1.2, which have SHA-1 alone, do not parse.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from strongroom.attest.parse.tpm import DIGESTS, MAX_EVENT_LOG
from strongroom.crypto import digest
from strongroom.errors import FormatError

MAX_EVENTS = 8192
MAX_LOG_AREA = 1 << 20

_SPEC_ID = b"Spec ID Event03\0"
_LOCALITY = b"StartupLocality\0"
# pcrIndex u32, eventType u32, SHA-1 digest[20], eventSize u32: the first event has the form of the log of TPM 1.2.
_FIRST = struct.Struct("<II20sI")
# platformClass u32, specVersionMinor u8, specVersionMajor u8, specErrata u8, uintnSize u8, numberOfAlgorithms u32.
_SPEC = struct.Struct("<IBBBBI")
_EVENT = struct.Struct("<III")  # pcrIndex, eventType, number of digests
_U16, _U32 = struct.Struct("<H"), struct.Struct("<I")
_PCRS = 32

NO_ACTION = 0x3
# 10.4.1, table 27.
EVENT_TYPES: Mapping[int, str] = {
    0x0: "EV_PREBOOT_CERT",
    0x1: "EV_POST_CODE",
    0x3: "EV_NO_ACTION",
    0x4: "EV_SEPARATOR",
    0x5: "EV_ACTION",
    0x6: "EV_EVENT_TAG",
    0x7: "EV_S_CRTM_CONTENTS",
    0x8: "EV_S_CRTM_VERSION",
    0x9: "EV_CPU_MICROCODE",
    0xA: "EV_PLATFORM_CONFIG_FLAGS",
    0xB: "EV_TABLE_OF_DEVICES",
    0xC: "EV_COMPACT_HASH",
    0xD: "EV_IPL",
    0xE: "EV_IPL_PARTITION_DATA",
    0xF: "EV_NONHOST_CODE",
    0x10: "EV_NONHOST_CONFIG",
    0x11: "EV_NONHOST_INFO",
    0x12: "EV_OMIT_BOOT_DEVICE_EVENTS",
    0x13: "EV_POST_CODE2",
    0x80000001: "EV_EFI_VARIABLE_DRIVER_CONFIG",
    0x80000002: "EV_EFI_VARIABLE_BOOT",
    0x80000003: "EV_EFI_BOOT_SERVICES_APPLICATION",
    0x80000004: "EV_EFI_BOOT_SERVICES_DRIVER",
    0x80000005: "EV_EFI_RUNTIME_SERVICES_DRIVER",
    0x80000006: "EV_EFI_GPT_EVENT",
    0x80000007: "EV_EFI_ACTION",
    0x80000008: "EV_EFI_PLATFORM_FIRMWARE_BLOB",
    0x80000009: "EV_EFI_HANDOFF_TABLES",
    0x8000000A: "EV_EFI_PLATFORM_FIRMWARE_BLOB2",
    0x8000000B: "EV_EFI_HANDOFF_TABLES2",
    0x8000000C: "EV_EFI_VARIABLE_BOOT2",
    0x8000000D: "EV_EFI_GPT_EVENT2",
    0x80000010: "EV_EFI_HCRTM_EVENT",
    0x800000E0: "EV_EFI_VARIABLE_AUTHORITY",
    0x800000E1: "EV_EFI_SPDM_FIRMWARE_BLOB",
    0x800000E2: "EV_EFI_SPDM_FIRMWARE_CONFIG",
    0x800000E3: "EV_EFI_SPDM_DEVICE_POLICY",
    0x800000E4: "EV_EFI_SPDM_DEVICE_AUTHORITY",
}
_SEPARATOR = 0x4
# 10.4.1, EV_SEPARATOR: what the firmware digests when it hands over; the last is that after an error.
_SEPARATORS = (bytes(4), b"\xff" * 4, b"\1\0\0\0")
# UEFI_VARIABLE_DATA (10.2.6): GUID[16], length of the name u64 in characters, length of the value u64.
_VARIABLE = struct.Struct("<16sQQ")
# UEFI 2.10, section 3.3: EFI_GLOBAL_VARIABLE.
_GLOBAL = bytes.fromhex("61dfe48bca93d211aa0d00e098032b8c")
# Boot loaders write these before what they digest: GRUB, and shim's successors.
_PREFIXES = (b"kernel_cmdline: ", b"grub_cmd: ", b"grub_kernel_cmdline ", b"grub_cmd ", b"module_cmdline: ")


@dataclass(frozen=True)
class Event:
    """One event: `digests` by the algorithm's name; `data` is what the firmware wrote beside them."""

    pcr: int
    kind: int
    digests: Mapping[str, bytes] = field(repr=False)
    data: bytes = field(repr=False)

    @property
    def name(self) -> str:
        return EVENT_TYPES.get(self.kind, f"{self.kind:#010x}")

    def said(self, bank: str) -> bytes | None:
        """The part of `data` that was digested into that bank; None if it was something else, such as a program.

        A string may have been digested without the zero that ends it, or without the word that a boot loader puts
        before it in the log.
        """
        wanted = self.digests.get(bank)
        for part in (self.data, self.data.removesuffix(b"\0"), *_without_prefix(self.data)):
            if wanted is not None and digest(part, algorithm=bank) == wanted:
                return part
        return None

    def words(self, bank: str) -> str | None:
        """What `said` as text: a firmware variable's name, or a string of printable characters; None if neither."""
        said = self.said(bank)
        if said is None:
            return None
        if variable := _variable(said):
            return variable[0] if variable[0].isprintable() else None
        for encoding in ("ascii", "utf-16-le"):
            try:
                text = said.decode(encoding).rstrip("\0")
            except UnicodeDecodeError:
                continue
            if text and text.isprintable() and text.isascii():
                return text
        return None


def _without_prefix(data: bytes) -> Iterable[bytes]:
    for prefix in _PREFIXES:
        if data.startswith(prefix):
            yield data.removeprefix(prefix)
            yield data.removeprefix(prefix).removesuffix(b"\0")


def parse_event_log(raw: bytes) -> tuple[Event, ...]:
    """The events of a crypto-agile log, without the first, which only says how to read the others.

    Raises:
        FormatError: it is not one, is cut short, has more than 8,192 events, or bytes that are no event.
    """
    if len(raw) > MAX_EVENT_LOG:
        raise FormatError(f"event log: {len(raw)} bytes, wanted at most {MAX_EVENT_LOG}")
    return _events(raw, len(raw))[0]


def parse_log_area(raw: bytes) -> tuple[tuple[Event, ...], int]:
    """The events of the whole area of memory that firmware sets aside for its log, and where the last one ends.

    Zeros alone, or ones alone, may follow it. Raises as `parse_event_log` does.
    """
    if len(raw) > MAX_LOG_AREA:
        raise FormatError(f"event log: {len(raw)} bytes, wanted at most {MAX_LOG_AREA}")
    # From there on there is padding only: an event that begins in it would be of no register, or without a digest.
    return _events(raw, min(len(raw.rstrip(b"\0")), len(raw.rstrip(b"\xff"))))


def _events(raw: bytes, end: int) -> tuple[tuple[Event, ...], int]:
    """The events that begin before `end`, and where the last one ends."""
    algorithms, at = _begun(raw)
    events: list[Event] = []
    while at < end:
        if len(events) == MAX_EVENTS:
            raise FormatError(f"event log: more than {MAX_EVENTS} events")
        event, at = _event(raw, at, algorithms)
        events.append(event)
    return tuple(events), at


def event_ends(raw: bytes) -> Iterator[int]:
    """Where each event ends, one after the other. Raises FormatError where one is cut short, after those before it."""
    algorithms, at = _begun(raw)
    while at < len(raw):
        _, at = _event(raw, at, algorithms)
        yield at


def log_banks(raw: bytes) -> tuple[str, ...]:
    """The banks that each event of a log has a digest of, in its order.

    Raises:
        FormatError: it is not one of the crypto-agile form.
    """
    return tuple(name for name, _ in _begun(raw)[0].values())


def _begun(raw: bytes) -> tuple[dict[int, tuple[str, int]], int]:
    """The digests that each event has, and where the first event ends, which says so."""
    pcr, kind, zeros, size = _FIRST.unpack(_part(raw, 0, _FIRST.size))
    spec = _part(raw, _FIRST.size, size)
    if pcr or kind != NO_ACTION or any(zeros) or not spec.startswith(_SPEC_ID):
        raise FormatError("event log: does not begin with a Spec ID Event03, as a crypto-agile log does")
    return _algorithms(spec), _FIRST.size + size


def _algorithms(spec: bytes) -> dict[int, tuple[str, int]]:
    """The digests that each event has: identifier to name and size."""
    *_, count = _SPEC.unpack(_part(spec, len(_SPEC_ID), _SPEC.size))
    at = len(_SPEC_ID) + _SPEC.size
    if not 1 <= count <= len(DIGESTS):
        raise FormatError(f"event log: {count} digests an event, wanted 1 to {len(DIGESTS)}")
    algorithms: dict[int, tuple[str, int]] = {}
    for _ in range(count):
        identifier, size = struct.unpack("<HH", _part(spec, at, 4))
        if identifier not in DIGESTS or DIGESTS[identifier][1] != size or identifier in algorithms:
            raise FormatError(f"event log: got digest {identifier:#06x} of {size} bytes, which is unknown or repeated")
        algorithms[identifier] = DIGESTS[identifier]
        at += 4
    vendor = _part(spec, at, 1)[0]
    if at + 1 + vendor != len(spec):
        raise FormatError("event log: its first event is not as long as its parts")
    return algorithms


def _event(raw: bytes, at: int, algorithms: Mapping[int, tuple[str, int]]) -> tuple[Event, int]:
    """The TCG_PCR_EVENT2 that starts there, and where it ends."""
    pcr, kind, count = _EVENT.unpack(_part(raw, at, _EVENT.size))
    at += _EVENT.size
    # An event that extends nothing may name no register.
    if (pcr >= _PCRS and kind != NO_ACTION) or count != len(algorithms):
        raise FormatError(f"event log: got PCR {pcr}, {count} digests; wanted 0 to {_PCRS - 1}, {len(algorithms)}")
    digests: dict[str, bytes] = {}
    for _ in range(count):
        (identifier,) = _U16.unpack(_part(raw, at, 2))
        name, size = algorithms.get(identifier, ("", 0))
        if not name or name in digests:
            raise FormatError(f"event log: got digest {identifier:#06x}, which is unknown or repeated")
        digests[name] = _part(raw, at + 2, size)
        at += 2 + size
    (size,) = _U32.unpack(_part(raw, at, 4))
    return Event(pcr, kind, digests, _part(raw, at + 4, size)), at + 4 + size


def _part(raw: bytes, at: int, size: int) -> bytes:
    part = raw[at : at + size]
    if len(part) != size:
        raise FormatError(f"event log: cut short at byte {len(raw)}")
    return part


def replay(events: Sequence[Event], bank: str) -> dict[int, bytes]:
    """The values that these events extend that bank's registers to: those that the log mentions, by index.

    Raises:
        FormatError: the log has no digests of that bank.
    """
    size = dict(DIGESTS.values())[bank]
    pcrs: dict[int, bytes] = {}
    locality = 0
    for event in events:
        if bank not in event.digests:
            raise FormatError(f"event log: has no digests of bank {bank}")
        if event.kind == NO_ACTION:
            # 10.4.5.3: a TPM started at another locality, or by an H-CRTM, begins PCR 0 with its number.
            if event.data.startswith(_LOCALITY) and len(event.data) == len(_LOCALITY) + 1 and 0 not in pcrs:
                locality = event.data[-1]
            continue
        start = bytes(size - 1) + bytes([locality if event.pcr == 0 else 0])
        pcrs[event.pcr] = digest(pcrs.get(event.pcr, start), event.digests[bank], algorithm=bank)
    return pcrs


def secure_boot(events: Sequence[Event], bank: str) -> bool | None:
    """Whether the firmware measured Secure Boot as on, into PCR 7; None if it did not say, or not in digested words.

    Only what stands before PCR 7's separator is the firmware's word: what it starts then can extend PCR 7 too. The
    separator is known by its digest, as a host may write any type; so is what says how Secure Boot is set.
    """
    states = set()
    ends = {digest(each, algorithm=bank) for each in _SEPARATORS}
    for event in events:
        if event.pcr != 7:
            continue
        if event.kind == _SEPARATOR or event.digests.get(bank) in ends:
            break
        if event.said(bank) == event.data:
            variable = _variable(event.data)
            if variable and variable[0] == "SecureBoot":
                states.add(variable[1] == b"\1")
    return states.pop() if len(states) == 1 else None


def _variable(data: bytes) -> tuple[str, bytes] | None:
    """Name and value of one of the firmware's global variables."""
    if len(data) < _VARIABLE.size:
        return None
    owner, characters, size = _VARIABLE.unpack_from(data)
    if owner != _GLOBAL or _VARIABLE.size + 2 * characters + size != len(data):
        return None
    name = data[_VARIABLE.size : _VARIABLE.size + 2 * characters]
    return name.decode("utf-16-le", "replace"), data[len(data) - size :]
