"""Which shared libraries a program can load by its own link table: enough of ELF for that, and no more.

Source of every constant: the System V ABI, chapters 4 and 5 (ELF header, program header, dynamic section).
"""

from __future__ import annotations

import functools
import os
import re
import struct
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO

_MAGIC_64_LITTLE = b"\x7fELF\x02\x01"
_PT_LOAD, _PT_DYNAMIC, _PT_INTERP = 1, 2, 3
_DT_NULL, _DT_NEEDED, _DT_STRTAB = 0, 1, 5
_MAX_TABLE = 1 << 20
_MAX_PATH = 4096
_NO_ELF = (OSError, struct.error, ZeroDivisionError, ValueError, OverflowError)
_CACHE_LINE = re.compile(r"^\t(\S+) \(.*\) => (/\S.*)$", re.MULTILINE)


def needed(path: str) -> list[str]:
    """The names of the libraries that a file asks for (DT_NEEDED); none for what is not 64-bit little-endian ELF."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123  # thousands of files
            segments = _segments(file)
            dynamic = next(((s[2], s[5]) for s in segments if s[0] == _PT_DYNAMIC), None)
            if dynamic is None or dynamic[1] > _MAX_TABLE:
                return []
            file.seek(dynamic[0])
            entries = list(struct.iter_unpack("<QQ", file.read(dynamic[1] // 16 * 16)))
            strings = next((value for tag, value in entries if tag == _DT_STRTAB), None)
            loaded = next((s for s in segments if s[0] == _PT_LOAD and s[3] <= (strings or 0) < s[3] + s[5]), None)
            if strings is None or loaded is None:
                return []
            names = []
            for tag, value in entries:
                if tag == _DT_NULL:
                    break
                if tag == _DT_NEEDED:
                    file.seek(loaded[2] + strings - loaded[3] + value)
                    names.append(file.read(256).split(b"\0", 1)[0].decode("ascii", "replace"))
            return names
    except _NO_ELF:
        return []


def linker(path: str) -> str | None:
    """The dynamic linker that the kernel starts in a file's place (PT_INTERP); None of what has none."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            place = next(((s[2], s[5]) for s in _segments(file) if s[0] == _PT_INTERP), None)
            if place is None:
                return None
            file.seek(place[0])
            return os.fsdecode(file.read(min(place[1], _MAX_PATH)).split(b"\0", 1)[0]) or None
    except _NO_ELF:
        return None


def _segments(file: BinaryIO) -> list[tuple[int, ...]]:
    """The program headers of a file; none of what is not 64-bit little-endian ELF."""
    header = file.read(64)
    if len(header) < 64 or not header.startswith(_MAGIC_64_LITTLE):
        return []
    table, entry_size, count = *struct.unpack_from("<Q", header, 32), *struct.unpack_from("<HH", header, 54)
    file.seek(table)
    raw = file.read(entry_size * count)
    return [struct.unpack_from("<IIQQQQ", raw, i * entry_size) for i in range(len(raw) // entry_size)]


def system_libraries(paths: Iterable[str], read: Callable[[str], list[str]] = needed) -> list[Path]:
    """The files of the system's linker cache that `paths` load, and those that these load, sorted.

    A name that the cache does not know is found by a path of the file's own (RPATH), and so lies in the environment,
    which is measured anyway.

    Args:
        read: gives what a file asks for.
    """
    cache = _linker_cache()
    found: dict[str, str] = {}
    pending = [name for path in paths for name in read(path)]
    while pending:
        name = pending.pop()
        if name in cache and name not in found:
            found[name] = cache[name]
            pending += read(cache[name])
    return sorted({Path(path).resolve() for path in found.values()})


@functools.cache
def _linker_cache() -> dict[str, str]:
    """Library names and their files, as the dynamic linker finds them."""
    for command in ("/sbin/ldconfig", "/usr/sbin/ldconfig"):
        try:
            listing = subprocess.run([command, "-p"], capture_output=True, text=True, check=True, timeout=20)  # noqa: S603
        except (OSError, subprocess.SubprocessError):
            continue
        cache: dict[str, str] = {}
        for name, path in _CACHE_LINE.findall(listing.stdout):
            cache.setdefault(name, path)  # the first is the one that the linker takes
        return cache
    return {}
