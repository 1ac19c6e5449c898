"""Which machine a launcher runs on. What was asked for and is not there is refused; nothing weaker takes its place."""

from __future__ import annotations

import os
from collections.abc import Collection

from strongroom.attest.tee.configfs import ConfigfsAttester
from strongroom.attest.tee.gramine import attestation_type
from strongroom.attest.tee.here import tpm_is_here
from strongroom.attest.tee.nitro import nsm_is_here
from strongroom.attest.tee.system import System
from strongroom.attest.tee.tpm import Tpm
from strongroom.attest.tee.tsm import tsm_provider
from strongroom.enclave.machine.kind import Machine
from strongroom.enclave.machine.log import log_directory
from strongroom.enclave.machine.snp import SnpGuest
from strongroom.enclave.machine.tpm import TpmMachine
from strongroom.enclave.machine.trust_domain import TrustDomain
from strongroom.errors import UnsupportedPlatformError


def find_machine(kind: str, *, system: System = os) -> Machine:
    """The machine that this process runs on.

    Args:
        kind: one of `KINDS`, or ``here`` for whichever it is.
        system: the calls to make; a TPM is opened by its own library.

    Raises:
        UnsupportedPlatformError: it is none of that kind, or not for this user.
        MissingDependencyError: there is a TPM, and tpm2-pytss is not installed.
        EnclaveError: the platform failed.
    """
    if kind == "here":
        kind = _kind(system)
    if kind == "tpm":
        Tpm.open().close()  # whether it can be used is said now
        return TpmMachine(log_directory())
    attester = ConfigfsAttester(system=system)
    if attester.tee != kind:
        raise UnsupportedPlatformError(
            f"--evidence {kind}: this machine is one of {attester.tee}", hint="--evidence here takes what there is"
        )
    return TrustDomain(attester, log_directory(), system) if kind == "tdx" else SnpGuest(attester)


def machine_for(kinds: Collection[str], *, system: System = os) -> Machine | None:
    """The machine that this process runs on, if it is one of these kinds; the strongest first.

    Raises:
        UnsupportedPlatformError, MissingDependencyError, EnclaveError: it is one, and cannot be used.
    """
    if {"tdx", "snp"} & set(kinds) and tsm_provider(system) is not None:
        attester = ConfigfsAttester(system=system)
        if attester.tee in kinds:
            return find_machine(attester.tee, system=system)
    if "tpm" in kinds and tpm_is_here(system):
        return find_machine("tpm", system=system)
    return None


def _kind(system: System) -> str:
    if attestation_type(system) is not None:
        raise UnsupportedPlatformError(
            "--evidence here: this is an SGX enclave under Gramine, in which no others are launched",
            hint="the manifest says which program runs: `strongroom gramine` makes it of a policy",
        )
    if tsm_provider(system) is not None:
        return ConfigfsAttester(system=system).tee
    if nsm_is_here(system):
        raise UnsupportedPlatformError(
            "--evidence here: a Nitro enclave has no register that the launcher extends",
            hint="its image is its measurement: put the program into that",
        )
    if tpm_is_here(system):
        return "tpm"
    raise UnsupportedPlatformError(
        "--evidence here: this machine is no VM of SNP or TDX, and has no TPM",
        hint="--evidence simulated runs it with evidence that protects nothing, where the policy allows that",
    )
