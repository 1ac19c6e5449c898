"""The parser of the command line and of every verb and action below it."""

from __future__ import annotations

import argparse
import importlib
import textwrap
from collections.abc import Sequence
from typing import Any, ClassVar, NoReturn

from strongroom.cli import output
from strongroom.errors import UsageError

DEBUG = "show the stack trace of an error"


class Formatter(argparse.HelpFormatter):
    """Help whose lines all fit the terminal: argparse leaves options that exclude each other on one line. A text that
    has line breaks keeps them."""

    def _format_usage(self, *arguments: Any) -> str:
        return "".join(f"{line}\n" for line in self._fitted(super()._format_usage(*arguments)))

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if "\n" not in text:
            return super()._fill_text(text, width, indent)
        return "\n".join(indent + line for line in self._fitted(text))

    def _fitted(self, text: str) -> list[str]:
        lines: list[str] = []
        for line in text.splitlines():
            further = " " * (len(line) - len(line.lstrip()) + 1)
            lines += textwrap.wrap(
                line, self._width, subsequent_indent=further, break_long_words=False, break_on_hyphens=False
            ) or [""]
        return lines


class Parser(argparse.ArgumentParser):
    """Says bad usage as JSON where the command line asks for JSON.

    Attributes:
        as_json: whether it does, for all parsers of this process.
        module: whose `configure` adds this parser's arguments, when it is first used: so that help on one action does
            not import what the others need.
    """

    as_json: ClassVar[bool] = False
    module: str | None = None

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **{"formatter_class": Formatter, **more})

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
