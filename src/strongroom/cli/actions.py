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
            description=f"{summary[0].upper()}{summary[1:]}.",
            epilog=_to_copy(f"Example: strongroom {verb} {example}"),
        )
        action.set_defaults(parser=action)
        action.module = f"strongroom.cli.{verb}.{name}"
        add_debug(action)


def _to_copy(command: str) -> str:
    """A command in lines that a shell takes together."""
    lines = textwrap.wrap(command, 76, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    return " \\\n".join(lines)


def run(args: argparse.Namespace, verb: str) -> int:
    if args.action is None:
        args.help()
        return 2
    status: int = importlib.import_module(f"strongroom.cli.{verb}.{args.action}").run(args)
    return status
