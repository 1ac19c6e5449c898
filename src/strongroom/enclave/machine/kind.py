"""What a machine is to a launcher: light to import, as every launch does."""

from __future__ import annotations

from typing import Protocol

from strongroom.attest.attester import Attester

KINDS = ("tdx", "snp", "tpm")


class Machine(Protocol):
    """A machine that is one TEE as a whole."""

    @property
    def tee(self) -> str:
        """Its kind, as in `Evidence.tee`."""

    @property
    def where(self) -> str:
        """Where programs are measured into, in words."""

    def accepted(self) -> tuple[str, ...]:
        """Lines of a policy's table [reference] that accept this machine as it booted, and no other: to try things on
        it, since it says so itself."""

    def start(self, program: str) -> Attester:
        """Measure a program, by its measurement, which is about to start; what makes its evidence.

        Raises:
            EnclaveError, LockedError, UnsupportedPlatformError: it could not be measured, so it may not start.
        """
