"""What the `meta` file of a vault says: which paths there are, and which data file at which root each of them is.

Pure: bytes in, entries out, and back (normative: docs/spec/vault.md). The bytes come out of a sealed file, so only a
holder of the key can have made them; they are checked strictly all the same, since paths end on file systems.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from strongroom.crypto import KEY_SIZE
from strongroom.errors import FormatError, UsageError
from strongroom.sealed import Root
from strongroom.sealed.layout import MAX_LENGTH

VERSION: Final = 0
MAX_META: Final = 64 << 20
MAX_FILES: Final = 250_000
MAX_PATH: Final = 4096
MAX_NAME: Final = 255
MODE_BITS: Final = 0o777
DATA_NAME: Final = re.compile(r"[0-9a-f]{32}")

_FIELDS = {"id", "key", "mode", "root", "size"}


@dataclass(frozen=True, slots=True, repr=False)
class Entry:
    """One file of a vault.

    Attributes:
        name: the data file's, 32 hex digits drawn at random.
        key: the data file's sealing key.
        size: of the content, in bytes.
        root: the only one at which the data file is accepted.
        mode: permission bits.
    """

    name: str
    key: bytes
    size: int
    root: Root
    mode: int

    def __repr__(self) -> str:
        return f"Entry({self.name}, size={self.size}, root={self.root}, mode={self.mode:04o})"


def check_path(path: str) -> str:
    """`path` itself, if it may name a file: relative, of UTF-8, its parts neither empty nor ``.`` nor ``..``.

    Raises:
        UsageError: it may not.
    """
    problem = None
    parts = path.split("/")
    try:
        if len(path.encode()) > MAX_PATH or any(len(part.encode()) > MAX_NAME for part in parts):
            problem = f"wanted at most {MAX_PATH} bytes, and {MAX_NAME} between slashes"
    except UnicodeEncodeError:
        problem = "wanted UTF-8"
    if "\0" in path:
        problem = "contains NUL"
    elif any(part in ("", ".", "..") for part in parts):
        problem = "wanted a relative path without empty parts, . and .."
    if problem:
        raise UsageError(f"path in vault: {path[:100]!a}, {problem}")
    return path


def parents(path: str) -> Iterable[str]:
    """The directories above `path`, the nearest first, without the top."""
    while "/" in path:
        path = path.rpartition("/")[0]
        yield path


def encode(files: dict[str, Entry]) -> bytes:
    """The content of `meta`: canonical JSON (keys sorted, no white space, ASCII).

    Raises:
        UsageError: there are too many files.
    """
    if len(files) > MAX_FILES:
        raise UsageError(f"vault: {len(files)} files, wanted at most {MAX_FILES}", hint="pack them into archives")
    data = _canonical({"files": {path: _pack(entry) for path, entry in files.items()}, "version": VERSION})
    if len(data) > MAX_META:
        raise UsageError(f"vault metadata: {len(data)} bytes, wanted at most {MAX_META}", hint="shorten the paths")
    return data


def decode(data: bytes) -> dict[str, Entry]:
    """The files that `encode` took.

    Raises:
        FormatError: `data` is anything but what `encode` gives.
    """
    if len(data) > MAX_META:
        raise FormatError(f"vault metadata: {len(data)} bytes, wanted at most {MAX_META}")
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        raise FormatError("vault metadata: not JSON") from None
    if not isinstance(document, dict) or document.keys() != {"files", "version"}:
        raise FormatError("vault metadata: wanted an object of files and version")
    if document["version"] != VERSION or isinstance(document["version"], bool):
        raise FormatError(
            f"vault version: {str(document['version'])[:20]}, wanted {VERSION}", hint="a newer strongroom may read it"
        )
    files = document["files"]
    if not isinstance(files, dict) or len(files) > MAX_FILES:
        raise FormatError(f"vault metadata: files: wanted an object of at most {MAX_FILES}")
    # Canonical bytes have one reading: no duplicate keys, no NaN, no second spelling of a number.
    if _canonical(document) != data:
        raise FormatError("vault metadata: not canonical JSON")
    entries = {path: _parse(path, fields) for path, fields in files.items()}
    for path in entries:
        for parent in parents(path):
            if parent in entries:
                raise FormatError(f"vault metadata: {parent[:100]!a} is a file and a directory")
    if len({entry.name for entry in entries.values()}) != len(entries):
        raise FormatError("vault metadata: two files share a data file")
    return entries


def _canonical(document: object) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode("ascii")


def _pack(entry: Entry) -> dict[str, object]:
    return {
        "id": entry.name,
        "key": base64.b64encode(entry.key).decode(),
        "mode": entry.mode,
        "root": str(entry.root),
        "size": entry.size,
    }


def _parse(path: str, fields: Any) -> Entry:
    where = f"vault metadata: {path[:100]!a}"
    try:
        check_path(path)
    except UsageError as error:
        raise FormatError(f"vault metadata: {error.message}") from None
    if not isinstance(fields, dict) or fields.keys() != _FIELDS:
        raise FormatError(f"{where}: wanted an object of {', '.join(sorted(_FIELDS))}")
    name, key, root = (_string(where, name, fields[name]) for name in ("id", "key", "root"))
    if not DATA_NAME.fullmatch(name):
        raise FormatError(f"{where}: id: wanted 32 hex digits")
    try:
        raw_key = base64.b64decode(key, validate=True)
    except ValueError:
        raw_key = b""
    if len(raw_key) != KEY_SIZE or base64.b64encode(raw_key).decode() != key:
        raise FormatError(f"{where}: key: wanted {KEY_SIZE} bytes in base64")
    size = _number(where, "size", fields["size"], MAX_LENGTH)
    mode = _number(where, "mode", fields["mode"], MODE_BITS)
    return Entry(name, raw_key, size, Root.parse(root), mode)


def _string(where: str, field: str, value: object) -> str:
    if not isinstance(value, str):
        raise FormatError(f"{where}: {field}: {type(value).__name__}, wanted a string")
    return value


def _number(where: str, field: str, value: object, most: int) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise FormatError(f"{where}: {field}: wanted a whole number from 0 to {most}")
    return value
