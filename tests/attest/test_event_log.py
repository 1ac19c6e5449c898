"""The firmware's event log: what it says counts as far as it replays, and as far as it was digested."""

from __future__ import annotations

import dataclasses
import hashlib
import struct

import pytest

from strongroom.attest.parse.event_log import parse_event_log, replay, secure_boot
from strongroom.attest.verify.tpm import check_event_log
from strongroom.crypto.chains import VendorKey
from strongroom.errors import FormatError, VerificationError
from strongroom.testing.event_log import FirmwareLog, variable
from tests.attest.tpms import P256, check, quoted, spki

KEY = VendorKey(spki(P256))
SEPARATOR, IPL, VARIABLE, APPLICATION = 0x4, 0xD, 0x80000001, 0x80000003
ON, OFF = (variable("SecureBoot", value) for value in (b"\1", b"\0"))


def boot(state: bytes = ON) -> FirmwareLog:
    log = FirmwareLog()
    log.measure(0, 0x8, "firmware 1.0\0".encode("utf-16-le"))
    log.measure(7, VARIABLE, state)
    log.measure(4, 0x80000007, b"Calling EFI Application from Boot Option")
    for pcr in range(8):
        log.measure(pcr, SEPARATOR, bytes(4))
    log.measure(4, APPLICATION, b"where it was loaded from", digested=b"a boot loader")
    log.measure(8, IPL, b"kernel_cmdline: /vmlinuz ro\0", digested=b"/vmlinuz ro")
    return log


def shown(log: FirmwareLog, raw: bytes | None = None):
    evidence = quoted(pcrs={"sha256": log.pcrs("sha256")})
    return dataclasses.replace(evidence, event_log=log.to_bytes() if raw is None else raw)


def test_a_log_that_replays_is_told():
    told = check(shown(boot()), KEY).attributes
    assert told["secure_boot"] is True
    assert told["events"] == 13
    assert told["event000"] == "pcr0 EV_S_CRTM_VERSION firmware 1.0"
    assert told["event001"] == "pcr7 EV_EFI_VARIABLE_DRIVER_CONFIG SecureBoot"
    assert told["event011"].startswith("pcr4 EV_EFI_BOOT_SERVICES_APPLICATION sha256:")
    assert told["event012"] == "pcr8 EV_IPL /vmlinuz ro"


def test_the_example_of_the_specification():
    # TCG Canonical Event Log Format 1.1, section 5.1.7: the digests of both banks are those of the event's data.
    raw = bytes.fromhex(
        "000000000300000000000000000000000000000000000000000000002500000053706563204944204576656e7430330000000000000200"
        "0202000000040014000b002000000000000008000000020000000400c42fedad268200cb1d15f97841c344e79dae33200b00d4720b4009"
        "438213b803568017f903093f6bea8ab47d283db32b6eabedbbf155100000001efb6b540c1d5540a4ad4ef4bf17b83a"
    )
    (event,) = parse_event_log(raw)
    assert (event.pcr, event.name) == (0, "EV_S_CRTM_VERSION")
    for bank in ("sha1", "sha256"):
        assert event.said(bank) == event.data == bytes.fromhex("1efb6b540c1d5540a4ad4ef4bf17b83a")
    assert replay((event,), "sha256") == {0: hashlib.sha256(bytes(32) + event.digests["sha256"]).digest()}


def test_each_bank_replays_by_itself():
    log = boot()
    for bank in ("sha1", "sha256"):
        assert replay(parse_event_log(log.to_bytes()), bank) == log.pcrs(bank)
    with pytest.raises(FormatError, match="has no digests of bank sha384"):
        replay(parse_event_log(log.to_bytes()), "sha384")


def test_a_register_is_extended_as_the_specification_says():
    log = FirmwareLog(("sha256",))
    log.measure(3, IPL, b"a")
    log.measure(3, IPL, b"b")
    a, b = (hashlib.sha256(each).digest() for each in (b"a", b"b"))
    once = hashlib.sha256(bytes(32) + a).digest()
    assert replay(parse_event_log(log.to_bytes()), "sha256") == {3: hashlib.sha256(once + b).digest()}


def test_a_start_at_another_locality_begins_register_0():
    log = FirmwareLog(("sha256",))
    log.start_at(3)
    log.measure(0, SEPARATOR, bytes(4))
    value = hashlib.sha256(bytes(31) + b"\3" + hashlib.sha256(bytes(4)).digest()).digest()
    assert log.pcrs("sha256") == {0: value} == replay(parse_event_log(log.to_bytes()), "sha256")


def test_a_log_with_an_event_more_less_or_changed_is_refused():
    log, other, more = boot(), boot(OFF), boot()
    more.measure(4, APPLICATION, b"another")
    for raw in (other.to_bytes(), more.to_bytes(), FirmwareLog.to_bytes(log)[: -len(_last(log))]):
        with pytest.raises(VerificationError, match="event log: replays pcr"):
            check(shown(log, raw), KEY)


def _last(log: FirmwareLog) -> bytes:
    """The bytes of the last separator's event, and all after it."""
    raw = log.to_bytes()
    return raw[raw.rindex(struct.pack("<II", 7, SEPARATOR)) :]


def test_a_register_that_the_log_does_not_mention_is_only_quoted():
    log = boot()
    pcrs = log.pcrs("sha256") | {10: b"i" * 32}
    claims = check(dataclasses.replace(quoted(pcrs={"sha256": pcrs}), event_log=log.to_bytes()), KEY)
    assert claims.registers["pcr10"] == (b"i" * 32).hex()


def test_words_that_were_not_digested_are_not_told():
    log = boot()
    raw = log.to_bytes()
    for was, now in ((b"kernel_cmdline: /vmlinuz ro", b"kernel_cmdline: /vmlinuz rw"), (ON, OFF)):
        told = check(shown(log, raw.replace(was, now)), KEY).attributes
        if was == ON:
            assert "secure_boot" not in told
            assert told["event001"].startswith("pcr7 EV_EFI_VARIABLE_DRIVER_CONFIG sha256:")
        else:
            assert told["event012"].startswith("pcr8 EV_IPL sha256:")


class TestSecureBoot:
    def events(self, log: FirmwareLog):
        return parse_event_log(log.to_bytes())

    def test_on_and_off(self):
        assert secure_boot(self.events(boot(ON)), "sha256") is True
        assert secure_boot(self.events(boot(OFF)), "sha256") is False

    def test_only_the_firmware_says(self):
        log = FirmwareLog()
        log.measure(7, SEPARATOR, bytes(4))
        log.measure(7, VARIABLE, ON)  # a boot loader that firmware without Secure Boot started
        assert secure_boot(self.events(log), "sha256") is None

    def test_not_twice_and_not_elsewhere(self):
        log = FirmwareLog()
        log.measure(7, VARIABLE, OFF)
        log.measure(7, VARIABLE, ON)
        assert secure_boot(self.events(log), "sha256") is None
        log = FirmwareLog()
        log.measure(1, VARIABLE, ON)
        log.measure(7, VARIABLE, variable("SecureBoot", b"\1", owner=bytes(16)))
        assert secure_boot(self.events(log), "sha256") is None


def test_a_log_has_one_length():
    raw = boot().to_bytes()
    whole = {len(raw)}
    for cut in range(len(raw)):
        try:
            parse_event_log(raw[:cut])
        except FormatError:
            continue
        whole.add(cut)  # between two events
    assert len(whole) == 14
    with pytest.raises(FormatError, match="cut short"):
        parse_event_log(raw + b"\0")


def test_logs_of_tpm_1_2_and_odd_digests_are_refused():
    old = struct.pack("<II20sI", 0, 8, bytes(20), 2) + b"v1"
    with pytest.raises(FormatError, match="does not begin with a Spec ID Event03"):
        parse_event_log(old)
    raw = boot().to_bytes()
    for was, now in (
        (b"\x0b\0\x20\0", b"\x0b\0\x14\0"),
        (b"\x0b\0\x20\0", b"\x04\0\x14\0"),
        (b"\x0b\0\x20\0", b"\x99\0\x20\0"),
    ):
        with pytest.raises(FormatError, match="unknown or repeated"):
            parse_event_log(raw.replace(was, now, 1))
    with pytest.raises(FormatError, match="0 digests an event"):
        parse_event_log(raw.replace(struct.pack("<I", 2) + b"\x04\0\x14\0", bytes(4) + b"\x04\0\x14\0", 1))


def test_check_event_log_gives_the_events_of_quoted_registers_only():
    log = boot()
    events = check_event_log(log.to_bytes(), "sha256", {7: log.pcrs("sha256")[7]})
    assert {event.pcr for event in events} == {7}
