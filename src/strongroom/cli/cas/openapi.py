"""`strongroom cas openapi`: the CAS's API as an OpenAPI document, for generators of clients and other tools."""

from __future__ import annotations

import argparse

from strongroom.cas.service.app import described
from strongroom.cli import output
from strongroom.cli.parser import add_debug


def configure(parser: argparse.ArgumentParser) -> None:
    add_debug(parser)
    output.add_json(parser)


def run() -> int:
    """Print the document of the CAS that this version of Strongroom runs; none is asked."""
    output.result(described())
    return 0
