"""Where in a TOML document a key stands, which the standard library's parser does not tell."""

from __future__ import annotations

import json
import re
from itertools import islice

from strongroom.cas.policy.table import QUOTED

_HEADER = re.compile(r"\s*(\[\[?)([^\[\]]+)\]")
_PART = re.compile(r""""(?:[^"\\]|\\.)*"|'[^']*'|[A-Za-z0-9_-]+""")
_DEEPEST = 20  # more parts than a key of a sound document can have
_AT_LINE = re.compile(r"\(at line (\d+),")

Place = tuple[str | int, ...]


def syntax_line(text: str, message: str) -> int:
    """The line that the TOML parser's message names, or 1."""
    if "(at end of document)" in message:
        return text.rstrip().count("\n") + 1
    found = _AT_LINE.search(message)
    return int(found[1]) if found else 1


class Lines:
    """The lines of a document's keys and tables. It is for messages: what it says of no TOML is not defined."""

    def __init__(self, text: str) -> None:
        self._lines: dict[Place, int] = {}
        self._tables: dict[Place, int] = {}  # of each array of tables, how many have come
        # Strings and comments are blanked at their length, so that only structure is left.
        blank = QUOTED.sub(lambda found: re.sub(r"[^\n]", " " if found[0].startswith("#") else "_", found[0]), text)
        table: Place = ()
        depth = 0
        for number, (line, shown) in enumerate(zip(text.split("\n"), blank.split("\n"), strict=True), start=1):
            header, (key, assigns, _) = _HEADER.match(shown), shown.partition("=")
            if depth == 0 and header:
                table = self._table(_parts(line[header.start(2) : header.end(2)]), array=header[1] == "[[")
                self._note(table, number)
                continue
            if depth == 0 and assigns:
                self._note((*table, *_parts(line[: len(key)])), number)
            depth += sum(shown.count(c) for c in "[{") - sum(shown.count(c) for c in "]}")

    def of(self, where: Place) -> int:
        """The line of that place, or of the nearest one around it; 1 if there is none."""
        for length in range(len(where), 0, -1):
            if where[:length] in self._lines:
                return self._lines[where[:length]]
        return 1

    def _table(self, parts: Place, *, array: bool) -> Place:
        """The place of a table from its header: of an array of tables it is, or lies in, the last."""
        place: Place = ()
        for position, part in enumerate(parts):
            place = (*place, part)
            if array and position == len(parts) - 1:
                self._tables[place] = self._tables.get(place, 0) + 1
            if place in self._tables:
                place = (*place, self._tables[place] - 1)
        return place

    def _note(self, place: Place, line: int) -> None:
        for length in range(1, len(place) + 1):
            self._lines.setdefault(place[:length], line)


def _parts(key: str) -> Place:
    return tuple(_unquoted(found[0]) for found in islice(_PART.finditer(key), _DEEPEST))


def _unquoted(part: str) -> str:
    if part.startswith("'"):
        return part[1:-1]
    if part.startswith('"'):
        try:
            return str(json.loads(part))
        except ValueError:
            return part
    return part
