"""`--cas-reference`: on every verb that talks to a CAS, what the CAS's own evidence must be."""

from __future__ import annotations

import argparse
from pathlib import Path

from strongroom.attest.reference import ReferenceValues


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cas-reference",
        type=Path,
        metavar="FILE",
        help="what the CAS's own evidence must be, a TOML document with a table [reference]; without, its root key is "
        "trusted wherever it is used",
    )


def document_of(args: argparse.Namespace) -> str:
    """The document itself, for an enclave that appraises its CAS with it; empty if none was given.

    Raises:
        PolicyError: it holds no reference values.
    """
    path = getattr(args, "cas_reference", None)
    if path is None:
        return ""
    from strongroom.cas.policy.version import reference_of
    from strongroom.cli.attest.appraise import read_document

    document = read_document(path)
    reference_of(document)
    return document


def of(args: argparse.Namespace) -> ReferenceValues | None:
    """The reference values, or None if none were given. Raises PolicyError."""
    path = getattr(args, "cas_reference", None)
    if path is None:
        return None
    from strongroom.cli.attest.appraise import read_reference

    return read_reference(path)
