"""What would make an interpreter import from directories that are not measured: refused.

Source: CPython's ``Modules/getpath.py`` (the files that it looks for beside the executable, which have a say on every
platform) and the documentation of `site` (``pyvenv.cfg``, ``.pth``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from strongroom.errors import EnclaveError

_SYSTEM_PACKAGES = re.compile(r"(?im)^\s*include-system-site-packages\s*=\s*true")
_MAX_PTH = 1 << 20


def check_interpreter(executable: Path, prefix: Path) -> None:
    """Refuse files that lead an interpreter elsewhere.

    Raises:
        EnclaveError: its environment takes in the system's packages, or one of the files beside it says where to import
            from.
    """
    settings = prefix / "pyvenv.cfg"
    if settings.is_file() and _SYSTEM_PACKAGES.search(settings.read_text(errors="replace")):
        raise EnclaveError(
            f"environment: {prefix} takes in the system's packages, which are not measured",
            hint="make one without: python -m venv, and no --system-site-packages",
        )
    for directory in {executable.parent, executable.resolve().parent}:
        planted = [*sorted(directory.glob("*._pth")), directory / "pybuilddir.txt"]
        planted += [directory / "pyvenv.cfg"] if directory != prefix else []
        for path in planted:
            if path.is_file():
                raise EnclaveError(
                    f"environment: {path} says where Python imports from, and is not measured", hint="remove it"
                )


def check_pth(files: Iterable[str], measured: Sequence[Path], visible: Sequence[Path]) -> None:
    """Refuse ``.pth`` files that have modules imported from what an enclave sees and nobody measured.

    What an enclave does not see is nothing to it, such as the directory of a project installed for editing.

    Raises:
        EnclaveError: there is one.
    """
    for name in files:
        file = Path(name)
        with file.open("rb") as stream:
            text = stream.read(_MAX_PTH).decode("utf-8", "surrogateescape")
        for line in text.splitlines():
            if not line.strip() or line.startswith(("#", "import ", "import\t")):
                continue
            try:
                place = (file.parent / line.rstrip()).resolve()
                if not place.exists() or any(place.is_relative_to(root.resolve()) for root in measured):
                    continue
            except (OSError, ValueError, RuntimeError):  # no path, or one that never ends
                continue
            if any(place.is_relative_to(root.resolve()) for root in visible):
                raise EnclaveError(
                    f"environment: {file} has modules imported from {place}, which is not measured",
                    hint="remove that line, or install what lies there into the environment",
                )
