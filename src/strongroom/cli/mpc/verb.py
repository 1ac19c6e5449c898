"""`strongroom mpc`: computing on secrets, by two servers that do not collude and a dealer that sees no data."""

from __future__ import annotations

import argparse
import importlib.util
from typing import Final

from strongroom.cli import actions
from strongroom.cli.parser import Parser
from strongroom.errors import MissingDependencyError

# What each action is, and an example. Its module is `cli/mpc_ACTION.py`, which offers what a verb's does.
ACTIONS: Final = {
    "run": ("run a program on secrets: as three processes here, or as one party of three hosts", "run predict.py"),
    "cost": ("say what a model or a program on secrets will cost", "cost --shape 1,1,28,28 model.onnx"),
    "measure": ("measure a dealer's enclave, for the policy that servers appraise it by", "measure predict.py"),
    "certificates": ("make the certificates that the parties know each other by", "certificates certificates"),
    "audit": ("print what was revealed, and verify the servers' logs of it", "audit P0.audit P1.audit"),
}


def configure(parser: Parser) -> None:
    actions.configure(parser, "mpc", ACTIONS)


def run(args: argparse.Namespace) -> int:
    return actions.run(args, "mpc")


def require_torch() -> None:
    """Raises MissingDependencyError if PyTorch is not installed."""
    if importlib.util.find_spec("torch") is None:
        raise MissingDependencyError("torch: is not installed", hint="pip install 'strongroom[mpc]'")
