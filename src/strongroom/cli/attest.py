"""`strongroom attest`: what evidence says, whether its vendor vouches for it, and whether a policy wants it."""

from __future__ import annotations

import argparse
import importlib
import textwrap
from typing import Final

from strongroom.cli.parser import DEBUG, Parser

# What each action is, and an example. Its module is `cli/attest_ACTION.py`, which offers what a verb's does.
ACTIONS: Final = {
    "show": ("explain evidence field by field, without verifying it", "show quote.bin"),
    "verify": (
        "follow the signatures from a vendor's root to the claims",
        "verify quote.bin --endorsements collateral.json --at 2025-07-04",
    ),
    "appraise": (
        "verify, then compare the claims with a policy's reference values, step by step",
        "appraise quote.bin --endorsements collateral.json --policy policy.toml --nonce challenge",
    ),
    "here": ("get evidence of what this command runs in", "here --nonce challenge --out evidence.json"),
    "endorsements": (
        "fetch what vendors sign about their hardware, or bundle it for verifiers without a network",
        "endorsements bundle quote.bin report.bin --out endorsements.bundle",
    ),
}


def configure(parser: Parser) -> None:
    parser.set_defaults(help=parser.print_help)
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    for name, (summary, example) in ACTIONS.items():
        action = actions.add_parser(
            name,
            help=summary,
            description=textwrap.fill(f"{summary[0].upper()}{summary[1:]}.", 78),
            epilog=f"Example: strongroom attest {example}",  # never wrapped: it is for copying
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        action.set_defaults(parser=action)
        action.module = f"strongroom.cli.attest_{name}"
        # Without a default: it must not take back a --debug before the action.
        action.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=DEBUG)


def run(args: argparse.Namespace) -> int:
    if args.action is None:
        args.help()
        return 2
    status: int = importlib.import_module(f"strongroom.cli.attest_{args.action}").run(args)
    return status
