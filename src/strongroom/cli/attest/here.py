"""`strongroom attest here`: evidence of what this command runs in."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from strongroom.attest.attester import Attester
from strongroom.attest.binding import REPORT_DATA_SIZE
from strongroom.attest.claims import REGISTER_SIZE, REGISTERS
from strongroom.attest.tee.here import here
from strongroom.cli import output
from strongroom.cli.attest.reading import bound_bytes
from strongroom.crypto import random_bytes


def configure(parser: argparse.ArgumentParser) -> None:
    bound = parser.add_mutually_exclusive_group()
    bound.add_argument("--report-data", metavar="HEX", help="the 64 bytes to bind it to (docs/spec/evidence.md)")
    bound.add_argument("--nonce", metavar="TEXT", help="up to 64 bytes, zeros after them: text, or hex: and digits")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write it there, and not to standard output")
    parser.add_argument(
        "--simulated", action="store_true", help="to try things: by this user's simulated vendor; it proves nothing"
    )
    output.add_json(parser)


def run(args: argparse.Namespace) -> int:
    given = bound_bytes(args, REPORT_DATA_SIZE)
    data = random_bytes(REPORT_DATA_SIZE) if given is None else given.ljust(REPORT_DATA_SIZE, b"\0")
    evidence = (_simulated() if args.simulated else here()).evidence(data)
    wire = json.dumps(evidence.to_wire(), indent=2)
    output.note(f"{evidence.tee} evidence, bound to {data.hex()}")
    if args.out is None:
        print(wire)
        return 0
    args.out.write_text(wire + "\n", "utf-8")
    if args.json:
        output.result({"tee": evidence.tee, "report_data": data.hex(), "file": str(args.out)})
    return 0


def _simulated() -> Attester:
    """Of an enclave in which nothing was measured: its registers are zeros."""
    from strongroom.attest.tee.simulated import SimulatedAttester  # where it is asked for
    from strongroom.cli.workspace import Home  # and with it the CAS

    output.warn(output.SIMULATED_BANNER)
    return SimulatedAttester(Home.open().vendor(), dict.fromkeys(REGISTERS, bytes(REGISTER_SIZE)))
