"""`strongroom mpc`: computing on secrets, by two servers that do not collude and a dealer that sees no data."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
from typing import Final

from strongroom.errors import MissingDependencyError

# What each action is, and an example. Its module is `cli/mpc_ACTION.py`, which offers what a verb's does.
ACTIONS: Final = {
    "run": ("run a program on secrets: as three processes here, or as one party of three hosts", "run predict.py"),
    "cost": ("say what a model or a program on secrets will cost", "cost --shape 1,1,28,28 model.onnx"),
    "measure": ("measure a dealer's enclave, for the policy that servers appraise it by", "measure predict.py"),
    "certificates": ("make the certificates that the parties know each other by", "certificates certificates"),
    "audit": ("print what was revealed, and verify the servers' logs of it", "audit P0.audit P1.audit"),
}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(help=parser.print_help)
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    for name, (summary, example) in ACTIONS.items():
        action = actions.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            epilog=f"Example: strongroom mpc {example}",
        )
        action.set_defaults(parser=action)
        action.add_argument("--debug", action="store_true", help=argparse.SUPPRESS)
        importlib.import_module(f"strongroom.cli.mpc_{name}").configure(action)


def run(args: argparse.Namespace) -> int:
    if args.action is None:
        args.help()
        return 2
    status: int = importlib.import_module(f"strongroom.cli.mpc_{args.action}").run(args)
    return status


def require_torch() -> None:
    """Raises MissingDependencyError if PyTorch is not installed."""
    if importlib.util.find_spec("torch") is None:
        raise MissingDependencyError("torch: is not installed", hint="pip install 'strongroom[mpc]'")
