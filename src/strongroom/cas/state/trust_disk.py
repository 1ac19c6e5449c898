"""The root secret in a file beside the database: for machines that their owner trusts."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from strongroom.cas.files import RESTORE, create_once
from strongroom.cas.state.way import SECRET_SIZE, Record
from strongroom.errors import WrongKeyError

MASTER_KEY = "master.key"


class TrustDisk:
    """`master.key` in the CAS's directory, which whoever reads the disk reads too."""

    way: ClassVar[str] = "trust-disk"
    creates: ClassVar[bool] = True

    def __init__(self, directory: Path) -> None:
        self._path = directory / MASTER_KEY

    def keep(self, secret: bytes) -> Record:
        create_once(self._path, secret)
        if self._path.read_bytes() != secret:
            raise WrongKeyError(
                f"{self._path}: is there already, and is another key", hint="move it away; whose is it?"
            )
        return {}

    def recover(self, record: Record) -> bytes:
        del record
        try:
            with self._path.open("rb") as file:
                key = file.read(SECRET_SIZE + 1)
        except FileNotFoundError:
            raise WrongKeyError(
                f"{self._path}: is missing, and without it the CAS's database cannot be read", hint=RESTORE
            ) from None
        if len(key) != SECRET_SIZE:
            raise WrongKeyError(f"{self._path}: {self._path.stat().st_size} bytes, wanted {SECRET_SIZE}", hint=RESTORE)
        return key
