"""`strongroom policy request`: ask another policy's people for what a document imports of it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from strongroom.cas.policy.grant_files import GrantRequest
from strongroom.cas.policy.grants import imports
from strongroom.cli.policy.files import warn_of_zeros
from strongroom.cli.workspace import read_policy
from strongroom.errors import UsageError


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("policy", type=Path, metavar="FILE")
    parser.add_argument(
        "--from", dest="source", metavar="NAMESPACE/NAME", help="whose people to ask, if it imports from several"
    )


def run(args: argparse.Namespace) -> int:
    policy = read_policy(args.policy)
    sources = list(imports(policy))
    if not sources:
        raise UsageError(f"policy {policy.name}: imports nothing", hint="say from = in [[secrets]], [[vaults]] or so")
    if args.source is None and len(sources) > 1:
        raise UsageError(
            f"policy {policy.name}: imports from {', '.join(sources)[:300]}", hint="--from says whose people to ask"
        )
    warn_of_zeros(policy, args.policy)
    sys.stdout.write(GrantRequest.of(policy, args.source or sources[0]).to_text())
    return 0
