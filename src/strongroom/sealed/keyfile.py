"""Key files: one 256-bit sealing key as a line of text.

The line is ``STRONGROOM-SEALING-KEY-1 <base64url of 32 bytes, without padding>``; lines that start with ``#`` and empty
lines are comments.
"""

from __future__ import annotations

import base64
import os
from pathlib import Path

from strongroom.crypto import KEY_SIZE, random_key
from strongroom.errors import FormatError

_MARK = "STRONGROOM-SEALING-KEY-1"
_MAX_SIZE = 4096


def create_key(path: str | os.PathLike[str]) -> bytes:
    """Make a key and write it to a new file that its owner alone can read.

    Raises:
        FileExistsError: rather than replace a key.
    """
    key = random_key()
    text = base64.urlsafe_b64encode(key).rstrip(b"=").decode()
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "w", encoding="ascii", newline="\n") as file:
        file.write(
            f"# Whoever reads this file can unseal what is sealed with it. There is no other copy.\n{_MARK} {text}\n"
        )
        file.flush()
        os.fsync(file.fileno())
    return key


def load_key(path: str | os.PathLike[str]) -> bytes:
    """The key in a key file.

    Raises:
        FormatError: the file holds none, or more than one. The message holds nothing of the file's content.
    """
    with Path(path).open("rb") as file:
        data = file.read(_MAX_SIZE + 1)
    if len(data) > _MAX_SIZE:
        raise FormatError(f"key file {path}: more than {_MAX_SIZE} bytes, wanted a line {_MARK} <key>")
    lines = [line.strip() for line in data.splitlines()]
    lines = [line for line in lines if line and not line.startswith(b"#")]
    if len(lines) != 1:
        raise FormatError(f"key file {path}: {len(lines)} lines that are no comment, wanted one: {_MARK} <key>")
    mark, _, text = lines[0].partition(b" ")
    if mark != _MARK.encode():
        raise FormatError(f"key file {path}: another kind of line, wanted {_MARK} <key>")
    try:
        key = base64.b64decode(text.strip() + b"=", altchars=b"-_", validate=True)
    except ValueError:
        key = b""
    if len(key) != KEY_SIZE or base64.urlsafe_b64encode(key).rstrip(b"=") != text.strip():
        raise FormatError(f"key file {path}: the key is not {KEY_SIZE} bytes as base64url without padding")
    return key
