"""Pictures of a simulated job: in plain text for a terminal, and as PNG through matplotlib, which is optional.

`strongroom.mirror.spot.curves` draws a program that was really run, with the same means.
"""

from __future__ import annotations

import importlib
import io
import itertools
import math
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import numpy as np

from strongroom.errors import MissingDependencyError, UsageError
from strongroom.mirror.spot.simulate import Outcome
from strongroom.mirror.spot.traces import Floats, Trace

LABEL: Final = 12  # characters left of the text picture's axis
_FEW: Final = 20  # interruptions that get a line each
WIDE: Final = 8.0  # from this ratio of prices on, a logarithmic scale


class _Columns(NamedTuple):
    """The trace up to `end` seconds in equal columns: lowest, median and highest price, share of time with an
    instance."""

    low: Floats
    middle: Floats
    high: Floats
    up: Floats


def text(trace: Trace, ways: Mapping[str, Outcome], *, width: int = 80, height: int = 11) -> str:
    """The price, the bid, and how far the job was, without colour and in ASCII.

    Args:
        ways: outcomes under their names, of which 8 characters are shown. The bid and the interruptions shown are those
            of the first.
        width: of a line, at least 40 characters.
        height: lines for the price, at least 3.

    Raises:
        UsageError: there is no outcome, or no room.
    """
    if not ways or width < 40 or height < 3:
        raise UsageError(f"plot: {len(ways)} outcomes, {width} x {height} characters, wanted 1, 40 x 3 or more")
    end, columns = _end(trace, ways), width - LABEL - 2
    edges = np.linspace(0, end, columns + 1)
    first = next(iter(ways.values()))
    parts = _columns(trace, edges, first)
    lines = []
    if first.bid is not None or np.ptp(trace.prices) > 0:
        lines += _price_lines(parts, first.bid, height)
    lines.append(labelled("runs", "".join(" .:#"[math.ceil(share * 3 - 1e-9)] for share in parts.up)))
    counts = np.histogram(first.stops, edges)[0]
    lines.append(labelled("stops", "".join(" " if not n else str(n) if n < 10 else "+" for n in counts)))
    for name, outcome in ways.items():
        lines.append(labelled(name[:8], _tenths(outcome, edges)))
    unit, length = unit_of(end)
    lines.append(" " * LABEL + "+" + "-" * columns)
    axis, right = f"0 {unit}", f"{end / length:.4g} {unit}"
    lines.append(" " * (LABEL + 1) + axis + right.rjust(columns - len(axis)))
    lines.append("runs: # with an instance, : . part of it; stops: interruptions, + from ten;")
    lines.append("both of the first row below them. rows: tenths of the job done, * the end")
    return "\n".join(line.rstrip() for line in lines)


def _price_lines(parts: _Columns, bid: float | None, height: int) -> list[str]:
    low, high = float(parts.low.min()), float(parts.high.max())
    if bid is not None:
        low, high = min(low, bid or low), max(high, bid)
    scale = Scale(low, high, height)
    grid = [[" "] * len(parts.low) for _ in range(height)]
    if bid is not None:
        grid[int(scale.row(bid))] = ["-"] * len(parts.low)
    lows, middles, highs = scale.row(parts.low), scale.row(parts.middle), scale.row(parts.high)
    for column in range(len(parts.low)):
        for at in range(lows[column], highs[column] + 1):
            grid[at][column] = "+" if grid[at][column] == "-" else ":"
        grid[middles[column]][column] = "o"
    labels = scale.labels()
    if bid is not None:
        labels[int(scale.row(bid))] = f"bid {bid:.4g}"[: LABEL - 1]
    head = "USD/h" + (" (log)" if scale.log else "") + ": o median, : range"
    return [" " * (LABEL + 1) + head, *(labelled(labels.get(at, ""), "".join(grid[at])) for at in range(height)[::-1])]


class Scale:
    """Where values from `low` to `high` lie in `height` lines; logarithmic if they are far apart."""

    def __init__(self, low: float, high: float, height: int) -> None:
        if high <= low:
            high = low + (abs(low) * 0.1 or 1.0)
        self.low, self.high, self.height = low, high, height
        self.log = low > 0 and high / low >= WIDE

    def row(self, value: Any) -> Any:
        """0 is the lowest line; for one value and for arrays of them."""
        scale = np.log if self.log else np.asarray
        share = (scale(np.maximum(value, self.low)) - scale(self.low)) / (scale(self.high) - scale(self.low))
        return np.rint(share * (self.height - 1)).astype(int)

    def labels(self) -> dict[int, str]:
        """What stands left of the highest and the lowest line."""
        return {self.height - 1: f"{self.high:.4g}", 0: f"{self.low:.4g}"}


def labelled(label: str, cells: str) -> str:
    """A line of a picture: what stands left of the axis, and what right of it."""
    return f"{label:>{LABEL - 1}} |{cells}"


def _tenths(outcome: Outcome, edges: Floats) -> str:
    total = outcome.job.steps
    cells = []
    for start, stop in itertools.pairwise(edges.tolist()):
        if outcome.finished and stop >= outcome.wall_seconds:
            cells.append("*" if start < outcome.wall_seconds else " ")
        else:
            cells.append(str(min(9, int(10 * _done(outcome, (start + stop) / 2) / total + 1e-9))))
    return "".join(cells)


def _done(outcome: Outcome, moment: float) -> float:
    """Steps done at a moment; where two points share it, as after an interruption, those of the later one."""
    times = outcome.curve[:, 0] if len(outcome.curve) else np.zeros(0)
    after = int(np.searchsorted(times, moment, side="right"))
    if after == 0:
        return 0.0
    if after == len(times):
        return float(outcome.curve[-1, 1])
    (t0, s0), (t1, s1) = outcome.curve[after - 1], outcome.curve[after]
    return float(s0 + (s1 - s0) * (moment - t0) / (t1 - t0))


def _columns(trace: Trace, edges: Floats, outcome: Outcome) -> _Columns:
    run = np.concatenate(([0.0], np.cumsum(np.diff(trace.times) * trace.up(outcome.bid))))
    # After the job's end there is no instance.
    share = np.diff(np.interp(np.minimum(edges, outcome.wall_seconds), trace.times, run)) / np.diff(edges)
    first = np.searchsorted(trace.times, edges[:-1], side="right") - 1
    last = np.searchsorted(trace.times, edges[1:], side="left")
    rows = [trace.prices[a:b] for a, b in zip(first, np.maximum(last, first + 1), strict=True)]
    return _Columns(
        np.array([one.min() for one in rows]),
        np.array([np.median(one) for one in rows]),
        np.array([one.max() for one in rows]),
        np.clip(share, 0, 1),
    )


def _end(trace: Trace, ways: Mapping[str, Outcome]) -> float:
    """The seconds worth drawing: until every way ended, and a little."""
    return min(trace.seconds, 1.03 * max(outcome.wall_seconds for outcome in ways.values()))


def unit_of(seconds: float) -> tuple[str, float]:
    """The unit in which so long a time is read best, and its seconds."""
    for name, length in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 3 * length:
            return name, length
    return "seconds", 1.0


def check_matplotlib() -> None:
    """Raises:
    MissingDependencyError: matplotlib is not installed, so that `png` would fail.
    """
    matplotlib("figure")


def matplotlib(module: str) -> Any:
    """A module of it. Raises as `check_matplotlib`."""
    try:
        return importlib.import_module(f"matplotlib.{module}")
    except ImportError as error:
        raise MissingDependencyError(
            f"plot: python package {error.name} cannot be imported", hint="pip install 'strongroom[plot]'"
        ) from None


INK, FAINT, BID, STOP = "#333333", "#9aa5b1", "#c4570a", "#b3261e"
LINES: Final = ("#1f6fb2", "#7a7a7a", "#2e8b57", "#8a4fae")


def png(trace: Trace, ways: Mapping[str, Outcome], *, title: str = "") -> bytes:
    """The same as a PNG: above price, bid, and when the instance ran; below how much of the job was done, each way.

    The bid, the interruptions and the shade are those of the first outcome.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        UsageError: there is no outcome.
    """
    if not ways:
        raise UsageError("plot: no outcome, wanted at least one")
    figure, (above, below) = figure_of_two(sharex=True)
    end = _end(trace, ways)
    unit, length = unit_of(end)
    _draw_price(above, trace, *next(iter(ways.items())), end, length)
    for (name, outcome), colour in zip(ways.items(), LINES * len(ways), strict=False):
        _draw_progress(below, name, outcome, length, colour)
    below.set_ylabel("steps done (%)")
    below.set_xlabel(f"time ({unit})")
    below.set_ylim(0, 104)
    below.set_xlim(0, end / length)
    below.legend(loc="upper left", bbox_to_anchor=(0, 1.16), ncols=4, frameon=False, fontsize=9, borderaxespad=0)
    if title:
        above.set_title(title, loc="left", fontsize=11, color=INK)
    return saved(figure)


def figure_of_two(*, sharex: bool) -> tuple[Any, Any]:
    """A figure and its two axes, one above the other."""
    figure = matplotlib("figure").Figure(figsize=(9, 5.6), dpi=150, layout="constrained")
    matplotlib("backends.backend_agg").FigureCanvasAgg(figure)
    both = figure.subplots(2, 1, sharex=sharex, height_ratios=(1.15, 1))
    for axes in both:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(FAINT)
        axes.tick_params(colors=INK, labelsize=9)
    return figure, both


def saved(figure: Any) -> bytes:
    """The figure as a PNG, the same bytes for the same figure."""
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def _draw_price(axes: Any, trace: Trace, name: str, outcome: Outcome, end: float, length: float) -> None:
    stop = int(np.searchsorted(trace.times, end, side="left"))
    times = np.minimum(trace.times[: stop + 1], end) / length
    prices, up = trace.prices[:stop], trace.up(outcome.bid)[:stop]
    axes.fill_between(
        np.minimum(times, outcome.wall_seconds / length), np.append(up, up[-1]).astype(float), step="post",
        transform=axes.get_xaxis_transform(), color=LINES[0], alpha=0.13, linewidth=0,
    )  # fmt: skip
    axes.step(times, np.append(prices, prices[-1]), where="post", color=INK, linewidth=0.6)
    if prices.min() > 0 and prices.max() / prices.min() >= WIDE:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(matplotlib("ticker").LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(matplotlib("ticker").FormatStrFormatter("%g"))
        axes.yaxis.set_minor_formatter(matplotlib("ticker").NullFormatter())
    axes.margins(y=0.12)
    axes.set_ylabel("price (USD an hour)")
    note = f"shaded: {name} runs; {outcome.interruptions:,} interruption{'' if outcome.interruptions == 1 else 's'}"
    if outcome.bid is not None:
        axes.axhline(outcome.bid, color=BID, linewidth=1.2)
        axes.text(
            1.0, outcome.bid, f" bid\n {outcome.bid:g}", transform=axes.get_yaxis_transform(), color=BID, fontsize=9,
            va="center", ha="left", clip_on=False,
        )  # fmt: skip
    if outcome.interruptions <= _FEW:
        axes.vlines(outcome.stops / length, 0, 1, transform=axes.get_xaxis_transform(), color=STOP, linewidth=0.8)
        note = note.replace("; ", "; red: ")
    axes.text(1.0, 1.02, note, transform=axes.transAxes, ha="right", va="bottom", fontsize=9, color=INK)


def _draw_progress(axes: Any, name: str, outcome: Outcome, length: float, colour: str) -> None:
    curve = np.concatenate((np.zeros((1, 2)), outcome.curve))
    axes.plot(curve[:, 0] / length, curve[:, 1] / outcome.job.steps * 100, color=colour, linewidth=1.3, label=name)
    if outcome.finished:
        axes.plot([outcome.wall_seconds / length], [100], "o", color=colour, markersize=4, clip_on=False)
