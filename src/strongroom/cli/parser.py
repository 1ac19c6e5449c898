"""The parser of the command line and of every verb and action below it."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from typing import Any, ClassVar, NoReturn

from strongroom.cli import output
from strongroom.errors import UsageError

DEBUG = "show the stack trace of an error"


class Parser(argparse.ArgumentParser):
    """Says bad usage as JSON where the command line asks for JSON.

    Attributes:
        as_json: whether it does, for all parsers of this process.
        module: whose `configure` adds this parser's arguments, when it is first used: so that help on one action does
            not import what the others need.
    """

    as_json: ClassVar[bool] = False
    module: str | None = None

    def error(self, message: str) -> NoReturn:
        if Parser.as_json:
            output.error(UsageError(message), as_json=True)
            self.exit(UsageError.exit_code)
        super().error(message)

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[argparse.Namespace, list[str]]:
        if self.module is not None:
            module, self.module = self.module, None
            importlib.import_module(module).configure(self)
        return super().parse_known_args(args, namespace)


def add_debug(parser: argparse.ArgumentParser) -> None:
    """The option once more, for an action. Without a default: it must not take back one before the action."""
    parser.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=DEBUG)
