"""Where a path leads in a container image: as it would with the image as root, so that no link leads out of it."""

from __future__ import annotations

import itertools
import os
import shutil
import stat
from collections.abc import Collection
from pathlib import Path
from typing import Final

from strongroom.enclave.config import IMAGE_DIRECTORY, ROOT_DIRECTORY, BootConfig
from strongroom.errors import EnclaveError

Parts = tuple[str, ...]

KERNEL: Final = ("proc", "dev")
_MAX_LINKS: Final = 40


def inside(config: BootConfig, path: str | Path) -> Path:
    """Where boot finds what the program finds at `path`.

    Raises:
        EnclaveError: the image leads it where nothing can be mounted.
    """
    return Path(ROOT_DIRECTORY, *resolved(Path(IMAGE_DIRECTORY), str(path))) if config.image else Path(path)


def resolved(image: Path, path: str) -> Parts:
    """The parts of a path of which none but the last is a link.

    Raises:
        EnclaveError: it leads through a file, to the root itself, or to what is the kernel's.
    """
    parts: list[str] = []
    pending = [part for part in reversed(path.split("/")) if part not in ("", ".")]
    links = 0
    while pending:
        part = pending.pop()
        if part == "..":
            parts = parts[:-1]
            continue
        step = image.joinpath(*parts, part)
        mode = mode_of(step)
        if pending and stat.S_ISLNK(mode):
            links += 1
            if links > _MAX_LINKS:
                raise EnclaveError(f"image: {path} leads through more than {_MAX_LINKS} links")
            target = os.readlink(step)  # noqa: PTH115
            parts = [] if target.startswith("/") else parts
            pending += [each for each in reversed(target.split("/")) if each not in ("", ".")]
        elif pending and mode and not stat.S_ISDIR(mode):
            raise EnclaveError(f"image: {path} leads through /{'/'.join((*parts, part))}, which is a file")
        else:
            parts.append(part)
    if not parts or parts[0] in KERNEL:
        raise EnclaveError(f"image: {path} leads to /{'/'.join(parts)}, where nothing can be mounted")
    return tuple(parts)


def check_nesting(image: Path, own: Collection[str], volumes: Collection[str] = ()) -> None:
    """Refuse paths of the enclave's that the image's links lead into one another, or apart.

    What lies in which, and so who gets to see it, is decided by the paths as they are written (`nesting.py`).

    Raises:
        EnclaveError: names both.
    """
    where = {path: resolved(image, path) for path in (*own, *volumes)}
    for path, outer in itertools.permutations(where, 2):
        if path in volumes and outer in volumes:
            continue  # the image's own, and memory either way
        if (where[path][: len(where[outer])] == where[outer]) != path.startswith(f"{outer}/"):
            raise EnclaveError(
                f"image: its links lead {path} to /{'/'.join(where[path])}, and {outer} to /{'/'.join(where[outer])}: "
                "into one another, or apart",
                hint="name both in the policy as the image has them, without its links",
            )


def mode_of(path: Path) -> int:
    """What is there, without following a link; 0 if there is nothing."""
    try:
        return path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return 0


def remove(path: Path) -> None:
    """Delete what is at `path`, if anything is, without following links."""
    if stat.S_ISDIR(mode_of(path)):
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
