"""`strongroom policy schema`: the JSON Schema of a policy's document."""

from __future__ import annotations

import argparse

from strongroom.cas.policy.schema import policy_schema
from strongroom.cli import output


def configure(parser: argparse.ArgumentParser) -> None:
    output.add_json(parser)


def run(args: argparse.Namespace) -> int:
    output.result(policy_schema())
    return 0
