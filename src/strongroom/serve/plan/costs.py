"""What a contiguous run of units costs as one stage: memory, time and transfers, for every run at once.

- Times are whole nanoseconds and sizes whole bytes, so that sums do not depend on their order and ties are ties.
- A run is ``(first, last)`` with `last` excluded; a matrix has a row for each `first` and a column for each `last`, and
  `NEVER` where `last <= first`.
- Cut i lies before unit i: cut 0 is the model's input, cut n its output.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from strongroom.errors import UsageError
from strongroom.serve.plan.paging import Paging

Matrix = npt.NDArray[np.int64]

MAX_UNITS: Final = 1_024
MAX_BYTES: Final = 1 << 48
MAX_NANOSECONDS: Final = 10**11  # of a unit, of a transfer, of the paging of a stage
MIN_PERCENT: Final = 10
# Above every sum of costs times MAX_UNITS + 1, and two of them fit into int64.
NEVER: Final = 1 << 61


@dataclass(frozen=True)
class Costs:
    """What the units of a model cost, in the order of the chain.

    Attributes:
        weights: bytes that a unit's weights take in a stage.
        working: bytes that a stage takes besides its weights while it runs this unit.
        nanoseconds: that a unit computes.
        frontiers: bytes of the tensors alive at each cut; one more than there are units.
        ties: ``(a, b, bytes)`` of weights that units `a < b` share, and none between them: a stage with both holds them
            once.
        fixed: bytes that a stage takes whatever its units are.
        call: nanoseconds that a stage takes for a run whatever its units are.
        reads: bytes of a unit's weights that it reads; none given, all of them.
        active: bytes that a unit reads or writes besides, of what its stage takes; none given, all its working memory.
            What no unit of a stage touches, once paged out, stays so.
        measured: ``(first, last, bytes, bytes touched)`` of runs that were tried as stages, so that it is known what
            they take without frames: less than their hungriest unit alone, where ONNX Runtime finds room in the memory
            of others.
        names: of the units, for messages.
    """

    weights: Sequence[int]
    working: Sequence[int]
    nanoseconds: Sequence[int]
    frontiers: Sequence[int]
    ties: Sequence[tuple[int, int, int]] = ()
    fixed: int = 0
    call: int = 0
    reads: Sequence[int] = ()
    active: Sequence[int] = ()
    measured: Sequence[tuple[int, int, int, int]] = ()
    names: Sequence[str] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        n = len(self.weights)
        if not 1 <= n <= MAX_UNITS:
            raise UsageError(f"units: got {n}, wanted 1 to {MAX_UNITS}")
        for what, values, length, cap in (
            ("weights", self.weights, n, MAX_BYTES),
            ("working memory", self.working, n, MAX_BYTES),
            ("times", self.nanoseconds, n, MAX_NANOSECONDS),
            ("frontiers", self.frontiers, n + 1, MAX_BYTES),
            ("fixed memory", (self.fixed,), 1, MAX_BYTES),
            ("time of a call", (self.call,), 1, 10**9),
            ("weights read", self.reads or self.weights, n, MAX_BYTES),
            ("memory touched", self.active or self.working, n, MAX_BYTES),
        ):
            if len(values) != length or not all(0 <= value <= cap for value in values):
                raise UsageError(f"{what}: got {len(values)} numbers, wanted {length} of 0 to {cap}")
        if not all(0 <= a < b < n and 0 <= size <= MAX_BYTES for a, b, size in self.ties):
            raise UsageError("tied weights: wanted pairs of units in order")
        if not all(
            0 <= first < last <= n and 0 <= size <= MAX_BYTES and 0 <= touched <= MAX_BYTES
            for first, last, size, touched in self.measured
        ):
            raise UsageError("measured runs: wanted such runs of units, and their bytes")

    def __len__(self) -> int:
        return len(self.weights)

    def name(self, unit: int) -> str:
        """What to call a unit in a message."""
        return f"unit {unit}" + (f" ({self.names[unit]})" if unit < len(self.names) else "")

    def held(self) -> Matrix:
        """Bytes of the weights of each run, shared ones once; below 0 where there is no run."""
        return self._once(self.weights)

    def _once(self, weights: Sequence[int]) -> Matrix:
        sums = np.concatenate([[0], np.cumsum(np.asarray(weights, np.int64))])
        total: Matrix = sums[None, :] - sums[:, None]
        for a, b, size in self.ties:
            total[: a + 1, b + 1 :] -= size
        return total

    def memory(self) -> Matrix:
        """Bytes that each run takes as a stage, with its frames.

        As it was measured, or what is fixed, its weights, and the working memory of its hungriest unit.
        """
        total = self.held() + self._hungriest(self.working)
        for first, last, size, _ in self.measured:
            total[first, last] = size
        return _runs(total + self._frames())

    def touched(self, memory: Matrix) -> Matrix:
        """Bytes that each run reads or writes of its `memory`, with its frames.

        As it was measured, or what is fixed, the weights that it reads, and what the unit that touches most besides
        does.
        """
        total = np.maximum(self._once(self.reads or self.weights), 0) + self._hungriest(self.active or self.working)
        for first, last, _, size in self.measured:
            total[first, last] = size
        most: Matrix = np.minimum(total + self._frames(), memory)
        return most

    def _hungriest(self, sizes: Sequence[int]) -> Matrix:
        """What is fixed and the largest of these sizes in each run."""
        n = len(self)
        total = np.full((n + 1, n + 1), self.fixed, np.int64)
        below = np.arange(n)[None, :] < np.arange(n)[:, None]
        total[:n, 1:] += np.maximum.accumulate(np.where(below, 0, np.asarray(sizes, np.int64)[None, :]), axis=1)
        return total

    def _frames(self) -> Matrix:
        frames = np.asarray(self.frontiers, np.int64)
        total: Matrix = frames[:, None] + frames[None, :]
        return total

    def compute(self) -> Matrix:
        """Nanoseconds that each run computes as a stage whose memory suffices."""
        spent = np.concatenate([[0], np.cumsum(np.asarray(self.nanoseconds, np.int64))])
        return _runs(spent[None, :] - spent[:, None] + self.call)


@dataclass(frozen=True)
class Transfer:
    """What it costs to hand tensors on: sealed, moved, opened.

    Attributes:
        frame_ns: nanoseconds of a frame, however small.
        byte_ps: picoseconds of each byte.
    """

    frame_ns: int
    byte_ps: int

    def nanoseconds(self, sizes: Sequence[int]) -> Matrix:
        """Of frames of these sizes."""
        return np.minimum(
            self.frame_ns + np.asarray(sizes, np.float64) * self.byte_ps / 1000, float(MAX_NANOSECONDS)
        ).astype(np.int64)


@dataclass(frozen=True)
class Enclaves:
    """Enclaves of one kind.

    Attributes:
        memory: bytes that a model may take in one: what the process holds beyond its size before it loads one.
        count: how many there are; None for as many as wanted.
        percent: how fast it computes, of the machine that was measured.
        name: for tables and messages.
    """

    memory: int
    count: int | None = None
    percent: int = 100
    name: str = "enclave"

    def __post_init__(self) -> None:
        if not 1 <= self.memory <= MAX_BYTES:
            raise UsageError(f"{self.name}: memory of {self.memory} bytes, wanted 1 to {MAX_BYTES}")
        if self.count is not None and not 1 <= self.count <= MAX_UNITS:
            raise UsageError(f"{self.name}: got a count of {self.count}, wanted 1 to {MAX_UNITS}")
        if not MIN_PERCENT <= self.percent <= 10_000:
            raise UsageError(f"{self.name}: speed of {self.percent} %, wanted {MIN_PERCENT} to 10000")

    def nanoseconds(self, costs: Costs, memory: Matrix, paging: Paging | None) -> Matrix:
        """Nanoseconds of each run as a stage in such an enclave; `NEVER` where it does not fit and may not page."""
        n = len(costs)
        computed = np.maximum(-(-costs.compute() * 100 // self.percent), 1)
        over = memory > self.memory
        if paging is not None:
            touched = np.where(memory < NEVER, costs.touched(memory), 0)
            computed = computed + paging.nanoseconds(touched, self.memory)
        elif over.any():
            computed[over] = NEVER
        below = np.arange(n + 1)[None, :] <= np.arange(n + 1)[:, None]
        computed[below] = NEVER
        return np.minimum(computed, NEVER)


def _runs(matrix: Matrix) -> Matrix:
    """The matrix with `NEVER` where there is no run."""
    size = len(matrix)
    matrix[np.arange(size)[None, :] <= np.arange(size)[:, None]] = NEVER
    return matrix
