"""Sizes and times as people write them."""

from __future__ import annotations

import math
import re

from strongroom.errors import UsageError

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}
_SIZE = re.compile(r"(\d{1,12}(?:\.\d{1,6})?)\s*([KMG]I?B|B)?", re.IGNORECASE)


def parse_size(text: str, what: str) -> int:
    """Bytes of ``94MiB``, ``1.5GB`` or ``1000``.

    Raises:
        UsageError: it is no size, or none above 0.
    """
    match = _SIZE.fullmatch(text.strip())
    found = math.floor(float(match[1]) * _UNITS[(match[2] or "B").upper()]) if match else 0
    if found < 1:
        raise UsageError(f"{what}: got {text[:40]!r}, wanted a size such as 94MiB")
    return found


def size(count: int, *, up: bool = False) -> str:
    """Bytes with three or more digits; `up` gives whole units, never less than `count`."""
    for unit, step in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= step:
            return f"{-(-count // step)}{unit}" if up else f"{count / step:.{_digits(count / step)}f} {unit}"
    return f"{count}B" if up else f"{count} B"


def duration(nanoseconds: float) -> str:
    """Nanoseconds with three digits."""
    for unit, step in (("s", 1e9), ("ms", 1e6), ("us", 1e3)):
        if nanoseconds >= step:
            return f"{nanoseconds / step:.{_digits(nanoseconds / step)}f} {unit}"
    return f"{nanoseconds:.0f} ns"


def rate(a_second: float) -> str:
    """So many a second, with three digits or more."""
    return f"{a_second:,.0f}" if a_second >= 100 else f"{a_second:.3g}"


def _digits(value: float) -> int:
    return 2 if value < 10 else 1 if value < 100 else 0
