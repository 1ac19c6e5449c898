"""A program's measurement in the run-time register of a trust domain, before the program starts.

The domain's own launch measurement says nothing of what it runs later. So the program and its boot configuration are
measured into RTMR3, which firmware and kernel leave alone, in the order in which the simulated TEE has them, and the
log goes on with an event for each (`attest.parse.td_log`): whoever has it can replay it to the quote.
"""

from __future__ import annotations

import os

from strongroom.attest.claims import REGISTER_SIZE
from strongroom.attest.parse.td_log import Extension, extended, parse_td_log, replayed, unpadded
from strongroom.attest.tee.rtmr import extend_rtmr, read_rtmr
from strongroom.attest.tee.system import System, read_whole
from strongroom.crypto import equal
from strongroom.enclave.measure import PROGRAM_PARTS, Measurement
from strongroom.errors import EnclaveError, FormatError, UnsupportedPlatformError

CCEL = "/sys/firmware/acpi/tables/data/CCEL"
_MAX_AREA = 1 << 20
_REGISTER = 3


def program_extensions(measured: Measurement) -> tuple[Extension, ...]:
    """What is measured into RTMR3 for a program, in order."""
    digests = {part.name: part.digest for part in measured.parts}
    return tuple(Extension(name, digests[name]) for name in PROGRAM_PARTS)


def read_td_log(*, system: System = os) -> bytes:
    """The log of this trust domain's firmware, without the padding after it.

    Raises:
        UnsupportedPlatformError: it is not there, or not for this user.
        FormatError: it is none.
    """
    try:
        return unpadded(read_whole(system, CCEL, _MAX_AREA))
    except OSError as error:
        raise UnsupportedPlatformError(
            f"event log: {CCEL}: {(error.strerror or str(error)).lower()}",
            hint="run as root in a trust domain whose firmware has a CCEL table",
        ) from None


def extend_program(measured: Measurement, log: bytes, *, system: System = os) -> bytes:
    """Measure a program into RTMR3; the log with its events after the firmware's.

    Args:
        measured: what is about to run.
        log: as `read_td_log` gives it.

    Raises:
        EnclaveError: RTMR3 is not what the log says: something was measured that it lacks.
        UnsupportedPlatformError, LockedError: as `extend_rtmr` raises them.
    """
    before = replayed(parse_td_log(log))
    if not equal(read_rtmr(_REGISTER, system=system), before["rtmr3"]):
        raise EnclaveError("rtmr3: is not what the event log says", hint="another program was measured; restart the VM")
    for each in program_extensions(measured):
        if len(each.digest) != REGISTER_SIZE:
            raise FormatError(f"{each.what}: a digest of {len(each.digest)} bytes, wanted {REGISTER_SIZE}")
        before = extended(before, [each])
        if not equal(extend_rtmr(_REGISTER, each.digest, system=system), before["rtmr3"]):
            raise EnclaveError("rtmr3: was extended to another value than it should have been")
        log += each.to_bytes()
    return log
