"""Commands that installed packages bring, such as `torchrun`.

Outside, an installer has written a file for each into the environment's ``bin``. Such a file names this machine's
interpreter and is no part of what is measured, so an enclave has none of them. What it would call is written in a
measured file of its package (``entry_points.txt``, the "Entry points" specification of packaging.python.org), and is
called as it would be. As in an active environment, these go before the system's commands: were it the other way, the
host could put one into ``/usr`` after the measurement.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib.metadata import DistributionFinder, MetadataPathFinder
from pathlib import Path
from typing import Final

_GROUP: Final = "console_scripts"
_OBJECT: Final = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", re.ASCII)


def entry_of(name: str, site_packages: Iterable[Path | str]) -> str | None:
    """``module:function`` of the command of that name, of the first package that has one; None if none has.

    A path, and ``python``, are no such names.
    """
    if "/" in name or name in ("python", "python3"):
        return None
    places = DistributionFinder.Context(path=[str(place) for place in site_packages])
    found = MetadataPathFinder.find_distributions(places)
    for distribution in sorted(found, key=lambda each: each.name):
        for entry in distribution.entry_points.select(group=_GROUP, name=name):
            value = entry.value.partition("[")[0].strip()
            if _OBJECT.fullmatch(value):
                return value
    return None


def calling(name: str, entry: str) -> list[str]:
    """Python's arguments that call an entry point as the installer's file does; the command's own come after them."""
    module, _, function = entry.partition(":")
    first = function.partition(".")[0]
    return ["-c", f"import sys; from {module} import {first}; sys.argv[0] = {name!r}; sys.exit({function}())"]
