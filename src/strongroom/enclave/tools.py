"""The system's programs that an enclave starts, and what the kernel starts with them: measured by who launches.

- A program is found as in the enclave: by name on its path, or at an absolute path; of a directory, all files below.
- Of a script, the interpreter of its first line belongs to it, and so on; behind `env`, also the program that it names.
- Of an executable, its dynamic linker and the libraries of its link table, and what these link to.
- What such a program opens by name when it runs, such as modules, plug-ins and settings, does not.

Source: Linux, ``fs/binfmt_script.c`` (a first line, its first 256 bytes) and execve(2).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from strongroom.enclave.config import SANDBOX_ENVIRONMENT
from strongroom.enclave.elf import linker, needed, system_libraries
from strongroom.errors import UsageError

_FIRST_LINE: Final = 256
_MOST: Final = 5000


class Started(NamedTuple):
    """Files by their paths, links followed, sorted.

    Attributes:
        executables: what the kernel runs.
        libraries: what is linked to those.
    """

    executables: list[str]
    libraries: list[str]


def found(name: str, what: str = "command") -> list[str]:
    """The files of a program of the system's, by its name or path; links are not followed.

    Args:
        what: names it in an error.

    Raises:
        UsageError: the enclave would not find it, or it is a directory of more than 5,000 files.
    """
    if name.startswith("/") and os.path.isdir(name):  # noqa: PTH112
        below = [os.path.join(folder, each) for folder, _, files in os.walk(name) for each in files]  # noqa: PTH118
        if len(below) > _MOST:
            raise UsageError(f"{what}: {name} has more than {_MOST} files", hint="name the programs in it")
        return sorted(path for path in below if os.access(path, os.X_OK))
    path = shutil.which(name, path=SANDBOX_ENVIRONMENT["PATH"])
    if path is None or ("/" in name and not name.startswith("/")):
        raise UsageError(
            f"{what}: {name} is not an executable on the enclave's path, {SANDBOX_ENVIRONMENT['PATH']}",
            hint="name it by its absolute path, or make it one of the program's files: --include FILE and ./FILE",
        )
    return [path]


def started(files: Iterable[str]) -> Started:
    """What the kernel starts when it is told to run these files, without those that are not there."""
    executables: dict[str, None] = {}
    pending = list(files)
    while pending:
        path = os.path.realpath(pending.pop())
        if path in executables or not os.path.isfile(path):  # noqa: PTH113
            continue
        executables[path] = None
        pending += interpreters(path)
        linked = linker(path)
        pending += [linked] if linked else []
    libraries = [str(path) for path in system_libraries(executables, needed)]
    return Started(sorted(executables), sorted({*libraries} - executables.keys()))


def interpreters(path: str) -> Sequence[str]:
    """The programs that a script's first line names; none of what is no script."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            line = os.fsdecode(file.read(_FIRST_LINE).split(b"\n", 1)[0])
    except OSError:
        return ()
    words = line[2:].split() if line.startswith("#!") else []
    if not words:
        return ()
    further: tuple[str, ...] = ()
    if os.path.basename(words[0]) == "env":  # noqa: PTH119
        named = [word for word in words[1:] if not word.startswith("-") and "=" not in word][:1]
        places = [shutil.which(name, path=SANDBOX_ENVIRONMENT["PATH"]) for name in named]
        further = tuple(place for place in places if place is not None)
    return (words[0], *further)
