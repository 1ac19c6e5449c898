"""What an enclave uses to make evidence about itself."""

from __future__ import annotations

from typing import Protocol

from strongroom.attest.evidence import Evidence


class Attester(Protocol):
    """Makes evidence about the enclave that it runs in. One implementation per TEE, in `strongroom.attest.tee`."""

    @property
    def tee(self) -> str:
        """The kind of enclave, as in `Evidence.tee`."""

    def evidence(self, report_data: bytes) -> Evidence:
        """Evidence over `report_data`, the 64 bytes of `strongroom.attest.binding.report_data`."""
