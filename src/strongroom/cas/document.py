"""A TOML document of which every key must be taken: what is not understood is refused, by name."""

from __future__ import annotations

import difflib
import re
import tomllib
from typing import Any

from strongroom.errors import PolicyError

MAX_DOCUMENT = 1 << 18
_MAX_DOTS = 16
FINGERPRINT = re.compile(r"sha256:[0-9a-f]{64}")

# Strings and comments of TOML (https://toml.io/en/v1.0.0). An open one reaches to its line's or the document's end.
_QUOTED = re.compile(
    r'"""(?:[^\\]|\\.)*?(?:"{3,5}|\Z)'
    r"|'''.*?(?:'{3,5}|\Z)"
    r'|"(?:[^"\\\n]|\\.)*+"?'
    r"|'[^'\n]*+'?"
    r"|#[^\n]*+",
    re.DOTALL,
)


def parse_toml(text: str) -> Table:
    """The document as its outermost table.

    Raises:
        PolicyError: it is longer than 256 KiB, no TOML, or has more dots in a line than any policy needs.
    """
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise PolicyError("policy: holds a lone surrogate, wanted Unicode text") from None
    if size > MAX_DOCUMENT:
        raise PolicyError(f"policy: {size} bytes, the limit is {MAX_DOCUMENT}")
    # The parser takes time quadratic in the parts of a dotted key: 7 s for 40 KB. No policy needs long ones.
    for line in _QUOTED.sub("", text).split("\n"):
        if line.count(".") > _MAX_DOTS:
            raise PolicyError(f"policy: {line.count('.')} dots in one line outside strings, the limit is {_MAX_DOTS}")
    try:
        return Table(tomllib.loads(text), _TOP)
    except (ValueError, RecursionError) as error:  # ValueError: also numbers of thousands of digits
        raise PolicyError(f"policy: not TOML: {str(error)[:200]}") from None


def number(value: object) -> str:
    """A value in place of which a number was wanted, for a message."""
    # Hexadecimal numbers may be longer than Python agrees to print.
    return str(value) if isinstance(value, int) and abs(value) < 1 << 63 else type(value).__name__


_MISSING: Any = object()
_TOP = "policy document"


class Table:
    """A TOML table whose every key must be taken."""

    def __init__(self, value: object, path: str) -> None:
        if not isinstance(value, dict):
            raise PolicyError(f"{path}: got {type(value).__name__}, wanted a table")
        self.value = value
        self.path = path
        self._taken: set[str] = set()

    def take(self, key: str, default: Any = _MISSING) -> Any:
        self._taken.add(key)
        value = self.value.get(key, default)
        if value is _MISSING:
            raise PolicyError(f"{self.path}.{key}: missing")
        return value

    def finish(self) -> None:
        unknown = sorted(set(self.value) - self._taken)
        if unknown:
            known = ", ".join(sorted(self._taken))
            near = difflib.get_close_matches(unknown[0][:80], self._taken, 1)
            raise PolicyError(
                f"{self.path}: unknown key {unknown[0][:80]!r}; known here: {known}",
                hint=f"did you mean {near[0]}?" if near else None,
            )

    def table(self, key: str) -> Table:
        return Table(self.take(key), self._below(key))

    def optional_table(self, key: str) -> Table | None:
        value = self.take(key, None)
        return None if value is None else Table(value, self._below(key))

    def tables(self, key: str) -> list[Table]:
        value = self.take(key, [])
        if not isinstance(value, list):
            raise PolicyError(f"{key}: wanted an array of tables, [[{key}]]")
        return [Table(item, key) for item in value]

    def _below(self, key: str) -> str:
        return key if self.path == _TOP else f"{self.path}.{key}"

    def text(self, key: str, default: Any = _MISSING) -> str:
        value = self.take(key, default)
        if not isinstance(value, str) or len(value) > 4096:
            raise PolicyError(
                f"{self.path}.{key}: got {type(value).__name__}, wanted a string of at most 4096 characters"
            )
        return value

    def match(self, key: str, pattern: re.Pattern[str], wanted: str, default: Any = _MISSING) -> str:
        value = self.text(key, default)
        if not pattern.fullmatch(value):
            raise PolicyError(f"{self.path}.{key}: got {value[:80]!r}, wanted {wanted}")
        return value

    def choice(self, key: str, options: tuple[str, ...]) -> str:
        value = self.text(key)
        if value not in options:
            raise PolicyError(f"{self.path}.{key}: got {value[:80]!r}, wanted {' or '.join(options)}")
        return value

    def positive(self, key: str, default: Any = _MISSING) -> int:
        value = self.take(key, default)
        if value is default:
            return default  # type: ignore[no-any-return]  # the caller's own
        if type(value) is not int or not 1 <= value < 1 << 31:
            raise PolicyError(f"{self.path}.{key}: got {number(value)}, wanted a positive whole number")
        return value

    def optional_strings(self, key: str) -> tuple[str, ...] | None:
        """None where the key is missing; an empty array is refused as nothing would pass it."""
        return self.strings(key) if key in self.value else self.take(key, None)

    def strings(self, key: str, default: Any = _MISSING) -> tuple[str, ...]:
        value = self.take(key, default)
        if not isinstance(value, list | tuple) or not all(isinstance(v, str) and "\0" not in v for v in value):
            raise PolicyError(f"{self.path}.{key}: wanted an array of strings")
        if not value and default is _MISSING:
            raise PolicyError(f"{self.path}.{key}: is empty, and nothing would pass it")
        return tuple(value)
