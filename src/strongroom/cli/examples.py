"""The example programs that the demo runs."""

from __future__ import annotations

from pathlib import Path

import strongroom


def example(name: str) -> Path:
    """An example by its file's name, from the package or from the source tree."""
    package = Path(strongroom.__file__).parent
    candidates = (package / "_examples" / name, package.parent.parent / "examples" / name)
    return next(path for path in candidates if path.is_file())
