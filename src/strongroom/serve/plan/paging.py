"""What it costs to run a model in less memory than it takes.

Weights are read once in every run, in the same order. The kernel evicts what was used longest ago, which in a cycle is
what is needed next: a little too much memory makes nearly every page be read again. So a run that takes S bytes and
touches T of them, under a limit of L, reads ``min(T, sharpness * (S - L))`` bytes again, and each page of them costs
the same. Both constants are fitted to passes over arrays of several sizes (`strongroom.serve.plan.paging_probe`).
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

    def nanoseconds(
        self, taken: npt.NDArray[np.int64], touched: npt.NDArray[np.int64], limit: int
    ) -> npt.NDArray[np.int64]:
        """What paging adds to a run that takes so many bytes, and touches so many of them, under a limit."""
        over = np.maximum(taken - limit, 0).astype(np.float64)
        again = np.minimum(touched, over * (self.sharpness / 100))
        added: npt.NDArray[np.int64] = np.minimum(np.ceil(again / PAGE) * self.page_ns, _MAX_NS).astype(np.int64)
        return added


# For machines that cannot be measured.
CONSTANTS: Final = {
    # An EPC page swapped in takes "about 40K cycles" (Taassori, Shafiee, Balasubramonian: VAULT, ASPLOS 2018, section
    # 1); at 3.7 GHz, of processors with an EPC of 93.5 MiB, 10.8 us. The kernel's driver evicts by age, as here.
    "sgx": Paging(10_800, 250, "sgx"),
    # Fitted by `paging_probe` on Linux 6.18, in a virtual machine with a swap file on a virtio disk. While others used
    # that disk, a page took up to 83 us.
    "swap": Paging(33_000, 250, "swap"),
}


def fit(limit: int, points: Sequence[tuple[int, float]]) -> Paging:
    """The constants under which the model is nearest to what was measured, by relative error.

    Args:
        limit: bytes.
        points: size of an array, and the nanoseconds that a pass over it took beyond those of one that fits.

    Raises:
        UsageError: fewer than three of the points are over the limit.
    """
    over = [(size, ns) for size, ns in points if size > limit and ns > 0]
    if len(over) < 3:
        raise UsageError(f"paging: {len(over)} arrays over the limit were measured, wanted at least 3")
    sizes = np.array([size for size, _ in over], np.float64)
    times = np.array([ns for _, ns in over])
    best: tuple[float, float, int] | None = None
    for sharpness in np.unique(np.geomspace(100, 10_000, 200).astype(int)):
        pages = np.minimum(sizes, (sizes - limit) * (sharpness / 100)) / PAGE
        # Least squares of page_ns * pages / times - 1.
        share = pages / times
        page_ns = float(share.sum() / (share**2).sum())
        error = float(((page_ns * share - 1) ** 2).sum())
        if best is None or error < best[0]:
            best = error, page_ns, int(sharpness)
    assert best is not None  # noqa: S101  # there are sharpnesses
    return Paging(max(1, round(best[1])), best[2], "measured")
