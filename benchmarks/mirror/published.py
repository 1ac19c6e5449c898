"""What Plinius published (Yuhala et al., DSN 2021), in SGX and on persistent memory: read off its figures.

With the repository's data sets under ``STRONGROOM_DATA`` every bar of Fig. 7 is there, else the five sizes that the
states here have. On other hardware than ours, so no goal rests on it.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.mirror.ways import KINDS, Kind

MEMORY: Final = "Plinius, persistent memory"
SSD: Final = "Plinius's SSD baseline"
ITERATION: Final = 1.2  # of an iteration on clear batches, by its text
_SERVER: Final = "emlSGX-PM"  # the one with SGX; its persistent memory is emulated

# Milliseconds to save and to restore on that server, by MB.
_TOTALS: Final = {
    MEMORY: {10: (12, 7), 44: (51, 29), 67: (116, 49), 78: (131, 57), 100: (171, 74)},
    SSD: {10: (55, 27), 44: (202, 113), 67: (286, 171), 78: (334, 199), 100: (427, 257)},
}


@dataclass(frozen=True)
class Published:
    """A bar of the figure: MB and milliseconds, the parts where they are known."""

    way: str
    what: Kind
    size: int
    total: float
    sealing: float | None = None
    access: float | None = None


def bars() -> list[Published]:
    """All of them."""
    path = Path(os.environ.get("STRONGROOM_DATA", ""), "plinius", "published_fig7.tsv")
    if "STRONGROOM_DATA" in os.environ and path.is_file():
        return list(_read(path))
    return [
        Published(way, what, size, both[at])
        for way, sizes in _TOTALS.items()
        for size, both in sizes.items()
        for at, what in enumerate(KINDS)
    ]


def _read(path: Path) -> Iterator[Published]:
    with path.open(newline="") as file:
        lines = csv.DictReader((line for line in file if not line.startswith("#")), delimiter="\t")
        for line in lines:
            if line["server"] != _SERVER:
                continue
            what: Kind = "save" if line["step"] == "save" else "restore"
            for way, column in ((SSD, "SSD"), (MEMORY, "PM")):
                total, part = float(line[f"{column}_total_ms"]), float(line[f"{column}_part_ms"])
                rest = total - part
                sealing, access = (part, rest) if line["part_is"] == "decrypt" else (rest, part)
                yield Published(way, what, int(line["model_MB"]), total, sealing, access)
