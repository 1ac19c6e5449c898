"""An allocator that overwrites what is freed, for enclaves that serve one user after another.

What CPython frees of its own small objects, and the C library of all others, stays readable until it is used again.
So a service is started with

- ``PYTHONMALLOC=malloc``: CPython's objects come from the C library too;
- glibc's ``perturb``: it fills what is freed, and what it gives, with a byte;
- no ``tcache``: that keeps small blocks aside before they are filled.

The interpreter reads none of it where it is told to ignore its environment (``-I``): a service's gets the rest of what
that means, and an environment that has nothing else for Python. Other C libraries have no such setting.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from typing import Final

CLEARING: Final[Mapping[str, str]] = {
    "PYTHONMALLOC": "malloc",
    "GLIBC_TUNABLES": "glibc.malloc.perturb=165:glibc.malloc.tcache_count=0",
}
ISOLATED: Final = "-I"
ISOLATED_BY_HAND: Final = "-sP"
"""No directories of the user's or of the working directory's, as ``-I``; the environment is the launcher's."""


def clears() -> bool:
    """Whether this process overwrites what it frees: it was started as above, on glibc."""
    if any(os.environ.get(name) != value for name, value in CLEARING.items()):
        return False
    try:
        ctypes.CDLL(None).gnu_get_libc_version  # noqa: B018
        name = ctypes.pythonapi._PyMem_GetCurrentAllocatorName
    except (AttributeError, OSError):
        return False
    name.restype = ctypes.c_char_p
    return bool(name() == b"malloc")
