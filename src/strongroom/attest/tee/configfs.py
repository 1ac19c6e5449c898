"""The attester of confidential VMs: SNP and TDX, through the kernel's configfs-tsm (`tsm`)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from strongroom.attest.binding import REPORT_DATA_SIZE
from strongroom.attest.evidence import Evidence
from strongroom.attest.parse.certificate_table import parse_certificate_table
from strongroom.attest.parse.dcap import parse_quote, unpadded
from strongroom.attest.parse.dcap_body import TdReport
from strongroom.attest.tee.system import System
from strongroom.attest.tee.tsm import SNP, TDX, TsmReport, tsm_provider, tsm_report
from strongroom.crypto import equal
from strongroom.errors import EnclaveError, FormatError, UnsupportedPlatformError, UsageError

_TEES = {SNP: "snp", TDX: "tdx"}

# AMD, "SEV Secure Nested Paging Firmware ABI Specification" (56860), table 23: the report, and REPORT_DATA in it.
_SNP_REPORT_SIZE = 0x4A0
_SNP_REPORT_DATA = slice(0x50, 0x90)


class ConfigfsAttester:
    """Evidence of the VM that this runs in.

    What the platform gives along with a report becomes its endorsements: for SNP, the certificates that the host has;
    for TDX, nothing. The rest is the vendor's to give (`strongroom.attest.endorsements`).
    """

    def __init__(
        self,
        *,
        privlevel: int | None = None,
        system: System = os,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        """Ask the kernel who makes its reports. The arguments are those of `tsm_report`.

        Raises:
            UnsupportedPlatformError: nobody does, not for this user, or a TEE that we do not know.
        """
        provider = tsm_provider(system)
        if provider is None:
            raise UnsupportedPlatformError(
                "configfs-tsm: nobody makes reports on this machine",
                hint="it takes a confidential VM, Linux 6.7 or newer, configfs mounted, and the driver loaded: "
                "modprobe sev-guest, or tdx-guest",
            )
        if provider not in _TEES:
            raise UnsupportedPlatformError(
                f"configfs-tsm: got provider {provider[:40]!r}, wanted {' or '.join(_TEES)}",
                hint="its evidence cannot be verified here yet",
            )
        self.provider = provider
        self._privlevel = privlevel
        self._system = system
        self._pause = pause

    @property
    def tee(self) -> str:
        """`snp` or `tdx`."""
        return _TEES[self.provider]

    def evidence(self, report_data: bytes) -> Evidence:
        """Evidence over `report_data`, 64 bytes. TDX may take seconds.

        Raises:
            UsageError: `report_data` has another length.
            FormatError: the platform gave something else than a report.
            EnclaveError, LockedError: as `tsm_report` raises them, or the report is over other report data.
        """
        if len(report_data) != REPORT_DATA_SIZE:
            raise UsageError(f"report data: {len(report_data)} bytes, wanted {REPORT_DATA_SIZE}")
        report = tsm_report(report_data, privlevel=self._privlevel, system=self._system, pause=self._pause)
        if report.provider != self.provider:
            raise EnclaveError(f"configfs-tsm: got provider {report.provider}, wanted {self.provider} as before")
        evidence, bound = _snp(report) if report.provider == SNP else _tdx(report)
        if not equal(bound, report_data):
            raise EnclaveError(f"configfs-tsm: {report.provider} made a report over other report data than was written")
        return evidence

    def __repr__(self) -> str:
        return f"ConfigfsAttester({self.provider})"


def _snp(report: TsmReport) -> tuple[Evidence, bytes]:
    if len(report.outblob) != _SNP_REPORT_SIZE:
        raise FormatError(f"SNP report: {len(report.outblob)} bytes, wanted {_SNP_REPORT_SIZE}")
    endorsements = parse_certificate_table(report.auxblob).to_bytes()
    return Evidence("snp", report.outblob, endorsements), report.outblob[_SNP_REPORT_DATA]


def _tdx(report: TsmReport) -> tuple[Evidence, bytes]:
    # Some platforms hand out their whole buffer: the zeros after the quote are no part of it.
    quote = parse_quote(unpadded(report.outblob))
    if not isinstance(quote.report, TdReport):
        raise FormatError("quote: got one of an SGX enclave, wanted one of a trust domain")
    return Evidence("tdx", quote.raw, b""), quote.report.report_data
