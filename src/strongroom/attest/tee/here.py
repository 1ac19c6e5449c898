"""Which attester this machine has.

The narrowest enclosure comes first: an SGX enclave is one process, and may run in a confidential VM; a TPM, which
encloses nothing, comes last. What is there and cannot be used, such as reports that only root can get, is an error:
nothing weaker is taken in its place.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from strongroom.attest.attester import Attester
from strongroom.attest.evidence import Evidence
from strongroom.attest.tee.configfs import ConfigfsAttester
from strongroom.attest.tee.gramine import GramineAttester, attestation_type
from strongroom.attest.tee.nitro import NitroAttester, nsm_is_here
from strongroom.attest.tee.system import System
from strongroom.attest.tee.tpm import DEFAULT, VARIABLE, Tpm, TpmAttester, read_event_log
from strongroom.attest.tee.tsm import tsm_provider
from strongroom.errors import UnsupportedPlatformError

_TPM_DEVICE = DEFAULT.removeprefix("device:")


def here(*, system: System = os) -> Attester:
    """The attester of what this process runs in: an SGX enclave under Gramine, a VM of SNP or TDX, a Nitro enclave, or
    a machine with a TPM, whose attestation key somebody must have enrolled.

    Args:
        system: the calls to make; a TPM is opened by its own library.

    Raises:
        UnsupportedPlatformError: none of them, or not for this user.
        MissingDependencyError: there is a TPM, and tpm2-pytss is not installed.
        EnclaveError: the platform failed.
    """
    if attestation_type(system) is not None:
        return GramineAttester(system=system)
    if tsm_provider(system) is not None:
        return ConfigfsAttester(system=system)
    if nsm_is_here(system):
        return NitroAttester(system=system)
    if tpm_is_here(system):
        Tpm.open().close()  # whether it can be used is said now
        return OpeningTpm()
    raise UnsupportedPlatformError(
        "no attester on this machine: no /dev/attestation of Gramine, no provider of configfs-tsm, no /dev/nsm, no "
        + _TPM_DEVICE,
        hint="`strongroom doctor` says what is missing; `strongroom attest here --simulated` makes evidence to try "
        "things with, which proves nothing",
    )


@dataclass(frozen=True)
class OpeningTpm:
    """Makes evidence of kind `tpm`, and opens the TPM for each.

    So no key is left in it when the process ends: not every TPM has a resource manager that takes it out again, and
    there is room for three.
    """

    tee: str = field(default="tpm", init=False)

    def evidence(self, report_data: bytes) -> Evidence:
        """As `TpmAttester.evidence`, over the registers of the boot and with the firmware's log."""
        with Tpm.open() as tpm:
            return TpmAttester(tpm, event_log=_event_log()).evidence(report_data)


def tpm_is_here(system: System) -> bool:
    """Whether this machine has a TPM, or the environment names one.

    Raises:
        UnsupportedPlatformError: it has one, and not for this user.
    """
    if os.environ.get(VARIABLE):
        return True
    try:
        system.close(system.open(_TPM_DEVICE, os.O_RDWR))
    except FileNotFoundError:
        return False
    except OSError as error:
        raise UnsupportedPlatformError(
            f"tpm: {_TPM_DEVICE} does not open: {os.strerror(error.errno or 0).lower()}",
            hint="run as a member of the group tss",
        ) from None
    return True


def _event_log() -> bytes:
    """The firmware's log, where this user can read it: it explains the registers and proves nothing by itself."""
    try:
        return read_event_log()
    except UnsupportedPlatformError:
        return b""
