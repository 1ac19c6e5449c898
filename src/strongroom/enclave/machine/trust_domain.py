"""A trust domain of TDX: programs go into RTMR3, which firmware and kernel leave alone.

It takes Linux 6.16, for extending, and root. The log is the firmware's (the table CCEL), with the programs after it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from strongroom.attest.attester import Attester
from strongroom.attest.binding import REPORT_DATA_SIZE, launched_data
from strongroom.attest.evidence import Evidence
from strongroom.attest.parse.dcap import parse_quote
from strongroom.attest.parse.dcap_body import TdReport
from strongroom.attest.parse.launched import PROGRAM_RTMR, program_event
from strongroom.attest.parse.td_log import BANK, parse_td_log, replayed, unpadded
from strongroom.attest.tee.rtmr import extend_rtmr, read_rtmr
from strongroom.attest.tee.system import System, read_whole
from strongroom.attest.words import PLATFORMS
from strongroom.crypto import equal
from strongroom.enclave.machine.log import LaunchLog
from strongroom.enclave.machine.shortened import shortened
from strongroom.errors import EnclaveError, FormatError, UnsupportedPlatformError

CCEL = "/sys/firmware/acpi/tables/data/CCEL"
_MAX_AREA = 1 << 20
_REGISTER = 3
_NAME = "rtmr3"


@dataclass(frozen=True)
class TrustDomain:
    """The trust domain that this process runs in.

    Attributes:
        attester: makes its quotes.
        directory: of the log of programs.
        system: the calls to make.
    """

    attester: Attester
    directory: Path
    system: System = field(default=os, repr=False)
    where: str = field(default="RTMR3", init=False)

    @property
    def tee(self) -> str:
        return self.attester.tee

    def accepted(self) -> tuple[str, ...]:
        """Its firmware's measurement, and what was measured before programs were. Raises as `evidence`."""
        report = parse_quote(self.attester.evidence(bytes(REPORT_DATA_SIZE)).quote).report
        if not isinstance(report, TdReport):
            raise FormatError("quote: got one of an SGX enclave, wanted one of a trust domain")
        pinned = [f'{name} = ["{report.registers[name].hex()}"]' for name in PLATFORMS["tdx"]]
        return (f'tees = ["{self.tee}"]', f"[reference.platforms.{self.tee}]", *pinned)

    def start(self, program: str) -> Attester:
        """Measure a program, by its measurement, which is about to start; what makes its evidence.

        Raises:
            UnsupportedPlatformError: no log of the firmware, no way to extend, or not for this user.
            EnclaveError: RTMR3 is not what the log says, or the kernel failed.
            LockedError: something else extended RTMR3 at the same time.
        """
        with self._log() as (firmware, log):
            event = program_event(PROGRAM_RTMR, program, (BANK,))
            log.add(event)
            if not equal(extend_rtmr(_REGISTER, event.digests[BANK], system=self.system), _value(firmware + log.added)):
                raise EnclaveError("rtmr3: was extended to another value than it should have been")
        return _Launched(self, program)

    def evidence(self, program: str, report_data: bytes) -> Evidence:
        """Evidence that a program asks for, which was started here."""
        with self._log() as (firmware, log):
            evidence = self.attester.evidence(launched_data(report_data, program))
            return replace(evidence, program=program, event_log=shortened(firmware + log.added))

    @contextmanager
    def _log(self) -> Iterator[tuple[bytes, LaunchLog]]:
        """The firmware's log, and the programs' after it, which the register agrees with, under their lock."""
        firmware = read_td_log(system=self.system)
        with LaunchLog.locked(self.directory, _NAME) as log:
            log.agree(firmware, read_rtmr(_REGISTER, system=self.system), _value)
            yield firmware, log


@dataclass(frozen=True)
class _Launched:
    """Makes the evidence of one program."""

    domain: TrustDomain
    program: str

    @property
    def tee(self) -> str:
        return self.domain.tee

    def evidence(self, report_data: bytes) -> Evidence:
        return self.domain.evidence(self.program, report_data)


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


def _value(log: bytes) -> bytes:
    return replayed(parse_td_log(log))[_NAME]
