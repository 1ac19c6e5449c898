"""A VM on AMD SEV-SNP. Its report has the launch digest and nothing that is measured later.

So nothing but the launcher says which program asks: the launch digest pins the launcher (firmware, kernel, initrd and
command line, with the root hash of the file system that the launcher is on), and the launcher puts the program's
measurement into the report data. Which other programs ran, the evidence never tells.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from strongroom.attest.attester import Attester
from strongroom.attest.binding import REPORT_DATA_SIZE, launched_data
from strongroom.attest.evidence import Evidence
from strongroom.attest.parse.snp import parse_snp, tcb_components
from strongroom.attest.reference import ANY
from strongroom.errors import UnsupportedPlatformError


@dataclass(frozen=True)
class SnpGuest:
    """The VM that this process runs in."""

    attester: Attester
    tee: str = field(default="snp", init=False)
    where: str = field(default="the report data alone, by this launcher's word", init=False)

    def accepted(self) -> tuple[str, ...]:
        """Its launch digest, and the versions that it reports.

        Raises:
            UnsupportedPlatformError: the report does not tell the product, whose versions they are.
        """
        report = parse_snp(self.attester.evidence(bytes(REPORT_DATA_SIZE)).quote)
        if report.product is None:
            raise UnsupportedPlatformError(
                "SNP report: does not tell the product", hint="write a policy: `attest appraise --draft-policy` helps"
            )
        versions = tcb_components(report.reported_tcb, report.product)
        return (
            'tees = ["snp"]',
            f'other_programs = ["{ANY}"]',
            "[reference.platforms.snp]",
            f'measurement = ["{report.measurement.hex()}"]',
            f"[reference.minimum_tcb.snp.{report.product}]",
            *(f"{name} = {version}" for name, version in versions.items()),
        )

    def start(self, program: str) -> Attester:
        """What makes the evidence of a program that is about to start."""
        return _Launched(self.attester, program)


@dataclass(frozen=True)
class _Launched:
    attester: Attester
    program: str
    tee: str = field(default="snp", init=False)

    def evidence(self, report_data: bytes) -> Evidence:
        evidence = self.attester.evidence(launched_data(report_data, self.program))
        return replace(evidence, program=self.program)
