"""What we are compared with, each in an environment of its own: made on demand, kept under `.cache/peers`.

- An environment is known by its name, its requirements and the version of Python; change one and a new one is made.
- It counts only once everything is installed: one whose making was interrupted is made anew.
"""

from __future__ import annotations

import hashlib
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

CACHE = Path(__file__).parent.parent / ".cache" / "peers"


class UnavailableError(Exception):
    """The environment is not there and may not be made, or pip could not make it."""


def environment(name: str, requirements: Sequence[str], *, make: bool = True, cache: Path = CACHE) -> Path:
    """The Python interpreter of an environment that holds `requirements`.

    Args:
        name: lower-case letters, digits and dashes.
        requirements: as pip takes them; pin them, since the peer's version is part of the result.
        make: whether to make it if it is not there, which may take minutes and needs a package index.

    Raises:
        ValueError: a name or a list of requirements that makes no sense.
        UnavailableError: see there.
    """
    if not re.fullmatch(r"[a-z0-9-]+", name):
        raise ValueError(f"name: got {name!r}, wanted lower-case letters, digits and dashes")
    if not requirements:
        raise ValueError("requirements: got none, wanted at least one")
    wanted = "\n".join([platform.python_version(), *requirements])
    home = cache / f"{name}-{hashlib.sha256(wanted.encode()).hexdigest()[:12]}"
    python = home / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    complete = home / "complete"
    if complete.exists() and python.exists():
        return python
    if not make:
        raise UnavailableError(f"peer {name}: no environment yet, wanted one from a full run")
    shutil.rmtree(home, ignore_errors=True)
    cache.mkdir(parents=True, exist_ok=True)
    _run(name, sys.executable, "-m", "venv", str(home))
    _run(name, str(python), "-m", "pip", "install", "--disable-pip-version-check", "--no-input", *requirements)
    complete.write_text(wanted)
    return python


def _run(name: str, *command: str) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    if done.returncode:
        tail = "\n".join(done.stderr.strip().splitlines()[-5:])
        raise UnavailableError(f"peer {name}: {' '.join(command[1:4])} failed:\n{tail}")
