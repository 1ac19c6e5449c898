"""Paths in a vault: relative, of UTF-8, parts joined by slashes."""

from __future__ import annotations

import re

from strongroom.errors import UsageError
from strongroom.vault.rows import MAX_NAME

MAX_PATH = 4096


def check_path(path: str) -> str:
    """`path` itself, if it may name something: relative, of UTF-8, its parts neither empty nor ``.`` nor ``..``.

    Raises:
        UsageError: it may not.
    """
    problem = None
    parts = path.split("/")
    try:
        if len(path.encode()) > MAX_PATH or any(len(part.encode()) > MAX_NAME for part in parts):
            problem = f"wanted at most {MAX_PATH} bytes, and {MAX_NAME} between slashes"
    except UnicodeEncodeError:
        shown = re.sub(r"\\udc([89a-f][0-9a-f])", r"\\x\1", ascii(path[:100]))  # the bytes that stand behind them
        raise UsageError(
            f"path in vault: {shown}, wanted UTF-8", hint="rename it, or copy it through a mount"
        ) from None
    if "\0" in path:
        problem = "contains NUL"
    elif any(part in ("", ".", "..") for part in parts):
        problem = "wanted a relative path without empty parts, . and .."
    if problem:
        raise UsageError(f"path in vault: {path[:100]!a}, {problem}")
    return path


def split(path: str) -> list[bytes]:
    """The parts of a path, none for the top, ""; names as `show` gives them."""
    return [part.encode("utf-8", "surrogateescape") for part in path.split("/")] if path else []


def show(name: bytes) -> str:
    """A name for people and for Python paths: bytes that are no UTF-8 as surrogates, as `os.fsdecode` has them."""
    return name.decode("utf-8", "surrogateescape")
