"""The key under which a CAS's database is sealed: made once, before the database, and never after it."""

from __future__ import annotations

from pathlib import Path

from strongroom.cas.files import create_once
from strongroom.cas.rows import RESTORE
from strongroom.crypto import KEY_SIZE, random_key
from strongroom.errors import WrongKeyError

BEGUN = "cas.new"
"""There while a new CAS's key and database are made, so that one that lost its database is not taken for a new one."""


def master_key(directory: Path, database: Path) -> bytes:
    """The key in that directory, made if neither the database is there nor the root's key, which is made after it.

    Raises:
        WrongKeyError: it is gone, or is something else.
    """
    path = directory / "master.key"
    if not any(each.exists() for each in (path, database, directory / "root.key")):
        create_once(directory / BEGUN, b"")
        create_once(path, random_key())
    try:
        key = path.read_bytes()
    except FileNotFoundError:
        raise WrongKeyError(
            f"{path}: is missing, and without it the CAS's database cannot be read", hint=RESTORE
        ) from None
    if len(key) != KEY_SIZE:
        raise WrongKeyError(f"{path}: {len(key)} bytes, wanted {KEY_SIZE}", hint=RESTORE)
    return key
