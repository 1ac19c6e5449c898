"""A file of options for `strongroom cas start`, so that a service's unit is short.

TOML, whose keys are the options' names without their dashes; an option that may be given again takes a list, one
without a value true. Nothing else may stand on the command line beside it but --json and --debug: what runs is what
the file says.
"""

from __future__ import annotations

import argparse
import tomllib
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

from strongroom.errors import FormatError, UsageError

_MAX_FILE = 1 << 16


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="read the other options from a TOML file, and give none here"
    )


class _Quiet(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def read(args: argparse.Namespace, options: Callable[[argparse.ArgumentParser], None]) -> argparse.Namespace:
    """The arguments, from the file where one is named.

    Args:
        options: adds those that may stand in a file.

    Raises:
        FormatError: the file is no TOML, or has a key or a value that there is not.
        UsageError: there are options beside it.
    """
    if args.config is None:
        return args
    parser = _Quiet(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    options(parser)
    actions = {name: action for action in parser._actions for name in action.option_strings}
    defaults = _parse(_with_defaults(options), [])
    beside = [
        name.lstrip("-")
        for name, action in actions.items()
        if getattr(args, action.dest) != getattr(defaults, action.dest)
    ]
    if beside:
        raise UsageError(f"--config: got --{beside[0]} beside it", hint=f"say `{beside[0]} = ...` in {args.config}")
    words: list[str] = []
    for key, value in _table(args.config).items():
        action = actions.get(f"--{key}")
        if action is None:
            near = get_close_matches(key, [name.lstrip("-") for name in actions], n=1)
            raise FormatError(
                f"{args.config}: got an unknown key {key[:80]!r}",
                hint=f"did you mean {near[0]}?" if near else "`strongroom cas start --help` lists them",
            )
        words += _words(args.config, key, value, action)
    try:
        parsed = _parse(_with_defaults(options), words)
    except UsageError as error:
        raise FormatError(f"{args.config}: {error.message}", hint=error.hint) from None
    return argparse.Namespace(**vars(args) | vars(parsed))


def _with_defaults(options: Callable[[argparse.ArgumentParser], None]) -> argparse.ArgumentParser:
    parser = _Quiet(add_help=False, allow_abbrev=False)
    options(parser)
    return parser


def _parse(parser: argparse.ArgumentParser, words: list[str]) -> argparse.Namespace:
    return parser.parse_args(words)


def _table(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        raw = file.read(_MAX_FILE + 1)
    if len(raw) > _MAX_FILE:
        raise FormatError(f"{path}: longer than {_MAX_FILE} bytes")
    try:
        return tomllib.loads(raw.decode())
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: not TOML in UTF-8: {str(error)[:200]}") from None


def _words(path: Path, key: str, value: object, action: argparse.Action) -> list[str]:
    """As the command line would have it. ``--key=value`` in one word: a value may begin with a dash."""
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise FormatError(f"{path}: {key}: got {_kind(value)}, wanted true or false")
        return [f"--{key}"] if value else []
    repeated = isinstance(action, argparse._AppendAction)
    if isinstance(value, list) != repeated:
        raise FormatError(f"{path}: {key}: got {_kind(value)}, wanted {'a list' if repeated else 'one value'}")
    values = value if isinstance(value, list) else [value]
    for one in values:
        if isinstance(one, bool) or not isinstance(one, str | int):
            raise FormatError(f"{path}: {key}: got {_kind(one)}, wanted a string or a whole number")
    return [f"--{key}={one}" for one in values]


def _kind(value: object) -> str:
    return {bool: "a boolean", list: "a list", dict: "a table", str: "a string", int: "a number"}.get(
        type(value), type(value).__name__
    )
