"""How `strongroom attest` prints fields: aligned columns whose last one wraps at the terminal's edge.

In a pipe nothing wraps, so that every field is one line.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from rich.text import Text

from strongroom.cli import output
from strongroom.errors import printable

_DIGITS = 16  # of a byte string that is shortened
_GAP = "  "
# Lines that go on stand under their column, or further left where it would be narrower than this.
_LEAST, _SHORT_HANG = 24, 28
_WIDEST = 34  # of a column, as a shortened byte string is wide: longer cells stick out


def octets(value: bytes, *, full: bool) -> str:
    """Bytes in hexadecimal digits, shortened unless `full`."""
    text = value.hex()
    if full or len(text) <= 2 * _DIGITS:
        return text or "empty"
    if not any(value):
        return f"zero ({len(value)} bytes)"
    return f"{text[:_DIGITS]}... ({len(value)} bytes)"


def heading(text: str, note: str = "") -> None:
    """A title, and in brackets what is to be known of what stands under it."""
    output.stdout.print()
    output.stdout.print(Text(printable(text), style="bold"), soft_wrap=True, end="")
    for line in _wrapped(f" ({printable(note)})" if note else "", len(text), 2):
        output.stdout.print(line, markup=False, soft_wrap=True)


def table(rows: Sequence[Sequence[str]], *, styles: Sequence[str] | None = None) -> None:
    """Rows of equally many cells; the last cell of each wraps. `styles` are colours of whole rows.

    A cell that is longer than its column gets no column of that width for all rows: what follows it stands on the next
    line, under its own column, or in a pipe right after it.
    """
    cells = [[_printable(cell) for cell in row] for row in rows]
    columns = len(cells[0]) if cells else 0
    widths = [max((len(row[i]) for row in cells if len(row[i]) <= _WIDEST), default=0) for i in range(columns - 1)]
    column = len(_GAP) + sum(width + len(_GAP) for width in widths)
    for index, row in enumerate(cells):
        start = _GAP + "".join(cell.ljust(width) + _GAP for cell, width in zip(row[:-1], widths, strict=True))
        hang = column if output.stdout.width - column >= _LEAST else _SHORT_HANG
        style = styles[index] if styles else ""
        if len(start) > column and row[-1] and output.stdout.is_terminal:
            output.stdout.print(Text(start.rstrip(), style=style), soft_wrap=True)
            start = " " * hang
        lines = _wrapped(row[-1], len(start), hang)
        for number, line in enumerate(lines):
            text = (start + line if number == 0 else line).rstrip()
            output.stdout.print(Text(text, style=style), soft_wrap=True)


def _printable(text: str) -> str:
    """As `errors.printable`, of any length: --full means every byte."""
    return "".join(c if c.isprintable() else " " for c in text)


def _wrapped(text: str, used: int, indent: int) -> list[str]:
    """`text` in lines: the first has room for what is left after `used` columns, the others start at `indent`."""
    if not output.stdout.is_terminal:
        return [text]
    room = max(output.stdout.width, 40)
    first = textwrap.wrap(
        text, room, initial_indent=" " * min(used, room - 12), subsequent_indent=" " * indent, break_long_words=False
    )
    return [first[0][min(used, room - 12) :], *first[1:]] if first else [""]
