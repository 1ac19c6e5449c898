"""`strongroom attest`: what evidence says, whether its vendor vouches for it, and whether a policy wants it."""

from __future__ import annotations

import argparse
from typing import Final

from strongroom.cli import actions
from strongroom.cli.parser import Parser

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
    "expect": (
        "compute what a confidential VM is measured as, as lines for a policy, before it runs",
        "expect snp --firmware OVMF.fd --kernel vmlinuz --vcpus 4 --vcpu-type EPYC-v4",
    ),
    "endorsements": (
        "fetch what vendors sign about their hardware, or bundle it for verifiers without a network",
        "endorsements bundle quote.bin report.bin --out endorsements.bundle",
    ),
}


def configure(parser: Parser) -> None:
    actions.configure(parser, "attest", ACTIONS)


def run(args: argparse.Namespace) -> int:
    return actions.run(args, "attest")
