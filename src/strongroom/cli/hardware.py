"""What hardware will measure of a policy's program: for the verbs that prepare an enclave which runs elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from strongroom.cas.client.address import CasAddress
from strongroom.cas.policy.version import Policy
from strongroom.cli.run.verb import boot_config, check_launchable
from strongroom.cli.workspace import Home, read_policy
from strongroom.enclave.config import SANDBOX, BootConfig
from strongroom.enclave.measure import program_files
from strongroom.errors import EnclaveError, UsageError


def program_of_policy(path: Path, cas_root: str | None) -> tuple[Policy, BootConfig, Mapping[str, Path]]:
    """A policy, whose measurements may be missing, its boot configuration in an enclave, and its program's files.

    Args:
        cas_root: the CAS; None for this user's development CAS.

    Raises:
        PolicyError: malformed.
        UsageError: it has no program, or a file of it is missing.
        EnclaveError: it says something that no launcher of ours enforces.
    """
    policy = read_policy(path, draft=True)
    if policy.program is None:
        raise UsageError(f"policy {policy.name}: says nothing of a program")
    check_launchable(policy)
    if policy.program.image:
        raise EnclaveError(
            "program.image: an image is the root of what `strongroom run` launches, and of nothing else so far",
            hint="`strongroom measure --policy FILE --image LAYOUT` says what it is measured as there",
        )
    if not cas_root:
        with Home.open().cas() as address:
            cas_root = address.cas_root
    files = program_files(path.parent, policy.program.files)
    address = CasAddress("", cas_root)
    config = boot_config(policy.name, address, policy.program, policy.vaults, role=policy.role, policy=policy)
    return policy, replace(config, isolation=SANDBOX), files
