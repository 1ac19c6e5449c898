"""The CAS's state files: mode 0600 and written whole, so that a crash leaves the old file or the new one."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path

from strongroom.storage import LocalDirectory

RESTORE = "something changed the CAS's directory on the disk; restore all of it from a copy"
"""The hint of whatever is found changed there."""


def create_once(path: Path, content: bytes) -> None:
    """Make that file, durably, unless somebody else makes it first; read it afterwards to see whose it is."""
    temporary = _temporary(path, content)
    try:
        with suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        temporary.unlink()
    LocalDirectory(path.parent).sync()


def replace(path: Path, content: bytes) -> None:
    """Put that file in the place of what is there."""
    _temporary(path, content).replace(path)


def _temporary(path: Path, content: bytes) -> Path:
    fd, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mode 0600
    with os.fdopen(fd, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(fd)
    return Path(name)
