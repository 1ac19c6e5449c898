"""The memory of this process."""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


def give_back() -> None:
    """Give memory that was freed back to the system, where the C library can.

    ONNX Runtime holds a model two or three times while it loads it, and what it frees then stays with the process: of
    102 MiB of weights 254 MiB.
    """
    gc.collect()
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library, another system
        return
    trim(0)


def held() -> int:
    """Bytes of memory of this process's own: not of files, which are read again at no cost of its. Linux only."""
    return _field("RssAnon")


def most() -> int:
    """The most bytes that were resident since `forget_most`, those of files included. Linux only."""
    return _field("VmHWM")


def forget_touched() -> None:
    """Begin anew with `touched`: 1 in clear_refs forgets which pages were."""
    _CLEAR_REFS.write_text("1")


def touched() -> int:
    """Bytes of this process's own that were read or written since `forget_touched`. Linux only."""
    total, own = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split()
        if not words[0].endswith(":"):
            own = len(words) < 6 or words[5].startswith("[")  # no file behind it
        elif own and words[0] == "Referenced:":
            total += int(words[1]) * 1024
    return total


def forget_most() -> None:
    """Begin anew with `most`: https://docs.kernel.org/filesystems/proc.html, 5 in clear_refs."""
    _CLEAR_REFS.write_text("5")


def _field(name: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return 0
