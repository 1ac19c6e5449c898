"""`strongroom attest here`: evidence of what this command runs in."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from strongroom.attest.binding import REPORT_DATA_SIZE
from strongroom.attest.tee.here import here
from strongroom.cli import output
from strongroom.cli.attest_reading import given_bytes
from strongroom.crypto import random_bytes
from strongroom.errors import UsageError


def configure(parser: argparse.ArgumentParser) -> None:
    bound = parser.add_mutually_exclusive_group()
    bound.add_argument("--report-data", metavar="HEX", help="the 64 bytes to bind it to (docs/spec/evidence.md)")
    bound.add_argument("--nonce", metavar="TEXT", help="up to 64 bytes, zeros after them: text, or hex: and digits")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write it there, and not to standard output")
    output.add_json(parser)


def run(args: argparse.Namespace) -> int:
    data = _report_data(args)
    evidence = here().evidence(data)
    wire = json.dumps(evidence.to_wire(), indent=2)
    output.note(f"{evidence.tee} evidence, bound to {data.hex()}")
    if args.out is None:
        print(wire)
        return 0
    args.out.write_text(wire + "\n", "utf-8")
    if args.json:
        output.result({"tee": evidence.tee, "report_data": data.hex(), "file": str(args.out)})
    return 0


def _report_data(args: argparse.Namespace) -> bytes:
    if args.report_data is not None:
        data = given_bytes("--report-data", f"hex:{args.report_data}")
        if len(data) != REPORT_DATA_SIZE:
            raise UsageError(f"--report-data: {len(data)} bytes, wanted {REPORT_DATA_SIZE}")
        return data
    if args.nonce is None:
        return random_bytes(REPORT_DATA_SIZE)
    nonce = given_bytes("--nonce", args.nonce)
    if not 0 < len(nonce) <= REPORT_DATA_SIZE:
        raise UsageError(f"--nonce: {len(nonce)} bytes, wanted 1 to {REPORT_DATA_SIZE}")
    return nonce.ljust(REPORT_DATA_SIZE, b"\0")
