"""Begins to read the environment before the launcher has imported what it needs: in a run that reads all of it.

That is the first one in a home, which remembers no digests yet. One process reads large files until it is asked what
it has found; the launcher's own readers go on from there. Little is imported here: that is what it does not wait for.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

DIGESTS = "digest-cache"
"""The file of a home that remembers digests."""
_READER = os.path.join(os.path.dirname(os.path.dirname(__file__)), "enclave", "reader.py")  # noqa: PTH118, PTH120


class _Reading(NamedTuple):
    process: subprocess.Popen[bytes]
    records: int
    began: int


_reading: list[_Reading] = []


def begin(argv: Sequence[str]) -> None:
    """Do so, if this command line is one of a run that will read everything; a wrong guess costs some time."""
    verb = next((word for word in argv if not word.startswith("-")), None)
    own = argv[: argv.index("--")] if "--" in argv else argv
    if verb != "run" or {"-h", "--help"} & {*own} or not ("--" in argv or "--policy" in own):
        return
    if not hasattr(os, "memfd_create") or os.path.exists(os.path.join(home_path(), DIGESTS)):  # noqa: PTH110, PTH118
        return
    sites = [path for path in sys.path if os.path.basename(path) == "site-packages"]  # noqa: PTH119
    records = os.memfd_create("reading early")
    command = [sys.executable, "-I", "-S", "-B", _READER, "early", str(records), str(os.getpid()), *sites]
    null = subprocess.DEVNULL
    began = time.time_ns()
    try:
        process = subprocess.Popen(command, stdin=null, stdout=null, stderr=null, pass_fds=(records,))  # noqa: S603
    except OSError:
        os.close(records)
        return
    _reading.append(_Reading(process, records, began))


def found() -> tuple[bytes, int]:
    """What it has found by now, as `reader` writes it, and when it began; it reads no further. Nothing without one."""
    if not _reading:
        return b"", 0
    process, records, began = _reading.pop()
    process.kill()
    process.wait()
    with open(records, "rb") as file:  # noqa: PTH123
        file.seek(0)
        return file.read(), began


def home_path() -> str:
    """Where this user's home is, unless a command says so."""
    given = os.environ.get("STRONGROOM_HOME")
    user = os.path.expanduser("~")  # noqa: PTH111
    if sys.platform == "win32":
        data = os.environ.get("LOCALAPPDATA") or user
    else:
        data = os.environ.get("XDG_DATA_HOME") or os.path.join(user, ".local", "share")  # noqa: PTH118
    return given or os.path.join(data, "strongroom")  # noqa: PTH118
