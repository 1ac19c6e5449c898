"""A TOML document of which every key must be taken: what is not understood is refused, by name.

A reader raises at the first problem. To explain a document, the same reader goes on instead: it notes each problem and
takes an empty value in its place; what it then makes of the document is thrown away.
"""

from __future__ import annotations

import datetime as dt
import difflib
import json
import math
import re
import tomllib
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from strongroom.cas.wire import FINGERPRINT as FINGERPRINT
from strongroom.errors import PolicyError

MAX_DOCUMENT = 1 << 18
_MAX_DOTS = 16
_MAX_PROBLEMS = 100

# Strings and comments of TOML (https://toml.io/en/v1.0.0). An open one reaches to its line's or the document's end.
QUOTED = re.compile(
    r'"""(?:[^\\]|\\.)*?(?:"{3,5}|\Z)'
    r"|'''.*?(?:'{3,5}|\Z)"
    r'|"(?:[^"\\\n]|\\.)*+"?'
    r"|'[^'\n]*+'?"
    r"|#[^\n]*+",
    re.DOTALL,
)


@dataclass(frozen=True)
class Problem:
    """What is wrong with one place of a document; `where` is its keys and numbers, from the outermost table down."""

    where: tuple[str | int, ...]
    error: PolicyError

    @property
    def key(self) -> str:
        """The place as a person writes it: ``vaults[0].mount``."""
        text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in self.where)
        return text.removeprefix(".")


def parse_toml(text: str, *, problems: list[Problem] | None = None) -> Table:
    """The document as its outermost table.

    Args:
        problems: where to note what is wrong with its contents, in place of raising it.

    Raises:
        PolicyError: it is longer than 256 KiB, no TOML, has more dots in a line than any policy needs, or holds a
            character that hides what it says.
    """
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise PolicyError("policy: holds a lone surrogate, wanted Unicode text") from None
    if size > MAX_DOCUMENT:
        raise PolicyError(f"policy: {size} bytes, the limit is {MAX_DOCUMENT}")
    # The parser takes time quadratic in the parts of a dotted key: 7 s for 40 KB. No policy needs long ones.
    for line in QUOTED.sub("", text).split("\n"):
        if line.count(".") > _MAX_DOTS:
            raise PolicyError(f"policy: {line.count('.')} dots in one line outside strings, the limit is {_MAX_DOTS}")
    _check_shown(text)
    try:
        return Table(tomllib.loads(text), _TOP, problems=problems)
    except (ValueError, RecursionError) as error:  # ValueError: also numbers of thousands of digits
        raise PolicyError(f"policy: not TOML: {str(error)[:200]}") from None


# Categories of Unicode whose characters show nothing, move what stands beside them, or look like the end of a line:
# control characters, formats (marks of direction among them), separators of lines and of paragraphs.
_HIDING = ("Cc", "Cf", "Zl", "Zp")


def _check_shown(text: str) -> None:
    """Raises PolicyError where a reader of the document would see something else than what it says."""
    text = text.replace("\r\n", "\n")  # a line's end in TOML too
    found = [c for c in set(text) if c not in "\t\n" and unicodedata.category(c) in _HIDING]
    if found:
        at = min(map(text.index, found))
        line, column = text.count("\n", 0, at) + 1, at - text.rfind("\n", 0, at)
        raise PolicyError(
            f"policy: holds the unseen character U+{ord(text[at]):04X} (at line {line}, column {column})",
            hint="take it out; a string that needs it has it as \\uXXXX",
        )


def to_toml(value: str | Sequence[str]) -> str:
    """A string, or an array of strings, as a document takes it: JSON's form, but for what `parse_toml` would refuse."""
    return "".join(_escaped(c) for c in json.dumps(value, ensure_ascii=False))


def _escaped(c: str) -> str:
    if (c.isascii() and c != "\x7f") or unicodedata.category(c) not in _HIDING:
        return c
    return f"\\u{ord(c):04x}" if ord(c) < 1 << 16 else f"\\U{ord(c):08x}"


def number(value: object) -> str:
    """A value in place of which a number was wanted, for a message."""
    # Hexadecimal numbers may be longer than Python agrees to print.
    return str(value) if isinstance(value, int) and abs(value) < 1 << 63 else type(value).__name__


_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MISSING: Any = object()
_TOP = "policy document"


class Table:
    """A TOML table whose every key must be taken.

    Args:
        path: what messages call it.
        where: its place in the document.
        problems: where to note what is refused; if None, it is raised.
    """

    def __init__(
        self, value: object, path: str, *, where: tuple[str | int, ...] = (), problems: list[Problem] | None = None
    ) -> None:
        self.path = path
        self.where = where
        self._problems = problems
        self._taken: set[str] = set()
        if not isinstance(value, dict):
            self.refuse(f"{path}: got {type(value).__name__}, wanted a table")
            value = {}
            self._problems = []  # what an empty table lacks is not what is wrong
        self.value = value

    def refuse(self, message: str, *at: str | int, hint: str | None = None) -> None:
        """Raise a PolicyError, or note it, unless something at or below that place is noted already.

        Args:
            at: the place, from this table down.
        """
        error = PolicyError(message, hint=hint)
        if self._problems is None:
            raise error
        where = (*self.where, *at)
        if len(self._problems) < _MAX_PROBLEMS and not any(n.where[: len(where)] == where for n in self._problems):
            self._problems.append(Problem(where, error))

    @property
    def explains(self) -> bool:
        """Whether problems are noted and not raised."""
        return self._problems is not None

    def take(self, key: str, default: Any = _MISSING) -> Any:
        self._taken.add(key)
        value = self.value.get(key, default)
        if value is _MISSING:
            self.refuse(f"{self.path}.{key}: missing", key)
            return None
        return value

    def finish(self) -> None:
        for key in sorted(set(self.value) - self._taken):
            near = difflib.get_close_matches(key[:80], self._taken, 1)
            self.refuse(
                f"{self.path}: unknown key {key[:80]!r}; known here: {', '.join(sorted(self._taken))}",
                key,
                hint=f"did you mean {near[0]}?" if near else None,
            )

    def table(self, key: str) -> Table:
        return self._table(self.take(key), key)

    def optional_table(self, key: str) -> Table | None:
        value = self.take(key, None)
        return None if value is None else self._table(value, key)

    def _table(self, value: object, key: str) -> Table:
        path = key if self.path == _TOP else f"{self.path}.{key}"
        return Table(value, path, where=(*self.where, key), problems=self._problems)

    def tables(self, key: str) -> list[Table]:
        value = self.take(key, [])
        path = key if self.path == _TOP else f"{self.path}.{key}"
        if not isinstance(value, list):
            self.refuse(f"{path}: wanted an array of tables, [[{path}]]", key)
            return []
        return [Table(v, path, where=(*self.where, key, i), problems=self._problems) for i, v in enumerate(value)]

    def text(self, key: str, default: Any = _MISSING, *, limit: int = 4096) -> str:
        value = self.take(key, default)
        if not isinstance(value, str) or len(value) > limit:
            self.refuse(
                f"{self.path}.{key}: got {type(value).__name__}, wanted a string of at most {limit} characters", key
            )
            return ""
        return value

    def match(self, key: str, pattern: re.Pattern[str], wanted: str, default: Any = _MISSING) -> str:
        value = self.text(key, default)
        if not pattern.fullmatch(value):
            self.refuse(f"{self.path}.{key}: got {value[:80]!r}, wanted {wanted}", key)
        return value

    def choice(self, key: str, options: tuple[str, ...], default: Any = _MISSING) -> str:
        value = self.text(key, default)
        if value not in options:
            self.refuse(f"{self.path}.{key}: got {value[:80]!r}, wanted {' or '.join(options)}", key)
        return value

    def positive(self, key: str, default: Any = _MISSING) -> int:
        value = self.take(key, default)
        if value is default:
            return default  # type: ignore[no-any-return]  # the caller's own
        if type(value) is not int or not 1 <= value < 1 << 31:
            self.refuse(f"{self.path}.{key}: got {number(value)}, wanted a positive whole number", key)
            return 1
        return value

    def between(self, key: str, lowest: int, highest: int, default: Any = _MISSING) -> int:
        value = self.take(key, default)
        if value is default:
            return default  # type: ignore[no-any-return]  # the caller's own
        if type(value) is not int or not lowest <= value <= highest:
            self.refuse(f"{self.path}.{key}: got {number(value)}, wanted {lowest} to {highest}", key)
            return lowest
        return value

    def moment(self, key: str) -> int | None:
        """An offset date-time as Unix seconds, a fraction cut off; None where the key is missing."""
        value = self.take(key, None)
        if value is None:
            return None
        if not isinstance(value, dt.datetime):
            self.refuse(
                f"{self.path}.{key}: got {type(value).__name__}, wanted a date and time such as 2027-01-01T00:00:00Z",
                key,
                hint="without quotes" if isinstance(value, str) else None,
            )
        elif value.tzinfo is None:
            self.refuse(
                f"{self.path}.{key}: got {value.isoformat()}, which is another moment in every time zone",
                key,
                hint=f"write {value.isoformat()}Z for UTC, or an offset such as +02:00",
            )
        else:
            return math.floor((value - _EPOCH).total_seconds())
        return None

    def flag(self, key: str, default: Any = _MISSING) -> bool:
        value = self.take(key, default)
        if type(value) is not bool:
            self.refuse(f"{self.path}.{key}: got {type(value).__name__}, wanted true or false", key)
            return False
        return value

    def optional_strings(self, key: str) -> tuple[str, ...] | None:
        """None where the key is missing; an empty array is refused as nothing would pass it."""
        return self.strings(key) if key in self.value else self.take(key, None)

    def strings(self, key: str, default: Any = _MISSING) -> tuple[str, ...]:
        value = self.take(key, default)
        if not isinstance(value, list | tuple) or not all(isinstance(v, str) and "\0" not in v for v in value):
            self.refuse(f"{self.path}.{key}: wanted an array of strings", key)
            return ()
        if not value and default is _MISSING:
            self.refuse(f"{self.path}.{key}: is empty, and nothing would pass it", key)
        return tuple(value)

    def words(self, key: str, pattern: re.Pattern[str], wanted: str, default: Any = _MISSING) -> tuple[str, ...]:
        """Strings of one form, each once."""
        values = self.strings(key, default)
        seen: set[str] = set()
        for value in values:
            if not pattern.fullmatch(value):
                self.refuse(f"{self.path}.{key}: got {value[:80]!r}, wanted {wanted}", key)
                break  # one problem of a place is told
            if value in seen:
                self.refuse(f"{self.path}.{key}: {value!r} appears twice", key)
                break
            seen.add(value)
        return values
