"""What a CAS shows of itself: the choice of where its own evidence comes from."""

from __future__ import annotations

import argparse

from strongroom.attest.attester import Attester
from strongroom.attest.tee.here import here
from strongroom.attest.tee.simulated import SimulatedAttester
from strongroom.cas.client.own_evidence import ROLE
from strongroom.cli.workspace import Home
from strongroom.enclave.config import PROCESS, BootConfig
from strongroom.enclave.measure import Measurement, measure
from strongroom.errors import UnsupportedPlatformError

_ENTRY = "strongroom.cli.cas.start"


def add(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--evidence",
        choices=("none", "here", "simulated"),
        default="none",
        help="what the CAS shows of itself: nothing, the evidence of the enclave that it runs in, or of a simulated "
        "one (default: %(default)s)",
    )


def cas_attester(args: argparse.Namespace, home: Home) -> Attester | None:
    """The attester that the option says.

    Raises:
        UnsupportedPlatformError: this machine has none.
    """
    if args.evidence == "here":
        try:
            return here()
        except UnsupportedPlatformError as error:
            error.hint = "--evidence none where there is no TEE, or simulated, which proves nothing, to try things with"
            raise
    if args.evidence == "simulated":
        return SimulatedAttester(home.vendor(), measured().registers)
    return None


def measured() -> Measurement:
    """What a CAS of this installation runs: the same for every CAS, whose root and policy are in its claims."""
    return measure(BootConfig(_ENTRY, "", "", ROLE, isolation=PROCESS), {})
