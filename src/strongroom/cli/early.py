"""Begins with the environment before the launcher has imported what it needs.

In a run, one process looks at what there is, and what the kernel says of each file; where the home remembers no digests
yet, as in the first one, it reads large files instead, until it is asked what it has found, and the launcher's own
readers go on from there. Little is imported here: that is what it does not wait for.
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
_PACKAGE = os.path.dirname(os.path.dirname(__file__))  # noqa: PTH120
_READER = os.path.join(_PACKAGE, "enclave", "reader.py")  # noqa: PTH118
_NO_STDLIB = "site-packages/dist-packages"  # `reader.NO_STDLIB`


class _Begun(NamedTuple):
    process: subprocess.Popen[bytes]
    told: int
    when: int


_reading: list[_Begun] = []
_looking: list[_Begun] = []


def begin(argv: Sequence[str]) -> None:
    """Do so, if this command line is one of a run; a wrong guess costs some time."""
    verb = next((word for word in argv if not word.startswith("-")), None)
    own = argv[: argv.index("--")] if "--" in argv else argv
    if verb != "run" or {"-h", "--help"} & {*own} or not ("--" in argv or "--policy" in own):
        return
    if not hasattr(os, "memfd_create"):
        return
    sites = [path for path in sys.path if os.path.basename(path) == "site-packages"]  # noqa: PTH119
    if os.path.exists(os.path.join(home_path(), DIGESTS)):  # noqa: PTH110, PTH118
        stdlib = os.path.dirname(os.__file__)  # noqa: PTH120
        of = [stdlib, "", _NO_STDLIB, _PACKAGE, "", ""]
        _start(_looking, "look", *of, *(word for site in sites for word in (site, _PACKAGE, "")))
    else:
        _start(_reading, "early", str(os.getpid()), *sites)


def _start(begun: list[_Begun], what: str, *words: str) -> None:
    told = os.memfd_create(what)
    command = [sys.executable, "-I", "-S", "-B", _READER, what, str(told), *words]
    null = subprocess.DEVNULL
    when = time.time_ns()
    try:
        process = subprocess.Popen(command, stdin=null, stdout=null, stderr=null, pass_fds=(told,))  # noqa: S603
    except OSError:
        os.close(told)
    else:
        begun.append(_Begun(process, told, when))


def found() -> tuple[bytes, int]:
    """What it has read by now, as `reader` writes it, and when it began; it reads no further. Nothing without one."""
    if not _reading:
        return b"", 0
    begun = _reading.pop()
    begun.process.kill()
    return _told(begun), begun.when


def looked() -> bytes:
    """What it has seen, as `reader.look` writes it, once it has seen all. Nothing without one, or if it failed."""
    if not _looking:
        return b""
    begun = _looking.pop()
    told = _told(begun)
    return told if begun.process.returncode == 0 else b""


def end() -> None:
    """End what was begun, and nobody has asked for."""
    found()
    for begun in _looking:
        begun.process.kill()
    looked()


def _told(begun: _Begun) -> bytes:
    begun.process.wait()
    with open(begun.told, "rb") as file:  # noqa: PTH123
        file.seek(0)
        return file.read()


def home_path() -> str:
    """Where this user's home is, unless a command says so."""
    given = os.environ.get("STRONGROOM_HOME")
    user = os.path.expanduser("~")  # noqa: PTH111
    if sys.platform == "win32":
        data = os.environ.get("LOCALAPPDATA") or user
    else:
        data = os.environ.get("XDG_DATA_HOME") or os.path.join(user, ".local", "share")  # noqa: PTH118
    return given or os.path.join(data, "strongroom")  # noqa: PTH118
