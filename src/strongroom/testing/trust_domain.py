"""A trust domain without the hardware: the kernel's files as in a TDX guest, and quotes by the simulated vendor.

    domain = FakeTrustDomain(vendor, firmware)
    machine = TrustDomain(domain.attester, directory, domain.system)

The code under test is the one that ships, down to its system calls: the registers grow by writes to the kernel's files,
the log is read from the table CCEL, and each quote is of the registers as they are. Its quotes are Intel's in form and
say `tdx`, under a root that is not Intel's; `attester` calls the same quotes `simulated`, which a policy can accept.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass

from strongroom.attest.attester import Attester
from strongroom.attest.claims import REGISTER_SIZE, REGISTERS
from strongroom.attest.evidence import Evidence
from strongroom.attest.tee.configfs import ConfigfsAttester
from strongroom.attest.tee.simulated import SimulatedVendor
from strongroom.testing.attesters import FakeRtmrs, FakeTsm
from strongroom.testing.event_log import FirmwareLog
from strongroom.testing.machine import FakeFile, FakeMachine, Faults, failure

MRTD = b"\x33" * REGISTER_SIZE


class FakeAcpiTables(Faults):
    """`/sys/firmware/acpi/tables/data`, as drivers/acpi/sysfs.c of Linux has it: the whole area of the log."""

    root = "/sys/firmware/acpi/tables/data"

    def __init__(self, log: bytes) -> None:
        super().__init__()
        self.log = log

    def open(self, name: str, flags: int) -> FakeFile:
        self._use(name)
        return FakeFile(flags, lambda: self.log.ljust(64 * 1024, b"\0"))

    def mkdir(self, name: str) -> None:
        raise failure(errno.EPERM)

    def rmdir(self, name: str) -> None:
        raise failure(errno.EPERM)


class FakeTrustDomain:
    """A booted trust domain.

    Attributes:
        system: its kernel.
        rtmrs: its registers; for a test to play whoever else extends them.
        tables: its log.
        registers: what it booted to, in hexadecimal digits, without RTMR3.
    """

    def __init__(self, vendor: SimulatedVendor, firmware: FirmwareLog) -> None:
        self._vendor = vendor
        self.rtmrs = FakeRtmrs()
        for index, value in firmware.pcrs("sha384").items():
            self.rtmrs.values[index - 1] = value
        self.tables = FakeAcpiTables(firmware.to_bytes())
        self.system = FakeMachine(FakeTsm("tdx_guest", self._report), self.rtmrs, self.tables)
        values = [MRTD, *self.rtmrs.values[:3]]
        self.registers = {name: value.hex() for name, value in zip(REGISTERS, values, strict=False)}

    def _report(self, inblob: bytes, privlevel: int) -> tuple[bytes, bytes]:
        del privlevel
        values = dict(zip(REGISTERS, [MRTD, *self.rtmrs.values], strict=True))
        return self._vendor.quote(values, inblob).quote, b""

    @property
    def attester(self) -> Attester:
        """Of the same quotes, by the name of who made them."""
        return _Named(ConfigfsAttester(system=self.system), self._vendor)


@dataclass(frozen=True)
class _Named:
    attester: ConfigfsAttester
    vendor: SimulatedVendor
    tee: str = "simulated"

    def evidence(self, report_data: bytes) -> Evidence:
        quote = self.attester.evidence(report_data).quote
        zeros = dict.fromkeys(REGISTERS, bytes(REGISTER_SIZE))
        return Evidence("simulated", quote, self.vendor.quote(zeros, report_data).endorsements)
