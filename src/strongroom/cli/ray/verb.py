"""`strongroom ray ACTION`: each action is a module of its own beside this one."""

from __future__ import annotations

import argparse
from typing import Final

from strongroom.cli import actions
from strongroom.cli.parser import Parser

ACTIONS: Final = {
    "up": (
        "start the nodes of a Ray cluster, each an enclave, and run a script on it",
        "up --nodes 2 --data digits.vault -- python train.py",
    ),
}


def configure(parser: Parser) -> None:
    actions.configure(parser, "ray", ACTIONS)


def run(args: argparse.Namespace) -> int:
    return actions.run(args, "ray")
