"""C libraries that must call the OpenSSL they were linked with."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress


def keep_to_their_own(*libraries: str) -> None:
    """Load these, bound to their own dependencies, whatever else this process has loaded.

    TensorFlow loads a cryptographic library of its own for the whole process, under the names of OpenSSL's functions,
    and a library that is loaded later would call those: the process crashed. Loaded like this it looks for names in
    its own dependencies first (dlopen(3), RTLD_DEEPBIND); who loads it again gets the one that is there.

    Args:
        libraries: names or paths. One that is not there is passed over: whoever needs it says so better.
    """
    if not hasattr(os, "RTLD_DEEPBIND"):  # not glibc
        return
    for library in libraries:
        with suppress(OSError):
            ctypes.CDLL(library, mode=os.RTLD_NOW | os.RTLD_DEEPBIND)
