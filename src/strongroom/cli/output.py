"""What the command line says and how: results on standard output, everything else on standard error.

The voice: a prefix, lower case, no full stop, one hint.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from argparse import ArgumentParser, _MutuallyExclusiveGroup
from typing import Literal

from rich.console import Console

from strongroom.errors import StrongroomError, printable

_DIGEST = re.compile(r"(?<![0-9A-Za-z])([0-9a-f]{16})[0-9a-f]{24,}(?![0-9A-Za-z])")


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """The reader left, as `head` does: without one for the result the command ends, which `main` sees to. Notes
        that nobody reads end nothing."""
        if not self.stderr:
            raise BrokenPipeError
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stderr.fileno())
        os.close(nowhere)


# https://no-color.org; rich would keep bold type then.
_COLOURS: Literal["auto"] | None = None if os.environ.get("NO_COLOR") else "auto"
stdout = _Console(highlight=False, emoji=False, color_system=_COLOURS)
stderr = _Console(stderr=True, highlight=False, emoji=False, color_system=_COLOURS)

SIMULATED_BANNER = (
    "simulated enclave: isolates like a sandbox and attests like hardware, "
    "but protects nothing against the owner of this machine"
)


def add_json(parser: ArgumentParser | _MutuallyExclusiveGroup) -> None:
    """Give a verb that reports the flag `--json`."""
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")


def result(value: object) -> None:
    """Print a JSON result."""
    json.dump(value, sys.stdout, indent=2, sort_keys=False)
    sys.stdout.write("\n")


def note(message: str) -> None:
    """Tell the person at the terminal something that is not the result.

    What of the result was printed before comes before it, where both go to one place.
    """
    sys.stdout.flush()
    stderr.print(f"strongroom: {printable(message)}", markup=False, soft_wrap=True)


class _Notes(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        note(record.getMessage())
        if record.exc_info:
            stderr.print(logging.Formatter().formatException(record.exc_info), markup=False, soft_wrap=True)


def show_log() -> None:
    """Print the library's warnings as notes, in place of whatever handled them."""
    set_log_handler(_Notes())


def set_log_handler(handler: logging.Handler) -> None:
    """Have `handler` alone get what the library logs."""
    logger = logging.getLogger("strongroom")
    logger.handlers[:] = [handler]


def warn(message: str) -> None:
    """A note that must not be overlooked."""
    sys.stdout.flush()
    stderr.print(f"strongroom: warning: {printable(message)}", markup=False, style="yellow", soft_wrap=True)


def shortened(text: str) -> str:
    """A message with the beginnings of its digests, which a person cannot compare as a whole; of two that begin alike,
    the whole."""
    found = {match[0]: match[1] for match in _DIGEST.finditer(text)}
    alike = len({*found.values()}) < len(found)
    return text if alike else _DIGEST.sub(r"\1...", text)


def error(problem: StrongroomError, *, as_json: bool = False) -> None:
    """One line for the error, with its digests `shortened`, one for the hint; as JSON it is the result, and whole."""
    if as_json:
        result(problem.to_wire() | {"exit_status": problem.exit_code})
        sys.stdout.flush()
        return
    stderr.print(
        f"strongroom: error: {printable(shortened(problem.message))}", markup=False, style="red", soft_wrap=True
    )
    if problem.hint:
        stderr.print(f"strongroom: hint: {printable(problem.hint)}", markup=False, soft_wrap=True)
