"""A plan as a picture: its units in the order in which they run, a frame around each stage, an arrow at each cut.

The picture is a list of shapes first, so that SVG is written without any library, and PNG by matplotlib alike.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from xml.sax.saxutils import escape, quoteattr

from strongroom.errors import MissingDependencyError, UsageError, printable
from strongroom.serve.plan.costs import Costs
from strongroom.serve.plan.document import Plan
from strongroom.serve.plan.words import duration, rate, size

_WIDTH: Final = 980.0
_MARGIN: Final = 16.0
_GAP: Final = 8.0
_COLUMNS: Final = 8
_UNIT: Final = ((_WIDTH - 2 * _MARGIN - _GAP) / _COLUMNS - _GAP, 46.0)
_SMALLEST: Final = 7.0  # of the letters of a unit's name, which are as large as fits
_BOLD: Final = 0.62  # of a letter's height is its width, in Helvetica's bold, on average
_HEAD: Final = 26.0
_ARROW: Final = 34.0
# Okabe and Ito's colours, which all can tell apart, lightened.
_COLOURS: Final = ("#d6e9f8", "#fde7c4", "#cfeee3", "#f6dcea", "#fbf7c9", "#d8dff0", "#fadccb")
_INK, _FAINT, _BAR, _PAPER = "#1b1f24", "#57606a", "#b44a00", "#ffffff"


@dataclass(frozen=True)
class Box:
    """A rectangle with a fill and an outline."""

    x: float
    y: float
    width: float
    height: float
    fill: str
    line: str


@dataclass(frozen=True)
class Text:
    """A line of text; `y` is its base line, `most` how wide it may be."""

    x: float
    y: float
    text: str
    size: float
    colour: str = _INK
    bold: bool = False
    middle: bool = False
    most: float = _WIDTH


@dataclass(frozen=True)
class Arrow:
    """An arrow straight down."""

    x: float
    top: float
    bottom: float


Shape = Box | Text | Arrow


@dataclass(frozen=True)
class Picture:
    """Shapes in points, the origin at the top left."""

    width: float
    height: float
    shapes: Sequence[Shape]


def draw(plan: Plan, costs: Costs, title: str) -> Picture:
    """The picture of a plan."""
    shapes: list[Shape] = [
        Text(_MARGIN, 24, printable(title)[:90], 16, bold=True),
        Text(_MARGIN, 42, _summary(plan), 11, _FAINT),
    ]
    slowest = max(1, *costs.nanoseconds)
    y = 58.0
    y = _arrow(shapes, y, f"input, {size(plan.takes)}")
    for number, stage in enumerate(plan.stages):
        units = range(stage.first, stage.last)
        rows = -(-len(units) // _COLUMNS)
        height = _HEAD + rows * (_UNIT[1] + _GAP) + _GAP
        colour = _COLOURS[number % len(_COLOURS)]
        shapes.append(Box(_MARGIN, y, _WIDTH - 2 * _MARGIN, height, colour, _FAINT))
        kind = plan.enclaves[stage.enclave]
        copies = f"s, {stage.replicas} of them" if stage.replicas > 1 else ""
        full = f"{100 * stage.memory / kind.memory:.0f} % of {size(kind.memory)}"
        words = (
            f"stage {number + 1}   {_units(stage.first, stage.last)}   {size(stage.memory)}, {full}"
            f"   {duration(stage.nanoseconds)}   {kind.name}{copies}"
        )
        shapes.append(Text(_MARGIN + _GAP, y + 18, printable(words), 12, bold=True))
        for place, unit in enumerate(units):
            left = _MARGIN + _GAP + place % _COLUMNS * (_UNIT[0] + _GAP)
            top = y + _HEAD + place // _COLUMNS * (_UNIT[1] + _GAP)
            _unit(shapes, costs, unit, left, top, slowest)
        y += height
        last = number == len(plan.stages) - 1
        y = _arrow(shapes, y, f"{'output' if last else 'cut'}, {size(stage.sends)}")
    shapes.append(
        Text(
            _MARGIN,
            y + 12,
            "in a unit: its number and operators, its weights and time; the bar is its time",
            10,
            _FAINT,
        )
    )
    return Picture(_WIDTH, y + 24, shapes)


def check(path: Path) -> None:
    """Raises as `write` does for a file of that name."""
    if path.suffix not in (".svg", ".png"):
        raise UsageError(f"picture: got {path.name[:60]!r}, wanted a name that ends in .svg or .png")
    if path.suffix == ".png":
        _require_matplotlib()


def write(picture: Picture, path: Path) -> None:
    """Write a ``.svg``, or with matplotlib a ``.png``.

    Raises:
        UsageError: another ending.
        MissingDependencyError: matplotlib is not installed.
    """
    check(path)
    if path.suffix == ".svg":
        path.write_text(to_svg(picture), encoding="utf-8")
    else:
        _to_png(picture, path)


def to_svg(picture: Picture) -> str:
    """The picture as SVG 1.1, with nothing in it that is fetched or run."""
    width, height = f"{picture.width:.0f}", f"{picture.height:.0f}"
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="Helvetica, Arial, sans-serif">',
        f'<rect width="{width}" height="{height}" fill="{_PAPER}"/>',
    ]
    for shape in picture.shapes:
        if isinstance(shape, Box):
            lines.append(
                f'<rect x="{shape.x:.1f}" y="{shape.y:.1f}" width="{shape.width:.1f}" height="{shape.height:.1f}" '
                f'rx="3" fill="{shape.fill}" stroke="{shape.line}" stroke-width="0.8"/>'
            )
        elif isinstance(shape, Text):
            more = (' font-weight="bold"' if shape.bold else "") + (' text-anchor="middle"' if shape.middle else "")
            lines.append(
                f'<text x="{shape.x:.1f}" y="{shape.y:.1f}" font-size="{shape.size:g}" fill={quoteattr(shape.colour)}'
                f"{more}>{escape(shape.text)}</text>"
            )
        else:
            tip = f"{shape.x - 4:.1f},{shape.bottom - 7:.1f} {shape.x + 4:.1f},{shape.bottom - 7:.1f}"
            lines.append(
                f'<line x1="{shape.x:.1f}" y1="{shape.top:.1f}" x2="{shape.x:.1f}" y2="{shape.bottom - 6:.1f}" '
                f'stroke="{_INK}" stroke-width="1.4"/><polygon points="{tip} {shape.x:.1f},{shape.bottom:.1f}" '
                f'fill="{_INK}"/>'
            )
    return "\n".join([*lines, "</svg>\n"])


def _require_matplotlib() -> None:
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingDependencyError(
            "matplotlib: is not installed, wanted to write a .png",
            hint="pip install 'strongroom[plot]', or name a .svg, which needs nothing",
        )


def _to_png(picture: Picture, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import FancyBboxPatch

    figure = Figure(figsize=(picture.width / 72, picture.height / 72), dpi=144, facecolor=_PAPER)
    renderer = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]  # matplotlib has no types for it
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, picture.width), ylim=(picture.height, 0))
    axes.axis("off")
    for shape in picture.shapes:
        if isinstance(shape, Box):
            style = "round,pad=0,rounding_size=3" if min(shape.width, shape.height) > 8 else "square,pad=0"
            axes.add_patch(
                FancyBboxPatch(
                    (shape.x, shape.y),
                    shape.width,
                    shape.height,
                    boxstyle=style,
                    facecolor=shape.fill,
                    edgecolor=shape.line,
                    linewidth=0.8,
                )
            )
        elif isinstance(shape, Text):
            text = axes.text(
                shape.x, shape.y, shape.text.replace("$", r"\$"), fontsize=shape.size * 0.95, color=shape.colour,
                weight="bold" if shape.bold else "normal", ha="center" if shape.middle else "left", va="baseline",
            )  # fmt: skip
            wide = text.get_window_extent(renderer).width * 72 / figure.dpi
            if wide > shape.most:  # the font is another than SVG's
                text.set_fontsize(shape.size * 0.95 * shape.most / wide)
        else:
            ends = {"arrowstyle": "-|>", "color": _INK, "shrinkA": 0, "shrinkB": 0}
            axes.annotate("", (shape.x, shape.bottom), (shape.x, shape.top), arrowprops=ends)
    figure.savefig(path, format="png")


def _summary(plan: Plan) -> str:
    paging = "no paging" if plan.paging is None else f"paging allowed ({plan.paging.source})"
    return (
        f"for {plan.objective}, batch {plan.batch}, {paging}: latency {duration(plan.latency_ns)}, "
        f"{rate(plan.answers_per_second)} answers a second predicted"
    )


def _units(first: int, last: int) -> str:
    return f"unit {first}" if last - first == 1 else f"units {first} to {last - 1}"


def _arrow(shapes: list[Shape], y: float, words: str) -> float:
    shapes.append(Arrow(_WIDTH / 2, y + 3, y + _ARROW - 3))
    shapes.append(Text(_WIDTH / 2 + 10, y + _ARROW / 2 + 4, words, 11))
    return y + _ARROW


def _unit(shapes: list[Shape], costs: Costs, unit: int, left: float, top: float, slowest: int) -> None:
    shapes.append(Box(left, top, *_UNIT, _PAPER, _FAINT))
    name = costs.names[unit] if unit < len(costs.names) else ""
    words, room = f"{unit} {printable(name)}", _UNIT[0] - 10
    longest = int(room / (_BOLD * _SMALLEST))
    words = words if len(words) <= longest else f"{words[: longest - 1]}…"
    shapes.append(Text(left + 5, top + 14, words, min(10, room / (_BOLD * len(words))), bold=True, most=room))
    shapes.append(
        Text(left + 5, top + 28, f"{size(costs.weights[unit])}  {duration(costs.nanoseconds[unit])}", 9, _FAINT)
    )
    share = costs.nanoseconds[unit] / slowest
    shapes.append(Box(left + 5, top + 35, max(0.5, share * (_UNIT[0] - 10)), 5, _BAR, _BAR))
