"""Hides compiled code that lies beside measured sources, and was never measured, from all that runs in an enclave.

An interpreter is told by an option or a variable to look for compiled code elsewhere, and one that the program starts
itself, isolated or without variables, is not. So there must be no `__pycache__` where it would look: over each
directory of modules lies an overlay that has an empty file by this name wherever a source could be imported from, be
there a `__pycache__` now or later. Where the kernel has no overlay, an empty directory is bound over each that is
there.

Boot does this before the program's vaults appear.
"""

from __future__ import annotations

import json
import os
import site
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import strongroom
from strongroom.enclave.drop import bind, overlay
from strongroom.enclave.fixed_paths import IMAGE_DIRECTORY, VAULTS_DIRECTORY
from strongroom.errors import EnclaveError

CACHE = "__pycache__"
_MASKS = "/run/strongroom/masks"  # boot's own, which the program does not see
_TOLD = "roots"


class Hiding:
    """What hides the compiled code beside the modules of this interpreter's environment, made while boot attests.

    By a process of its own, started with this object: it takes a quarter of a second. So this module imports little,
    for `entry` to start it before all that boot imports.
    """

    def __init__(self, masks: str = _MASKS) -> None:
        self._masks = masks
        found = [os.path.dirname(os.__file__), *site.getsitepackages(), str(Path(strongroom.__file__).parent)]  # noqa: PTH120
        self._child = os.fork()
        if self._child == 0:
            status = 1
            try:
                os.umask(0o022)  # the program's user looks through it
                make_masks([path for path in found if os.path.isdir(path)], masks)  # noqa: PTH112
                status = 0
            except EnclaveError as error:
                with suppress(OSError):
                    Path(f"{masks}/error").write_text(error.message)
            finally:
                os._exit(status)

    def hide(self, shown: Iterable[str]) -> None:
        """Have nothing see it from now on.

        Args:
            shown: paths at which something of the host's is mounted already, which stays.

        Raises:
            EnclaveError: it cannot be done: then nothing may run.
        """
        _, status = os.waitpid(self._child, 0)
        if status != 0:
            told = Path(f"{self._masks}/error")
            why = told.read_text() if told.exists() else "environment: compiled code in it cannot be hidden"
            raise EnclaveError(why, hint="nothing was run")
        show_masked(self._masks, shown)


def hiding() -> Hiding | None:
    """Begin it, in a sandbox where a program of this environment will run."""
    sandboxed = os.getpid() == 1 and os.path.isdir(VAULTS_DIRECTORY)  # noqa: PTH112
    return Hiding() if sandboxed and not os.path.isdir(IMAGE_DIRECTORY) else None  # noqa: PTH112


def make_masks(directories: Iterable[str], masks: str) -> None:
    """Make what hides compiled code below these directories, and where links to directories in them lead.

    Args:
        masks: a directory to make, in memory.

    Raises:
        EnclaveError: it cannot be done.
    """
    roots = _outermost(map(os.path.realpath, directories))
    try:
        os.mkdir(masks, 0o755)  # noqa: PTH102
        for number, root in enumerate(roots):  # grows as it goes
            for path in sorted(_mask(root, f"{masks}/{number}")):
                if any(_within(other, path) and other != path for other in roots):
                    raise EnclaveError(f"environment: a link in {root} leads to {path}, which holds what is measured")
                if not any(_within(path, other) for other in roots):
                    roots.append(path)
        Path(f"{masks}/{_TOLD}").write_text(json.dumps(roots))
    except OSError as error:
        raise _failed(error) from None


def show_masked(masks: str, shown: Iterable[str]) -> None:
    """Cover each directory by itself without compiled code, and with what of `shown` is mounted in it."""
    try:
        for number, root in enumerate(json.loads(Path(f"{masks}/{_TOLD}").read_text())):
            _show(root, f"{masks}/{number}", [path for path in shown if _within(path, root)])
    except OSError as error:
        raise _failed(error) from None


def _failed(error: OSError) -> EnclaveError:
    what = f"{error.filename or ''}: {(error.strerror or str(error)).lower()}"
    return EnclaveError(f"environment: compiled code in it cannot be hidden: {what}")


def _mask(root: str, mask: str) -> set[str]:
    """Make the tree that hides what is below `root`; where links to directories in it lead."""
    os.mkdir(mask, 0o755)  # noqa: PTH102
    links: set[str] = set()
    made = {""}
    pending = [""]
    while pending:
        inside = pending.pop()
        imports = False
        with os.scandir(root + inside) as entries:
            for entry in entries:  # tens of thousands: no call more than it takes
                name = entry.name
                if name == CACHE:
                    continue
                if entry.is_dir(follow_symlinks=False):
                    pending.append(f"{inside}/{name}")
                elif entry.is_symlink() and entry.is_dir():
                    links.add(os.path.realpath(entry.path))
                elif name.endswith(".py"):
                    imports = True
        if imports:
            missing = []
            above = inside
            while above not in made:
                missing.append(above)
                above = above.rpartition("/")[0]
            for directory in reversed(missing):
                os.mkdir(mask + directory, 0o755)  # noqa: PTH102
            made.update(missing)
            os.close(os.open(f"{mask}{inside}/{CACHE}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o444))
    return links


def _show(root: str, mask: str, shown: Iterable[str]) -> None:
    kept = [(path, os.open(path, os.O_PATH | os.O_CLOEXEC)) for path in shown if os.path.isdir(path)]  # noqa: PTH112
    try:
        try:
            overlay(mask, root, root)
        except OSError:
            empty = f"{mask}/empty"
            os.mkdir(empty, 0o755)  # noqa: PTH102
            for directory, _, names in os.walk(mask):
                path = f"{root}{directory.removeprefix(mask)}/{CACHE}"
                if CACHE in names and os.path.isdir(path):  # noqa: PTH112
                    bind(empty, path)
            return
        for path, descriptor in kept:
            bind(f"/proc/self/fd/{descriptor}", path)
    finally:
        for _, descriptor in kept:
            os.close(descriptor)


def _outermost(paths: Iterable[str]) -> list[str]:
    kept: list[str] = []
    for path in sorted(set(paths), key=lambda each: (len(each), each)):
        if not any(_within(path, other) for other in kept):
            kept.append(path)
    return kept


def _within(path: str, other: str) -> bool:
    return f"{path}/".startswith(f"{other.rstrip('/')}/")
