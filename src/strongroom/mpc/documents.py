"""Small TOML files that people write."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from strongroom.errors import FormatError


def read_text(path: Path, what: str, most: int, error: type[FormatError] = FormatError) -> str:
    """A file of UTF-8, of at most that many bytes. Raises `error` if it is none."""
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise error(f"{what}: {path} has more than {most} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise error(f"{what}: {path} is not UTF-8") from None


def parse_toml(text: str, prefix: str = "", error: type[FormatError] = FormatError) -> dict[str, Any]:
    """The tables of a document. Raises `error` if it is not TOML."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as cause:
        raise error(f"{prefix}{cause}") from None
