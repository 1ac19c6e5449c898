"""What it costs to run a model in less memory than it takes.

Every run uses the same memory in the same order: the weights of one operator after the other, and for each the memory
that it works in, which those far behind it leave alone. The kernel evicts what was used longest ago, which in a cycle
is what is needed next: a little too much memory makes nearly all of it come back in each run. So does memory that a run
takes anew and gives back: what it pushes out costs as much. What a run does not touch, once paged out, stays out.

So under a limit of L a run that touches T bytes has ``min(T, sharpness * (T - L))`` of them come back, and each page
costs the same. Both constants are fitted to passes over memory (`strongroom.serve.plan.paging_probe`): the sharpness to
pages that were counted, and the cost to their time. A part of that memory is used again and again in a pass, and stays,
so that the probe sees how much the kernel spares of what is in use; of a network it is too little to count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from strongroom.errors import UsageError

PAGE: Final = 4096
_MAX_NS = float(10**11)  # as costs.MAX_NANOSECONDS


@dataclass(frozen=True)
class Paging:
    """What paging costs on a machine.

    Attributes:
        page_ns: nanoseconds to bring a page back, with what it pushes out.
        sharpness: bytes read again for each byte over the limit, in percent; 100 where only those are.
        source: where the constants are from: ``measured``, or the name of what `CONSTANTS` has.
    """

    page_ns: int
    sharpness: int
    source: str

    def __post_init__(self) -> None:
        if not 1 <= self.page_ns <= 10**9:
            raise UsageError(f"paging: {self.page_ns} ns a page, wanted 1 to 1000000000")
        if not 100 <= self.sharpness <= 100_000:
            raise UsageError(f"paging: sharpness of {self.sharpness} %, wanted 100 to 100000")

    def nanoseconds(self, touched: npt.NDArray[np.int64], limit: int) -> npt.NDArray[np.int64]:
        """What paging adds to a run that touches so many bytes under a limit."""
        pages = np.ceil(_again(touched, touched, limit, self.sharpness) / PAGE)
        added: npt.NDArray[np.int64] = np.minimum(pages * self.page_ns, _MAX_NS).astype(np.int64)
        return added


# For machines that cannot be measured.
CONSTANTS: Final = {
    # An EPC page swapped in takes "about 40K cycles" (Taassori, Shafiee, Balasubramonian: VAULT, ASPLOS 2018, section
    # 1); at 3.7 GHz, of processors with an EPC of 93.5 MiB, 10.8 us. The kernel's driver evicts by age, as here.
    "sgx": Paging(10_800, 1000, "sgx"),
    # Of a swap file on a virtio disk, Linux 6.18: ResNet-50 in 94 MiB took 2.6 s more than in enough, 25,000 pages.
    # What such a disk takes changes twofold with what else it does.
    "swap": Paging(100_000, 1000, "swap"),
}


@dataclass(frozen=True)
class Point:
    """Passes over memory that were measured: bytes touched, those of them that were used once a pass, pages that came
    back in a pass, and the nanoseconds that it took beyond one that fits."""

    touched: int
    once: int
    pages: float
    nanoseconds: float


def fit(limit: int, points: Sequence[Point]) -> Paging:
    """The constants under which the model is nearest to what was measured, by relative error.

    Raises:
        UsageError: of fewer than three of the points pages came back.
    """
    over = [each for each in points if each.touched > limit and each.pages > 0 and each.nanoseconds > 0]
    if len(over) < 3:
        raise UsageError(f"paging: {len(over)} sizes over the limit were measured, wanted at least 3")
    touched, once = (np.array([getattr(each, name) for each in over]) for name in ("touched", "once"))
    pages = np.array([each.pages for each in over])

    def error(sharpness: int) -> float:
        return float(((_again(touched, once, limit, sharpness) / PAGE / pages - 1) ** 2).sum())

    sharpness = min(np.unique(np.geomspace(100, 10_000, 200).astype(int)).tolist(), key=error)
    page_ns = float(np.median([each.nanoseconds / each.pages for each in over]))
    return Paging(max(1, round(page_ns)), int(sharpness), "measured")


def _again(
    touched: npt.NDArray[np.int64], once: npt.NDArray[np.int64], limit: int, sharpness: int
) -> npt.NDArray[np.float64]:
    """Bytes that come back in a pass: of those used once, and of the others what is too much by itself."""
    over = np.maximum(touched - limit, 0)
    again: npt.NDArray[np.float64] = np.minimum(once, over * (sharpness / 100)) + np.maximum(touched - once - limit, 0)
    return again
