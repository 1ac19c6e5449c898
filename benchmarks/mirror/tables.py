"""What every way to save took, and the swaps, as tables of 100 columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rich.console import Console
from rich.table import Table

from benchmarks.mirror.published import Published
from benchmarks.mirror.swaps import SIZE, Swaps
from benchmarks.mirror.ways import KINDS, Kind, Row

PLACES: Final = ("tmpfs", "disk")

# The columns of each table: a heading, and what it shows of a row.
_COLUMNS: Final[dict[Kind, dict[str, str]]] = {
    "save": {"encrypt": "sealing", "write": "access", "stall": "stall"},
    "restore": {"decrypt": "sealing", "read": "access"},
}
_LEGEND: Final = """\
Medians, in ms. cpu: processor time of all threads. mem: the most memory needed beyond the state.
write, read: where nothing is encrypted, the whole. stall: until training goes on, if that is before
the end. meta: bytes written that are no bytes of the state."""


def show(rows: Sequence[Row], swaps: Sequence[Swaps], published: Sequence[Published]) -> None:
    """Print them; nothing of what was not measured."""
    console = Console(highlight=False, width=100)
    for place in PLACES if rows else ():
        for what in KINDS:
            if shown := [row for row in rows if row.place == place and getattr(row, what)]:
                console.print(_states(shown, place, what, published))
    if rows:
        console.print(_LEGEND, style="dim", markup=False)
    if swaps:
        console.print(_swaps(swaps))


def _states(rows: Sequence[Row], place: str, what: Kind, published: Sequence[Published]) -> Table:
    columns = _COLUMNS[what]
    table = _table(f"{what}, {place}", what, *columns, "cpu", "mem MiB", *(["meta B"] if what == "save" else []))
    for size in sorted({row.size for row in rows}):
        table.add_row(f"{size:,} MB", style="bold")
        for row in rows:
            if row.size == size:
                took = getattr(row, what)
                cells = [_number(took.get(name)) for name in ("total", *columns.values(), "cpu", "memory")]
                table.add_row(row.way, *cells, *([f"{row.metadata:,}"] if what == "save" else []))
        for one in published:
            if (one.size, one.what) == (size, what):
                table.add_row(one.way, _number(one.total), _number(one.sealing), _number(one.access), style="dim")
    return table


def _swaps(swaps: Sequence[Swaps]) -> Table:
    table = _table(f"swaps per second, array of {SIZE >> 20} MiB", *(f"{each:,}" for each in _each(swaps)))
    table.caption = "by swaps in a commit; process: survives a killed process, power: survives a power cut"
    table.caption_justify = "left"
    for place, durability in dict.fromkeys((one.place, one.durability) for one in swaps):
        rates = {one.each: one.rate for one in swaps if (one.place, one.durability) == (place, durability)}
        table.add_row(f"{place}, {durability}", *(_number(rates.get(each)) for each in _each(swaps)))
    return table


def _each(swaps: Sequence[Swaps]) -> list[int]:
    return sorted({one.each for one in swaps})


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column(first, no_wrap=True)
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if value >= 100 or not value else f"{value:.3g}"
