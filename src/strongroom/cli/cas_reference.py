"""`--cas-reference`: on every verb that talks to a CAS, what the CAS's own evidence must be."""

from __future__ import annotations

import argparse
from pathlib import Path

from strongroom.attest.reference import ReferenceValues
from strongroom.cli.attest_appraise import read_reference


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cas-reference",
        type=Path,
        metavar="FILE",
        help="with --cas: what the CAS's own evidence must be, a TOML document with a table [reference]; without, its "
        "root key is trusted wherever it is used",
    )


def of(args: argparse.Namespace) -> ReferenceValues | None:
    """The reference values, or None if none were given. Raises PolicyError."""
    path = getattr(args, "cas_reference", None)
    return None if path is None else read_reference(path)
