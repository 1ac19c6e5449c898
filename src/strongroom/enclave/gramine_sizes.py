"""How large an SGX enclave is: what it takes of a machine, and how Gramine writes it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from strongroom.errors import UsageError

GIB, MIB = 1 << 30, 1 << 20
# Threads besides the program's: three of Gramine's, boot's own, and those of its lease.
_THREADS_OF_OURS = 8
_SIZE = re.compile(r"([1-9][0-9]{0,9})([KMG])")


@dataclass(frozen=True)
class Sizes:
    """How large an enclave is. All of it is measured.

    Attributes:
        enclave: bytes, a power of two; with `edmm` the most that it may grow to.
        threads: those that are there from the beginning, and without `edmm` the most that there may be.
        stack: bytes of each thread's.
        edmm: memory is added as it is used, which takes a processor with SGX2.
    """

    enclave: int
    threads: int
    stack: int = 8 * MIB
    edmm: bool = True

    def __post_init__(self) -> None:
        if self.enclave < 256 * MIB or self.enclave & (self.enclave - 1):
            raise UsageError(f"enclave size: got {self.enclave} bytes, wanted a power of two from 256M on")
        if not 4 <= self.threads <= 4096:
            raise UsageError(f"threads: got {self.threads}, wanted 4 to 4096: three are Gramine's own")
        if not 256 << 10 <= self.stack <= GIB or self.stack % 4096:
            raise UsageError(f"stack: got {self.stack} bytes, wanted whole pages, 256K to 1G")

    @classmethod
    def of_machine(cls, meminfo: str | None, processors: int, *, edmm: bool = True) -> Sizes:
        """Sizes that fit a machine.

        Without `edmm` an enclave's whole size is taken at its start, and the program's process is an enclave beside
        boot's: a quarter of the memory for each then, else three quarters.

        Args:
            meminfo: what `/proc/meminfo` says; None if it cannot be read, which counts as 4 GiB.
        """
        told = re.search(r"(?m)^MemTotal:\s+(\d+) kB$", meminfo or "")
        memory = int(told[1]) << 10 if told else 4 * GIB
        most = max(GIB, memory * 3 // 4 if edmm else memory // 4)
        return cls(1 << (most.bit_length() - 1), min(4096, 4 * processors + _THREADS_OF_OURS), edmm=edmm)


def parse_size(text: str) -> int:
    """Bytes of a size as Gramine writes it: ``512M``. Raises UsageError."""
    found = _SIZE.fullmatch(text)
    if found is None:
        raise UsageError(f"size: got {text[:20]!r}, wanted a number and K, M or G")
    return int(found[1]) << {"K": 10, "M": 20, "G": 30}[found[2]]


def size(count: int) -> str:
    """The inverse of `parse_size`, for whole KiB."""
    for shift, unit in ((30, "G"), (20, "M"), (10, "K")):
        if count % (1 << shift) == 0:
            return f"{count >> shift}{unit}"
    raise UsageError(f"size: {count} bytes are no whole KiB")
