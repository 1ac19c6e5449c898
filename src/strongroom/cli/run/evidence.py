"""Whose evidence an enclave shows: the options of `run` and `serve`.

Rules:

- What was asked for and is not there is refused: an enclave is simulated only by that word, or where the policy accepts
  simulated ones and this machine is none that it names a platform for.
- Simulated or not is said before anything starts.
"""

from __future__ import annotations

import argparse

from strongroom.attest.reference import ANY, ReferenceValues
from strongroom.cli import output
from strongroom.enclave.machine.kind import KINDS, Machine
from strongroom.errors import UnsupportedPlatformError, UsageError

_CHOICES = ("simulated", "here", *KINDS)
_OF_TPM = "tpm: it vouches for what this machine booted and started; the owner of the machine can read all its memory"


def add(parser: argparse.ArgumentParser, *, default: str) -> None:
    parser.add_argument(
        "--evidence",
        choices=_CHOICES,
        help="who vouches for it: a simulated vendor, or the confidential VM or TPM that this is; `here` is whichever "
        f"there is (default: {default})",
    )


def machine_of(args: argparse.Namespace, reference: ReferenceValues | None) -> Machine | None:
    """The machine that vouches for the enclave; None for a simulated one. Says which it is.

    Args:
        reference: what the policy accepts; None for a development policy, which is written for what vouches.

    Raises:
        UnsupportedPlatformError: this machine is not what was asked for, or nothing that the policy accepts.
        UsageError: the policy has no platform for this machine, so that no program on it would be accepted.
        MissingDependencyError, EnclaveError: it is, and cannot be used.
    """
    asked, found = args.evidence, None
    if asked is None and reference is not None:
        found = _one_of(reference)
        if found is None and "simulated" not in reference.tees:
            raise UnsupportedPlatformError(
                f"evidence: the policy accepts {' or '.join(reference.tees)}, and this machine is none that it has a "
                "platform for",
                hint="run it there; --evidence simulated shows simulated evidence, which the policy refuses",
            )
    elif asked not in (None, "simulated"):
        from strongroom.enclave.machine.find import find_machine  # and with it every kind's attester

        found = find_machine(asked)
    if found is None:
        output.note(output.SIMULATED_BANNER)
        return None
    if reference is not None and found.tee not in reference.platforms:
        raise UsageError(
            f"--evidence {asked}: the policy has no platform for {found.tee}",
            hint=f"add {found.tee} to its tees, and its table reference.platforms.{found.tee}: what the machine boots",
        )
    if found.tee == "tpm":
        output.warn(_OF_TPM)
    output.note(f"evidence of this machine by its {found.tee}; the program is measured into {found.where}")
    return found


def accepted(machine: Machine | None) -> tuple[str, ...]:
    """What a development policy says of the machine: as it booted, whatever else was started on it, so that programs
    can be tried one after the other. None for a simulated enclave."""
    if machine is None:
        return ()
    lines, others = machine.accepted(), f'other_programs = ["{ANY}"]'
    return lines if others in lines else (others, *lines)


def _one_of(reference: ReferenceValues) -> Machine | None:
    """This machine, if it is one that the policy has a platform for."""
    if not reference.platforms:
        return None
    from strongroom.enclave.machine.find import machine_for

    return machine_for(reference.platforms)
