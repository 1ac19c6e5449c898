"""Loss curves of programs that were killed and started again: as text for a terminal, and as PNG."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from strongroom.errors import UsageError
from strongroom.mirror.spot.losses import Loss, Losses
from strongroom.mirror.spot.plot import (
    FAINT,
    INK,
    LABEL,
    LINES,
    STOP,
    WIDE,
    Scale,
    figure_of_two,
    labelled,
    matplotlib,
    saved,
    unit_of,
)  # fmt: skip
from strongroom.mirror.spot.run import Course
from strongroom.mirror.spot.traces import Floats

_FEW = 40  # kills that get a line each


def text(
    curves: Mapping[str, Mapping[int, float]],
    *,
    kills: Sequence[int] = (),
    again: Collection[int] = (),
    width: int = 80,
    height: int = 12,
) -> str:
    """One loss curve, or two over each other, without colour and in ASCII.

    Where two are one, they are drawn as one is: ``o`` for the median of what a column holds, ``:`` for its range. Where
    only one of them is, its number is.

    Args:
        curves: under their names, the loss of each step; one or two.
        kills: the steps after which the program was killed, for a line of their own.
        again: steps that were computed more than once, for another.
        width: of a line, at least 40 characters.
        height: lines for the loss, at least 3.

    Raises:
        UsageError: there is nothing to draw, or no room.
    """
    finite = [{s: x for s, x in curve.items() if math.isfinite(x)} for curve in curves.values()]
    if not 1 <= len(finite) <= 2 or not all(finite) or width < 40 or height < 3:
        raise UsageError(
            f"plot: {[len(one) for one in finite]} losses that are numbers, {width} x {height} characters, "
            "wanted one curve or two, 40 x 3 or more"
        )
    columns = width - LABEL - 2
    first, last = min(map(min, finite)), max(map(max, finite))
    edges = np.linspace(first, last + 1, columns + 1)
    scale = Scale(min(min(one.values()) for one in finite), max(max(one.values()) for one in finite), height)
    cells = [_cells(one, edges, scale) for one in finite]
    grid = [[" "] * columns for _ in range(height)]
    for number, drawn in enumerate(cells, 1):
        others = cells[2 - number] if len(cells) == 2 else drawn
        for (row, column), mark in drawn.items():
            # Of a cell that both are in the mark is that of the first.
            if (row, column) not in others:
                grid[row][column] = str(number)
            elif number == 1:
                grid[row][column] = mark
    head = "loss" + (" (log)" if scale.log else "") + ": o median, : range"
    lines = [" " * (LABEL + 1) + head]
    lines += [labelled(scale.labels().get(at, ""), "".join(grid[at])) for at in range(height)[::-1]]
    if len(kills):
        # After its step, and inside the picture.
        counts = np.histogram(np.clip(kills, first, last), edges)[0]
        lines.append(labelled("kills", "".join(" " if not n else str(n) if n < 10 else "+" for n in counts)))
    if again:
        counts = np.histogram(list(again), edges)[0]
        lines.append(labelled("again", "".join("=" if n else " " for n in counts)))
    lines.append(" " * LABEL + "+" + "-" * columns)
    left, right = f"step {first:,}", f"step {last:,}"
    lines.append(" " * (LABEL + 1) + left + right.rjust(columns - len(left)))
    if len(finite) == 2:
        one, other = curves
        lines.append(f"o and : are both curves; 1 would be only {one}, 2 only {other}")
    return "\n".join(one.rstrip() for one in lines)


def _cells(curve: Mapping[int, float], edges: Floats, scale: Scale) -> dict[tuple[int, int], str]:
    """The cells of the picture that a curve is in, (row, column), with its marks."""
    steps = np.array(sorted(curve))
    values = np.array([curve[step] for step in steps.tolist()], np.float64)
    first, last = np.searchsorted(steps, edges[:-1]), np.searchsorted(steps, edges[1:])
    cells: dict[tuple[int, int], str] = {}
    for column, (a, b) in enumerate(zip(first.tolist(), last.tolist(), strict=True)):
        if a == b:  # fewer steps than columns: the straight line between two of them
            middle = (edges[column] + edges[column + 1]) / 2
            if not steps[0] <= middle <= steps[-1]:
                continue
            part: npt.NDArray[Any] = np.array([np.interp(middle, steps, values)])
        else:
            part = values[a:b]
        low, high = (int(scale.row(x)) for x in (part.min(), part.max()))
        cells |= {(row, column): ":" for row in range(low, high + 1)}
        cells[int(scale.row(np.median(part))), column] = "o"
    return cells


def numbers(losses: Losses) -> dict[int, float]:
    """The curve that was printed, as numbers."""
    return {step: float(loss) for step, loss in losses.curve().items()}


def png(losses: Losses, course: Course, *, title: str = "") -> bytes:
    """The loss of each step, and when in the trace which step was computed; kills are red in both.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        UsageError: no loss was printed.
    """
    if not losses.printed:
        raise UsageError("plot: no loss, wanted at least one")
    figure, (above, below) = figure_of_two(sharex=False)
    curve, again = numbers(losses), [loss for loss in losses.printed if loss.again]
    _draw_losses(above, curve, again, [kill.step for kill in course.kills if kill.step is not None])
    unit, length = unit_of(course.wall_seconds)
    for start, stop in course.spells:
        below.axvspan(start / length, stop / length, color=LINES[0], alpha=0.13, linewidth=0)
    times = [loss.time / length for loss in losses.printed]
    below.plot(times, [loss.step for loss in losses.printed], ".", color=LINES[0], markersize=3)
    if len(course.kills) <= _FEW:
        for kill in course.kills:
            below.axvline(kill.time / length, color=STOP, linewidth=0.8)
    below.set_xlim(0, max(course.wall_seconds, 1e-9) / length)
    below.set_xlabel(f"time in the trace ({unit}); shaded: with an instance")
    below.set_ylabel("step")
    if title:
        above.set_title(title, loc="left", fontsize=11, color=INK)
    return saved(figure)


def _draw_losses(axes: Any, curve: Mapping[int, float], again: Sequence[Loss], kills: Sequence[int]) -> None:
    axes.plot(list(curve), list(curve.values()), color=LINES[0], linewidth=1.0, label="loss")
    if again:
        axes.plot(
            [loss.step for loss in again], [loss.value for loss in again], "o", color=LINES[2], markersize=3.5,
            zorder=3, label="computed again",
        )  # fmt: skip
    if len(kills) <= _FEW:
        for at, step in enumerate(kills):
            axes.axvline(step, color=STOP, linewidth=0.8, label=None if at else "killed")
    finite = [value for value in curve.values() if math.isfinite(value)]
    if finite and min(finite) > 0 and max(finite) / min(finite) >= WIDE:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(matplotlib("ticker").FormatStrFormatter("%g"))
        axes.yaxis.set_minor_formatter(matplotlib("ticker").NullFormatter())
    axes.set_ylabel("loss")
    axes.set_xlabel("step")
    axes.grid(color=FAINT, linewidth=0.3)
    axes.legend(loc="upper right", framealpha=1, edgecolor="none", fontsize=9)
