"""What `strongroom doctor` asks of a machine, and the rows that come of it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import site
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from strongroom.attest.tee.tsm import tsm_provider
from strongroom.enclave.landlock import landlock_version
from strongroom.enclave.limits import places
from strongroom.errors import StrongroomError

Status = Literal["ok", "limited", "missing", "unknown"]


@dataclass(frozen=True)
class Row:
    """One thing that a machine may offer.

    Attributes:
        demo: whether `strongroom demo` needs it.
    """

    group: str
    what: str
    status: Status
    detail: str
    needed_for: str
    how_to_get: str
    demo: bool = False


class Probe(Protocol):
    """The questions that `examine` asks of a machine. None of them raises."""

    system: str  # Linux, Darwin, Windows
    release: str  # of the kernel
    arch: str
    python: str

    def exists(self, path: str) -> bool:
        """Whether there is something at `path`."""

    def read(self, path: str) -> str | None:
        """The text at `path`, None if it cannot be read."""

    def refusal(self, path: str) -> str | None:
        """Why the device at `path` cannot be opened for reading and writing, None if it can."""

    def which(self, program: str) -> str | None:
        """Where a program is installed."""

    def run(self, *command: str) -> str | None:
        """Why a command fails, in one line; None if it succeeds."""

    def version(self, package: str) -> str | None:
        """The installed version of a Python distribution."""

    def root(self) -> bool:
        """Whether this is root."""

    def closed(self) -> str | None:
        """What of this Python installation other users cannot read, None if nothing."""

    def landlock(self) -> int:
        """The version of Landlock's interface, 0 without."""

    def groups(self) -> Mapping[str, tuple[str, Path]]:
        """Where control groups for `memory` and `cpu` can be made: version and parent, of those that can."""

    def tsm_provider(self) -> str | None:
        """Who answers configfs-tsm's requests for evidence: `tdx_guest`, `sev_guest`, ...; None if nobody."""


class ThisMachine:
    """The machine that we run on."""

    def __init__(self) -> None:
        self.system = platform.system()
        self.release = platform.release()
        self.arch = platform.machine()
        self.python = platform.python_version()

    def exists(self, path: str) -> bool:
        return os.path.lexists(path)

    def read(self, path: str) -> str | None:
        try:
            return Path(path).read_text(errors="replace")
        except OSError:
            return None

    def refusal(self, path: str) -> str | None:
        try:
            os.close(os.open(path, os.O_RDWR))
        except OSError as error:
            return (error.strerror or str(error)).lower()
        return None

    def which(self, program: str) -> str | None:
        return shutil.which(program)

    def run(self, *command: str) -> str | None:
        try:
            done = subprocess.run(  # noqa: S603 - fixed commands of this module
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=10
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
        if done.returncode == 0:
            return None
        lines = done.stderr.strip().splitlines()
        return lines[-1] if lines else f"exit status {done.returncode}"

    def version(self, package: str) -> str | None:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return None

    def root(self) -> bool:
        return sys.platform != "win32" and os.geteuid() == 0

    def closed(self) -> str | None:
        if sys.platform == "win32":
            return None
        for place in (sys.prefix, sys.base_prefix, *site.getsitepackages(), str(Path(__file__).parents[1])):
            try:
                if os.stat(place).st_mode & 0o005 != 0o005:  # noqa: PTH116
                    return place
            except OSError:
                continue
        return None

    def landlock(self) -> int:
        return landlock_version() if sys.platform == "linux" else 0

    def groups(self) -> Mapping[str, tuple[str, Path]]:
        return places(("memory", "cpu"))

    def tsm_provider(self) -> str | None:
        try:
            return tsm_provider()
        except StrongroomError:
            return None
