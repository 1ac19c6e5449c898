"""What was measured on a machine, remembered in files of its user's.

A file holds canonical JSON: what it is of, whole, and what was measured. It is used only if it is a file of this user's
that nobody else can read or write, and says that it is of exactly what is asked for.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from strongroom.attest.binding import canonical, parse_canonical
from strongroom.crypto import digest
from strongroom.errors import FormatError

_log = logging.getLogger("strongroom.serve.plan")
_FORMAT: Final = "strongroom-profile"
_VERSION: Final = 1
_MAX: Final = 16 << 20


class Cache:
    """Files below a directory, which is made when there is something to keep."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @classmethod
    def of_user(cls) -> Cache:
        """``strongroom/profiles`` in the user's cache directory (XDG Base Directory Specification)."""
        if sys.platform == "win32":
            return cls(Path(os.environ.get("LOCALAPPDATA") or Path.home()) / "strongroom" / "profiles")
        return cls(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "strongroom" / "profiles")

    @property
    def directory(self) -> Path:
        return self._directory

    def get(self, of: Mapping[str, Any]) -> dict[str, Any] | None:
        """What was measured of this; None if nothing was.

        Raises:
            FormatError: there is a file, but not as `put` wrote it.
        """
        path = self._path(of)
        try:
            descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise FormatError(f"{path}: {(error.strerror or str(error)).lower()}") from None
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            mine = not hasattr(os, "geteuid") or (status.st_uid == os.geteuid() and not status.st_mode & 0o077)
            if not stat.S_ISREG(status.st_mode) or not mine:
                raise FormatError(f"{path}: not a file of this user's alone")
            raw = file.read(_MAX + 1)
        wire = parse_canonical(raw, cap=_MAX)
        head = {"format": _FORMAT, "version": _VERSION, "of": dict(of)}
        measured = wire.pop("measured", None)
        if wire != head or not isinstance(measured, dict):
            raise FormatError(f"{path}: of something else")
        return measured

    def put(self, of: Mapping[str, Any], measured: Mapping[str, Any]) -> None:
        """Remember it, in place of what was. Where it cannot be written, that is logged, and it is not remembered."""
        try:
            self._put(of, measured)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            _log.warning("what was measured is not remembered: %s: %s", self._directory, reason)

    def _put(self, of: Mapping[str, Any], measured: Mapping[str, Any]) -> None:
        path = self._path(of)
        raw = canonical({"format": _FORMAT, "version": _VERSION, "of": dict(of), "measured": dict(measured)}, cap=_MAX)
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        new = path.with_name(f"{path.name}.{os.getpid()}.new")
        with contextlib.suppress(FileNotFoundError):
            new.unlink()
        with os.fdopen(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
            file.write(raw)
        new.replace(path)

    def _path(self, of: Mapping[str, Any]) -> Path:
        return self._directory / f"{digest(canonical(dict(of), cap=_MAX)).hex()[:40]}.json"
