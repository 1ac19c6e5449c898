"""Verbs of several actions, each in a module of its own, `cli/VERB/ACTION.py`, which offers what a verb's does."""

from __future__ import annotations

import argparse
import importlib
import textwrap
from collections.abc import Mapping

from strongroom.cli.parser import Parser, add_debug

Actions = Mapping[str, tuple[str, str]]
"""What each action is, and an example."""


def configure(parser: Parser, verb: str, actions: Actions) -> None:
    parser.set_defaults(help=parser.print_help)
    choices = parser.add_subparsers(dest="action", metavar="ACTION")
    for name, (summary, example) in actions.items():
        action = choices.add_parser(
            name,
            help=summary,
            description=textwrap.fill(f"{summary[0].upper()}{summary[1:]}.", 78),
            epilog=f"Example: strongroom {verb} {example}",  # never wrapped: it is for copying
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        action.set_defaults(parser=action)
        action.module = f"strongroom.cli.{verb}.{name}"
        add_debug(action)


def run(args: argparse.Namespace, verb: str) -> int:
    if args.action is None:
        args.help()
        return 2
    status: int = importlib.import_module(f"strongroom.cli.{verb}.{args.action}").run(args)
    return status
