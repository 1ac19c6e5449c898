"""What was measured, drawn beside what Plinius published: one PNG for each question, nothing of what was left out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from benchmarks.harness import Result
from benchmarks.mirror import published as plinius
from benchmarks.mirror.published import Published
from benchmarks.mirror.rivals import ENCRYPTED
from benchmarks.mirror.states import SIZES, stalled
from benchmarks.mirror.swaps import SIZE, Swaps
from benchmarks.mirror.tables import PLACES
from benchmarks.mirror.trainings import BATCHES, iteration
from benchmarks.mirror.ways import KINDS, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# A colour for each way wherever it appears; ours stand out, and what another machine measured is grey.
_OURS: Final = "#00755e"
_STYLES: Final[dict[str, dict[str, Any]]] = {
    "Strongroom": {"color": _OURS, "marker": "o", "linewidth": 2.4, "zorder": 5},
    "Strongroom, overlapped": {"color": "#4db59c", "marker": "o", "markersize": 4},
    ENCRYPTED: {"color": "#c2410c", "marker": "s", "linewidth": 2},
    "torch.save": {"color": "#e8985a", "marker": "s", "markersize": 4},
    "safetensors": {"color": "#7c3aed", "marker": "^", "markersize": 5},
    "distributed.checkpoint": {"color": "#1d4ed8", "marker": "D", "markersize": 4},
    "its async_save": {"color": "#7aa5f5", "marker": "D", "markersize": 4},
    plinius.MEMORY: {"color": "#333333", "marker": "x", "linestyle": "--"},
    plinius.SSD: {"color": "#8a8a8a", "marker": "+", "markersize": 8, "linestyle": ":"},
}
_LABELS: Final = {
    "its async_save": "distributed.checkpoint, async_save",
    plinius.MEMORY: f"{plinius.MEMORY} (in SGX, its machine)",
    plinius.SSD: f"{plinius.SSD} (in SGX, its machine)",
}
_PARTS: Final = {
    "encrypting, decrypting; ours with all else": _OURS,
    "writing, reading": "#e8b04a",
    "serialising": "#b9b9b9",
}
_GOAL: Final[dict[str, Any]] = {"color": "#b91c1c", "linewidth": 1.2, "linestyle": (0, (4, 3))}


def draw(
    folder: Path, rows: Sequence[Row], swaps: Sequence[Swaps], results: Sequence[Result], published: Sequence[Published]
) -> list[Path]:
    """Write the pictures to a directory; those that there is anything for.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    measured = {result.goal.name: result for result in results if result.value is not None}
    figures = {
        "mirror-states": _states(rows, published),
        "mirror-parts": _parts(rows, published),
        "mirror-stall": _stall(rows, measured),
        "mirror-training": _training(measured),
        "mirror-iterations": _iterations(measured),
        "mirror-swaps": _swaps(swaps),
    }
    written = []
    for name, figure in figures.items():
        if figure is not None:
            written.append(folder / f"{name}.png")
            figure.savefig(written[-1], dpi=150)
    return written


def _figure(
    title: str, width: float, height: float, rows: int = 1, columns: int = 1, **more: Any
) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(title, fontsize=13)
    return figure, figure.subplots(rows, columns, squeeze=False, **more)


def _sizes(axes: Axes, sizes: Sequence[int]) -> None:
    """A logarithmic axis of megabytes that names the sizes which have room."""
    axes.set_xscale("log")
    named = [size for size in sizes if size not in (67, 89, 78)]
    axes.set_xticks(named, [f"{size:,}" for size in named])
    axes.minorticks_off()
    axes.grid(which="major", color="#e5e5e5")


def _plain(axes: Axes) -> None:
    """A logarithmic axis of values, without exponents."""
    from matplotlib.ticker import FuncFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))


def _states(rows: Sequence[Row], published: Sequence[Published]) -> Figure | None:
    """Time to save and restore over the size of the state."""
    if not rows:
        return None
    figure, grid = _figure("Saving and restoring the state of a training", 11, 8.6, 2, 2, sharex=True, sharey=True)
    lines: dict[str, Any] = {}
    for at, what in enumerate(KINDS):
        for axes, place in zip(grid[at], PLACES, strict=True):
            for way, style in _STYLES.items():
                points = [(row.size, getattr(row, what)["total"]) for row in rows_of(rows, place, way, what)]
                points += [(one.size, one.total) for one in published if (one.way, one.what) == (way, what)]
                if points:
                    (lines[way],) = axes.plot(*zip(*sorted(points), strict=True), label=_LABELS.get(way, way), **style)
            axes.set_title(f"{what}, {place}", fontsize=11)
            _plain(axes)
            _sizes(axes, sorted({row.size for row in rows} | {44, 100}))
        grid[at][0].set_ylabel("milliseconds")
    for axes in grid[1]:
        axes.set_xlabel("state, MB")
    handles = [lines[way] for way in _STYLES if way in lines]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    return figure


def rows_of(rows: Sequence[Row], place: str, way: str, what: str) -> list[Row]:
    """Those of a place and a way that have what is asked for."""
    return [row for row in rows if (row.place, row.way) == (place, way) and getattr(row, what)]


def _parts(rows: Sequence[Row], published: Sequence[Published]) -> Figure | None:
    """What encrypting and file access take, of one size."""
    sealing = [row for row in rows if "sealing" in row.save and "sealing" in row.restore]
    if not sealing:
        return None
    size = max((row.size for row in sealing if row.size <= 100), default=sealing[0].size)
    figure, grid = _figure(f"Where the time goes: a state of {size:,} MB", 10, 4.6, 1, 2)
    for axes, what in zip(grid[0], KINDS, strict=True):
        bars = [
            (f"{row.way}, {row.place}", getattr(row, what))
            for row in sorted(sealing, key=lambda row: PLACES.index(row.place))
            if row.size == size and row.way in ("Strongroom", ENCRYPTED)
        ]
        bars += [
            (one.way, {"total": one.total, "sealing": one.sealing, "access": one.access})
            for one in published
            if (one.size, one.what) == (size, what) and one.sealing is not None
        ]
        for at, (_, took) in enumerate(bars):
            lengths = (took["sealing"], took["access"], max(0, took["total"] - took["sealing"] - took["access"]))
            left = 0.0
            for length, (part, colour) in zip(lengths, _PARTS.items(), strict=True):
                axes.barh(at, length, left=left, color=colour, label=part if at == 0 else None, height=0.62)
                left += length
            axes.text(left, at, f" {took['total']:,.0f}", va="center", fontsize=9)
        axes.set_yticks(range(len(bars)), [name for name, _ in bars])
        axes.invert_yaxis()
        axes.set_xlim(0, 1.15 * max(took["total"] for _, took in bars))
        axes.set(title=what, xlabel="milliseconds")
        if axes is not grid[0][0]:
            axes.set_yticklabels([])
    figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def _stall(rows: Sequence[Row], measured: dict[str, Result]) -> Figure | None:
    """How long an overlapped commit holds up a training, and a copy in memory takes."""
    found = [(size, measured[stalled(size)]) for size in SIZES if stalled(size) in measured]
    if not found:
        return None
    sizes = [size for size, _ in found]
    figure, ((axes,),) = _figure("How long a commit beside the training holds it up", 7.5, 5)
    ours = [one.ours.median for _, one in found if one.ours]
    copies = [one.peer.median for _, one in found if one.peer]
    axes.plot(sizes, ours, label="Strongroom, overlapped", **_STYLES["Strongroom"])
    axes.plot(sizes, copies, label="a copy in memory", color="#555555", marker="x")
    axes.plot(sizes, [found[0][1].goal.wanted * copy for copy in copies], label="goal: 1.2 copies", **_GOAL)
    others = [(row.size, row.save["stall"]) for row in rows_of(rows, "tmpfs", "its async_save", "save")]
    if others:
        axes.plot(*zip(*others, strict=True), label=_LABELS["its async_save"], **_STYLES["its async_save"])
    axes.set(xlabel="state, MB", ylabel="milliseconds")
    _plain(axes)
    _sizes(axes, sizes)
    axes.legend(frameon=False)
    return figure


def _training(measured: dict[str, Result]) -> Figure | None:
    """What a training with a mirror takes over one without."""
    found = [one for name, one in measured.items() if name.startswith("training, ")]
    if not found:
        return None
    figure, ((axes,),) = _figure(
        "What a mirror on a disk that survives power cuts costs a training", 9, 1.6 + 0.6 * len(found)
    )
    for at, one in enumerate(found):
        assert one.value is not None and one.ratios is not None
        cost, bound = (one.value - 1) * 100, (one.goal.wanted - 1) * 100
        axes.barh(at, cost, xerr=one.ratios.spread * 50, color=_OURS, height=0.5, capsize=4, ecolor="#777777")
        axes.plot([bound, bound], [at - 0.36, at + 0.36], label="goal, at most" if at == 0 else None, **_GOAL)
    axes.axvline(0, color="#333333", linewidth=0.8)
    axes.set_yticks(range(len(found)), [one.goal.name.removeprefix("training, ") for one in found])
    axes.invert_yaxis()
    axes.set_xlabel("% more time for a step (median and spread of the rounds)")
    axes.legend(frameon=False, loc="best")
    return figure


def _iterations(measured: dict[str, Result]) -> Figure | None:
    """What sealed batches cost an iteration."""
    found = [(size, measured[iteration(size)]) for size in BATCHES if iteration(size) in measured]
    if not found:
        return None
    figure, ((axes,),) = _figure("An iteration on sealed batches", 7.5, 4.6)
    sizes, ratios = [size for size, _ in found], [one.ratios for _, one in found if one.ratios]
    axes.errorbar(
        sizes,
        [one.median for one in ratios],
        yerr=[one.spread / 2 for one in ratios],
        label="Strongroom",
        capsize=4,
        ecolor="#777777",
        **_STYLES["Strongroom"],
    )
    axes.axhline(plinius.ITERATION, color="#333333", linestyle="--", label="Plinius: 1.2 (in SGX, its machine)")
    axes.axhline(found[0][1].goal.wanted, label="goal, at most", **_GOAL)
    axes.axhline(1, color="#aaaaaa", linewidth=0.8)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.set(xlabel="images in a batch", ylabel="time / time on arrays in memory")
    axes.set_ylim(bottom=min(0.95, *(one.median - one.spread for one in ratios)))
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


def _swaps(swaps: Sequence[Swaps]) -> Figure | None:
    """Swaps per second over the swaps in a commit."""
    if not swaps:
        return None
    figure, ((axes,),) = _figure(f"Random swaps in a mirrored array of {SIZE >> 20} MiB", 7.5, 5)
    survives = {"process": "survives a killed process", "power": "survives a power cut"}
    styles = iter((_STYLES["Strongroom"], _STYLES["Strongroom, overlapped"], _STYLES[ENCRYPTED]))
    for place, durability in dict.fromkeys((one.place, one.durability) for one in swaps):
        points = [(one.each, one.rate) for one in swaps if (one.place, one.durability) == (place, durability)]
        axes.plot(*zip(*points, strict=True), label=f"{place}, {survives[durability]}", **next(styles))
    axes.set_xscale("log")
    each = sorted({one.each for one in swaps})
    axes.set_xticks(each, [f"{one:,}" for one in each])
    axes.minorticks_off()
    axes.grid(which="major", color="#e5e5e5")
    axes.set(xlabel="swaps in a commit", ylabel="swaps per second")
    _plain(axes)
    axes.legend(frameon=False)
    return figure
